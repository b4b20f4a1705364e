"""Other people's weights as a model that is ready: the architecture is found from the files."""

import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llmasos_xla.api.network import Network
from llmasos_xla.models import pretrained
from llmasos_xla.models.config import Config
from llmasos_xla.models.pretrained.described import config_file, described, ends_of_texts, names_of_classes
from llmasos_xla.models.shelf import FAMILIES


def load_pretrained(
    path: str | os.PathLike,
    *,
    shard: Any = None,
    seed: int = 0,
    source: str | None = None,
    ignored: str | Sequence[str] = (),
    **sizes: Any,
) -> Network:
    """The model of a folder with config.json and weights, as Hugging Face has them, or of a llama2.c file.

    Which architecture it is, config.json says; each array of the weights is accounted for. What a task's new head needs
    and the weights lack is drawn anew. Nothing in the files is executed.

    Args:
        path: the folder, or a file of weights beside its config.json.
        shard: a strategy's name such as "fsdp", or a `MeshSpec`: the arrays are read straight onto the mesh, each
            device its own part, and none is whole in memory at any time.
        seed: of a new head, and of the data's order and dropout.
        source: whose names the arrays have; found from the names if None.
        ignored: a regular expression, or several, of names that are taken as not there: a head that a new one replaces.
        **sizes: arguments of the configuration that stand in the place of config.json's: task, classes, dropout.

    Raises FileNotFoundError, and ValueError for an architecture that is not on the shelf, for damaged files and for
    arrays that are missing, left over or of another shape.
    """
    path = pathlib.Path(path)
    arrays = pretrained.read(path)
    if arrays.config is not None:
        config = _from_llama2c(arrays.config, sizes)
    else:
        config = config_of(path, **sizes)
    network = Network(config, seed=seed)
    network.read(arrays, shard=shard, source=source, ignored=ignored)
    network.folder = path if path.is_dir() else path.parent
    network.class_names = names_of_classes(path)
    return network


def config_of(path: str | os.PathLike, **sizes: Any) -> Config:
    """The configuration that the config.json of a folder, or beside a file, describes; `sizes` stand in its place."""
    file, found = config_file(path), described(path)
    if found is None:
        raise FileNotFoundError(
            f"load_pretrained: there is no {str(file)!r} to say what model it is; name it yourself, "
            f"lm.models.<name>(weights={str(path)!r}), with one of {_known(by_name=True)}"
        )
    family = _family(found, str(file))
    try:
        return family.from_huggingface({**found, **ends_of_texts(path)}, **sizes)
    except KeyError as error:
        raise ValueError(f"load_pretrained: {str(file)!r} does not say {error} of a {family.family}") from error
    except TypeError as error:
        raise ValueError(f"load_pretrained: {family.__name__} from {str(file)!r}: {error}") from error


def _family(described: Mapping[str, Any], file: str) -> type[Config]:
    kind = described.get("model_type")
    if kind is None:
        # Files from before model_type was written name a class, "BertForMaskedLM".
        named = described.get("architectures")
        classes = tuple(str(name).lower() for name in named) if isinstance(named, list) else ()
        known = [t for f in FAMILIES for t in f.huggingface]
        fits = [t for t in known if any(c.startswith(re.sub("[_-]", "", t)) for c in classes)]
        kind = max(fits, key=len, default=None)
    for family in FAMILIES:
        if kind in family.huggingface:
            return family
    raise ValueError(
        f"load_pretrained: {file!r} describes a model of type {str(kind)[:80]!r} (architectures "
        f"{str(described.get('architectures'))[:80]}), which is not on the shelf; known are {_known()}"
    )


def _from_llama2c(sizes_there: Mapping[str, Any], sizes: Mapping[str, Any]) -> Config:
    for family in FAMILIES:
        if (make := getattr(family, "from_llama2c", None)) is not None:
            return make(sizes_there, **sizes)
    raise ValueError("load_pretrained: no model of the shelf reads llama2.c's files")


def _known(by_name: bool = False) -> str:
    names = {n for f in FAMILIES for n in (f.presets if by_name else f.huggingface)}
    return ", ".join(sorted(names)) or "none"
