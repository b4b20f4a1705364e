"""One model, all the way: built as a pure function, trained, fitted to the hardware, served and updated.

    Sequential, Model, load       the two front doors, and opening what they saved
    Network                       a model of the shelf: what `lm.models.resnet50(...)` and others give
    load_pretrained               other people's weights as a model that is ready
    finetune, LoRA                such a model for a task of one's own
    layers                        what models are made of
    models                        models by their sizes, the shelf among them
    generate                      a language model writes: sampling, beams, streams
    Dataset                       data with its preprocessing
    Optimizer, Schedule           how to train
    MeshSpec                      over how many devices, and along what
    Checkpoint                    how often a fit saves itself, and what is kept
    pipeline                      a task in one call: sentiment, transcribe, image-classification
    callbacks                     early stopping, best checkpoint, logs
    plan                          which devices and which layout, before anyone pays for them
    Deployer                      serve a saved model over HTTP
    export                        a model as a bundle, or for ONNX, OpenVINO, IREE, TensorFlow
    runtime                       a queue of jobs by priority and need, `llmasos up`; watch(), energy
    sharding                      meshes, where arrays lie on them
    initialize, world             several processes, on one machine or many
    kernels                       convolution, pooling, recurrence for your own JAX code
    pure, Net, Variables          an nnx module as pure functions over flat dicts

Names are imported when they are first used: importing the package loads little more than nothing.
"""

from typing import TYPE_CHECKING

from llmasos_xla._version import __version__ as __version__
from llmasos_xla.lazy import lazy

if TYPE_CHECKING:
    from llmasos_xla import data as data
    from llmasos_xla import kernels as kernels
    from llmasos_xla import models as models
    from llmasos_xla import runtime as runtime
    from llmasos_xla import sharding as sharding
    from llmasos_xla import training as training
    from llmasos_xla.api.finetuning import finetune as finetune
    from llmasos_xla.api.generate import generate as generate
    from llmasos_xla.api.load import load as load
    from llmasos_xla.api.model import Model as Model
    from llmasos_xla.api.network import Network as Network
    from llmasos_xla.api.pipelines.opening import pipeline as pipeline
    from llmasos_xla.api.planning import plan as plan
    from llmasos_xla.api.pretrained import load_pretrained as load_pretrained
    from llmasos_xla.api.sequential import Sequential as Sequential
    from llmasos_xla.core import Net as Net
    from llmasos_xla.core import Variables as Variables
    from llmasos_xla.core import pure as pure
    from llmasos_xla.data.dataset import Dataset as Dataset
    from llmasos_xla.deployment.deployer import Deployer as Deployer
    from llmasos_xla.deployment.exporting import export as export
    from llmasos_xla.models import layers as layers
    from llmasos_xla.models.lora import LoRA as LoRA
    from llmasos_xla.sharding.distributed import initialize as initialize
    from llmasos_xla.sharding.mesh import MeshSpec as MeshSpec
    from llmasos_xla.sharding.processes.world import World as World
    from llmasos_xla.sharding.processes.world import world as world
    from llmasos_xla.training import callbacks as callbacks
    from llmasos_xla.training.checkpoint import Checkpoint as Checkpoint
    from llmasos_xla.training.optimizers import Optimizer as Optimizer
    from llmasos_xla.training.optimizers import Schedule as Schedule

_HOMES = {
    "Checkpoint": "training.checkpoint",
    "Dataset": "data.dataset",
    "Deployer": "deployment.deployer",
    "LoRA": "models.lora",
    "MeshSpec": "sharding.mesh",
    "Model": "api.model",
    "Net": "core",
    "Network": "api.network",
    "Optimizer": "training.optimizers",
    "Schedule": "training.optimizers",
    "Sequential": "api.sequential",
    "Variables": "core",
    "World": "sharding.processes.world",
    "export": "deployment.exporting",
    "finetune": "api.finetuning",
    "generate": "api.generate",
    "initialize": "sharding.distributed",
    "load": "api.load",
    "load_pretrained": "api.pretrained",
    "pipeline": "api.pipelines.opening",
    "plan": "api.planning",
    "pure": "core",
    "world": "sharding.processes.world",
}
_MODULES = {
    "callbacks": "training.callbacks",
    "data": "data",
    "kernels": "kernels",
    "layers": "models.layers",
    "models": "models",
    "runtime": "runtime",
    "sharding": "sharding",
    "training": "training",
}

__all__ = ["__version__", *_HOMES, *_MODULES]
__getattr__, __dir__ = lazy(__name__, _HOMES, _MODULES)
