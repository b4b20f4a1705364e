"""What both front doors have in common: everything that is not how a model is written down."""

import dataclasses
import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmasos_xla.api.keeping import keeping
from llmasos_xla.api.learner import Learner
from llmasos_xla.core import Variables
from llmasos_xla.data.dataset import Dataset
from llmasos_xla.models.layers._base import Layer
from llmasos_xla.models.spec import StackSpec
from llmasos_xla.storage.exported import PLATFORMS
from llmasos_xla.training.checkpoint import Checkpoint
from llmasos_xla.training.history import History

_ROWS_THAT_SHOULD_MIX = 20


class Door:
    """Base of `Sequential` and `Model`; never built itself. All memory is in `learner`."""

    def __init__(self, spec: StackSpec, *, seed: int):
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
            raise ValueError(f"{type(self).__name__}: seed wants a whole number, got {seed!r}")
        self.learner = Learner(spec, seed=int(seed))

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers, first to last."""
        return self.learner.spec.layers

    @property
    def variables(self) -> Variables:
        """The weights by name."""
        return self.learner.variables

    @variables.setter
    def variables(self, variables: Variables) -> None:
        self.learner.variables = variables

    def evaluate(
        self,
        x: Any,
        y: Any = None,
        *,
        batch_size: int | None = None,
        sample_weight: Any = None,
        verbose: int = 1,
        workers: int = 0,
        shard: Any = None,
    ) -> dict[str, float]:
        """Loss and metrics on (x, y) or on a `Dataset`: `{"loss": ..., "accuracy": ...}`; `shard` is as in `fit`."""
        dataset = self._dataset(x, y, "test", sample_weight)
        return self.learner.evaluate(dataset, batch_size=batch_size, verbose=verbose, workers=workers, shard=shard)

    def predict(self, x: Any, *, shard: Any = None) -> Any:
        """Outputs [rows, ...] in float32: probabilities after a softmax or sigmoid. `x` is raw input or a `Dataset`.

        `shard` is as in `fit`. In several processes all are given the same rows and get all outputs.
        """
        return self.learner.predict(x, shard)

    def summary(self) -> None:
        """Prints the layers, their output shapes and parameters, and what is done to raw input."""
        print(self.learner.summary())

    def save(self, path: str | os.PathLike) -> None:
        """Writes the model to a .h5 or .safetensors file, with its preprocessing and its training state.

        The write is atomic: the old file stays whole until the new one is.
        """
        recipe = self.learner.recipe
        if recipe is not None and recipe.to_json() is None:
            warnings.warn(
                "save: the optimizer, loss or metrics are functions of your own, which no file can hold; the weights "
                "are saved without the training state, and after load compile must be called again",
                stacklevel=2,
            )
        self.settle()
        self.learner.save(path, {**self._door(), **self._kept()})

    def export(
        self,
        path: str | os.PathLike,
        *,
        name: str | None = None,
        platforms: Sequence[str] = PLATFORMS,
        lengths: Sequence[int] = (),
        example: Any = None,
        key: Any = None,
    ) -> pathlib.Path:
        """Writes the model as a `.lmx` bundle: one file that runs on CPU, CUDA, ROCm and TPU, with JAX alone.

        It holds what `predict` computes, for any number of rows, the weights, the preprocessing, an example with its
        answer, and what `lm.load` rebuilds the model from; not the training state.

        Args:
            path: ends in ".lmx"; what was there stays whole until the new file is.
            name: what the model is called; the file's name without its ending if None.
            platforms: of "cpu", "cuda", "rocm" and "tpu".
            lengths: where a network reads rows of any length: a program for each of these, instead of one for all.
            example: raw input for the example; made up if None.
            key: a private ed25519 key, PEM text or a file of it, to sign the bundle with.

        Returns the path. Raises ValueError for a model that has never seen data, and for one that cannot be exported.
        """
        from llmasos_xla.api.exporting import export_model

        return export_model(self, path, name=name, platforms=platforms, lengths=lengths, example=example, key=key)

    def settle(self) -> None:
        """Settles how raw input is prepared, where no data are needed to know it; nothing otherwise."""

    def _append(self, layer: Layer) -> None:
        if not isinstance(layer, Layer):
            raise ValueError(
                f"{type(self).__name__}: wants layers such as lm.layers.Dense(10), "
                f"got {type(layer).__name__} {str(layer)[:60]!r}"
            )
        spec = self.learner.spec
        if self.learner.built:
            raise ValueError(f"{type(self).__name__}: it is built already; layers are added before the first use")
        shape = spec.input_shape if spec.layers else layer.input_shape or spec.input_shape
        self.learner.spec = dataclasses.replace(spec, layers=(*spec.layers, layer), input_shape=shape)

    def _fit(
        self,
        dataset: Dataset,
        *,
        validation_split: float,
        validation_data: Any,
        checkpoint: Checkpoint | str | os.PathLike | None,
        resume: bool,
        **options: Any,
    ) -> History:
        validation = None
        if validation_data is not None:
            if isinstance(validation_data, Dataset):
                validation = validation_data
            elif isinstance(validation_data, tuple | list) and len(validation_data) in (2, 3):
                weights = validation_data[2] if len(validation_data) == 3 else None
                validation = self._dataset(validation_data[0], validation_data[1], "test", weights)
            else:
                raise ValueError(
                    f"fit: validation_data wants (x, y) or a Dataset, got {type(validation_data).__name__}"
                )
        elif validation_split:
            if not 0 < validation_split < 1:
                raise ValueError(f"fit: validation_split wants a share between 0 and 1, got {validation_split!r}")
            dataset, validation = dataset.tail(validation_split)
            _warn_of_one_class(dataset, validation)
        with keeping(checkpoint, resume, self._door()) as keeper:
            return self.learner.fit(dataset, validation=validation, model=self, keeper=keeper, **options)

    def _dataset(self, x: Any, y: Any, mode: str, sample_weight: Any = None) -> Dataset:
        if isinstance(x, Dataset):
            if y is not None or sample_weight is not None:
                raise ValueError("a Dataset brings its own labels and weights; pass it without y and sample_weight")
            return x
        return Dataset(x, y, mode=mode, weights=sample_weight)

    def _kept(self) -> dict[str, Any]:
        """What a file of the model holds besides, as JSON values."""
        return {}

    def _door(self) -> dict[str, Any]:
        raise NotImplementedError

    @classmethod
    def _from_door(cls, entries: Mapping[str, Any]) -> "Door":
        raise NotImplementedError


def _warn_of_one_class(train: Dataset, validation: Dataset) -> None:
    # The last rows of sorted data are all of one kind, and a validation of one class says little.
    if len(validation) < _ROWS_THAT_SHOULD_MIX or not validation.in_memory or not validation.has_labels:
        return
    last, first = validation.labels, train.labels
    if last is None or first is None or last.ndim != 1 or last.dtype.kind not in "iuOUS":
        return
    if len(set(last.tolist())) == 1 and len(set(first.tolist())) > 1:
        warnings.warn(
            f"fit: validation_split takes the last {len(validation)} rows, and all of them are of class {last[0]}; "
            "shuffle the data, or pass validation_data=, for instance from Dataset.split",
            stacklevel=4,
        )
