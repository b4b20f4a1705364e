"""Models: layers, lists of them, and the shelf, one file an architecture.

    layers      the layers, as specifications
    stack       a list of layers as one nnx module
    spec        a model as its user wrote it down
    stages      a list of layers cut into stages, for the devices of a pipeline
    decoder     DecoderConfig: decoder language models by their sizes
    config      what a model of the shelf is
    shelf       the models of the shelf by name
    ctc_decoding what the logits of a CTC model say
    face_detection FaceDetector: faces in a picture by the three networks of MTCNN
    streaming   networks on sound that comes piece by piece
    generation/ writing token after token: what a model defines for it, and the loops
    pretrained/ published weights: formats, names, reading

Nothing here holds arrays but the modules that specifications build. `lm.models.resnet50(...)` opens one of the shelf
as a `Network`.
"""

import importlib
from typing import Any

from llmasos_xla.models import layers as layers
from llmasos_xla.models.config import Config as Config
from llmasos_xla.models.ctc_decoding import Hypothesis as Hypothesis
from llmasos_xla.models.ctc_decoding import beam_search as beam_search
from llmasos_xla.models.ctc_decoding import ctc_text as ctc_text
from llmasos_xla.models.ctc_decoding import greedy as greedy
from llmasos_xla.models.decoder import DecoderConfig as DecoderConfig
from llmasos_xla.models.face_detection import FaceDetector as FaceDetector
from llmasos_xla.models.face_detection import Faces as Faces
from llmasos_xla.models.shelf import FAMILIES as FAMILIES
from llmasos_xla.models.shelf import SHELF as SHELF
from llmasos_xla.models.stack import Stack as Stack
from llmasos_xla.models.streaming import Stream as Stream
from llmasos_xla.models.streaming import streaming as streaming

globals().update({family.__name__: family for family in FAMILIES})
# Importing a module put its name here: `models.gpt2` shall be the model, as `models.resnet50` is.
for _name in SHELF:
    globals().pop(_name, None)


def __getattr__(name: str) -> Any:
    if name not in SHELF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; the shelf has {', '.join(sorted(SHELF))}")
    # The doors stand above this room, so they are found by name, when a user asks for one.
    model = importlib.import_module("llmasos_xla.api.shelf").opener(name)
    globals()[name] = model
    return model


def __dir__() -> list[str]:
    return sorted({*globals(), *SHELF})
