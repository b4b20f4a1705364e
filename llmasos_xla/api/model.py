"""The second front door: `Model(input_dim, output_dim)`, layer by layer, with data sets and an optimizer."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmasos_xla.api.door import Door
from llmasos_xla.api.recipe import Recipe, default_loss
from llmasos_xla.data.dataset import Dataset
from llmasos_xla.models.layers._base import make_layer
from llmasos_xla.models.spec import StackSpec
from llmasos_xla.models.stack import split_head
from llmasos_xla.training.callbacks import Callback
from llmasos_xla.training.checkpoint import Checkpoint
from llmasos_xla.training.history import History


class Model(Door):
    """A model to which layers are added by name.

    Args:
        input_dim: number of features of a sample, or its shape.
        output_dim: number of outputs; the last layer must have as many.
        seed: of the initial weights, the data's order and dropout; equal seeds give equal weights.

    >>> model = Model(input_dim=784, output_dim=10)
    >>> model.add_layer("Dense", 128, activation="relu")
    >>> model.add_layer("Dense", 10, activation="softmax")
    >>> model.variables.params["dense/kernel"].shape
    (784, 128)
    """

    def __init__(self, input_dim: int | Sequence[int], output_dim: int, *, seed: int = 0):
        sizes = [*input_dim, output_dim] if isinstance(input_dim, Sequence) else [input_dim, output_dim]
        if len(sizes) < 2 or not all(
            isinstance(n, int | np.integer) and not isinstance(n, bool) and n > 0 for n in sizes
        ):
            raise ValueError(
                f"Model: input_dim and output_dim want positive whole numbers, got {input_dim!r} and {output_dim!r}"
            )
        *shape, self.output_dim = map(int, sizes)
        self.input_dim = tuple(shape) if isinstance(input_dim, Sequence) else shape[0]
        super().__init__(StackSpec((), tuple(shape)), seed=seed)

    def add_layer(self, kind: str, *args: Any, **kwargs: Any) -> None:
        """Appends a layer by its name in `lm.layers`, with that layer's arguments."""
        self._append(make_layer(kind, *args, **kwargs))

    def train(
        self,
        dataset: Any,
        optimizer: Any = "adam",
        epochs: int = 1,
        batch_size: int | str = 32,
        *,
        loss: Any = None,
        metrics: Sequence[Any] | None = None,
        precision: str = "float32",
        validation_split: float = 0.0,
        validation_data: Any = None,
        callbacks: Sequence[Callback] | Callback = (),
        class_weight: Mapping[int, float] | None = None,
        verbose: int = 1,
        workers: int = 0,
        steps_per_dispatch: int | None = None,
        shard: Any = None,
        checkpoint: Checkpoint | str | os.PathLike | None = None,
        resume: bool = False,
    ) -> History:
        """Trains the model on a `Dataset` or a tuple (x, y).

        The loss and metrics default to what fits the last layer: cross-entropy and accuracy after a softmax or sigmoid,
        else mean squared error. The other arguments are those of `Sequential.fit`.
        """
        if not isinstance(dataset, Dataset):
            if not isinstance(dataset, tuple | list) or len(dataset) != 2:
                raise ValueError(f"Model.train: wants a Dataset or (x, y), got {type(dataset).__name__}")
            dataset = self._dataset(dataset[0], dataset[1], "train")
        self._check_output()
        if loss is None:
            loss, usual = default_loss(split_head(self.layers)[1], self._takes_classes(dataset))
            metrics = usual if metrics is None else metrics
        recipe = Recipe.of(optimizer, loss, metrics or (), precision)
        self.learner.compile(recipe)
        return self._fit(
            dataset,
            epochs=epochs,
            batch_size=batch_size,
            validation_split=validation_split,
            validation_data=validation_data,
            callbacks=callbacks,
            class_weight=class_weight,
            verbose=verbose,
            workers=workers,
            steps_per_dispatch=steps_per_dispatch,
            shard=shard,
            checkpoint=checkpoint,
            resume=resume,
        )

    def fit(self, x: Any, y: Any = None, **options: Any) -> History:
        """`train` with the data as `Sequential.fit` takes them: (x, y) or a `Dataset`."""
        return self.train(self._dataset(x, y, "train", options.pop("sample_weight", None)), **options)

    def _takes_classes(self, dataset: Dataset) -> bool:
        """Whether labels name a class each rather than being shaped as the outputs."""
        labels, shape = dataset.labels, self.learner.spec.output_shape()
        # A softmax of one output has no shares: its labels are taken for classes, of which there are too many.
        return labels is not None and (shape[-1] == 1 or math.prod(labels.shape[1:]) < math.prod(n or 1 for n in shape))

    def _check_output(self) -> None:
        shape = self.learner.spec.output_shape()
        if shape[-1] != self.output_dim:
            raise ValueError(
                f"Model: output_dim is {self.output_dim}, but the last layer gives {shape[-1]}; change one of the two"
            )

    def _door(self) -> dict[str, Any]:
        return {"door": "Model", "input_dim": self.input_dim, "output_dim": self.output_dim}

    @classmethod
    def _from_door(cls, entries: Mapping[str, Any]) -> "Model":
        return cls(entries["input_dim"], entries["output_dim"])
