"""Compiling and fitting as Keras has them, for the doors whose network is known from the start."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from llmasos_xla.api.recipe import Recipe
from llmasos_xla.api.tuned import Tuned
from llmasos_xla.training.callbacks import Callback
from llmasos_xla.training.checkpoint import Checkpoint
from llmasos_xla.training.history import History


class Fitted(Tuned):
    """Base of `Sequential` and `Network`; never built itself."""

    def compile(
        self,
        optimizer: Any = "adam",
        loss: Any = "sparse_categorical_crossentropy",
        metrics: Sequence[Any] = (),
        *,
        precision: str = "float32",
    ) -> None:
        """Says how the model is trained.

        Args:
            optimizer: a name, an `Optimizer` or an optax transformation.
            loss: a name, or a function (outputs, y) -> [batch].
            metrics: names, or functions (outputs, y) -> [batch].
            precision: "float32", or "bfloat16" for bfloat16 arithmetic on float32 weights.

        Raises ValueError for unknown names, listing the known ones.
        """
        self.learner.compile(Recipe.of(optimizer, loss, metrics, precision))

    def fit(
        self,
        x: Any,
        y: Any = None,
        *,
        epochs: int = 1,
        batch_size: int | str = 32,
        validation_split: float = 0.0,
        validation_data: Any = None,
        callbacks: Sequence[Callback] | Callback = (),
        class_weight: Mapping[int, float] | None = None,
        sample_weight: Any = None,
        verbose: int = 1,
        workers: int = 0,
        steps_per_dispatch: int | None = None,
        shard: Any = None,
        checkpoint: Checkpoint | str | os.PathLike | None = None,
        resume: bool = False,
    ) -> History:
        """Trains the model.

        Args:
            x: inputs [rows, ...], or a `Dataset` (then without y).
            y: labels [rows, ...].
            epochs: passes over the data.
            batch_size: rows an update, over all devices; "auto" is the largest that the plan says fits.
            validation_split: share of the rows, taken from the end, that is kept for validation.
            validation_data: (x, y) or a `Dataset`, evaluated after each epoch.
            callbacks: functions of a `training.Event`, or one; "stop" ends the fit.
            class_weight: class id -> weight of its loss.
            sample_weight: weight of each row's loss [rows].
            verbose: 0 quiet, 1 progress.
            workers: processes that decode data; 0 uses threads.
            steps_per_dispatch: updates in one call of the compiled program; chosen from its work if None.
            shard: how to spread the model and the batch over all devices: "data", "fsdp", "tensor", "seq", "pipe",
                "expert", a `MeshSpec` of several, or "auto" for what the plan says is fastest; None leaves the model
                where it is, and is "auto" in several processes.
            checkpoint: a folder that the fit saves itself in, or a `Checkpoint` that says when and what is kept.
            resume: go on with the fit in that folder, if it holds one; False refuses a folder that does.

        Returns the `History`. Interrupted by Ctrl-C, the weights stay, and the same call goes on. With `checkpoint`,
        SIGTERM saves the fit after the dispatch under way and ends the process with status 75.
        """
        return self._fit(
            self._dataset(x, y, "train", sample_weight),
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

    train = fit
