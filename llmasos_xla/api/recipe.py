"""How a model is trained: optimizer, loss, metrics and precision, as `compile` takes them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import optax

from llmasos_xla.training.losses import Loss, loss_by_name
from llmasos_xla.training.metrics import Metric, metric_by_name
from llmasos_xla.training.optimizers import Optimizer, optimizer_by_name, with_standard_promotion
from llmasos_xla.training.step import precision_by_name


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Optimizer, loss, metrics and precision."""

    optimizer: Optimizer | optax.GradientTransformation
    loss: Loss
    metrics: tuple[Metric, ...]
    precision: str = "float32"

    @classmethod
    def of(cls, optimizer: Any, loss: Any, metrics: Sequence[Any] = (), precision: str = "float32") -> "Recipe":
        """From names or objects; unknown names raise ValueError with the known ones."""
        found = loss_by_name(loss)
        if isinstance(metrics, str):
            metrics = (metrics,)
        named = tuple(metric_by_name(m, found) for m in metrics or ())
        names = [m.name for m in named]
        if len(set(names)) < len(names) or "loss" in names:
            raise ValueError(f"compile: each metric needs a name of its own, other than 'loss', got {', '.join(names)}")
        return cls(optimizer_by_name(optimizer), found, named, precision_by_name(precision))

    def transformation(self, stacked: Sequence[str] = ()) -> optax.GradientTransformation:
        """The optax transformation; `stacked` are beginnings of the names of arrays whose first axis counts layers."""
        if isinstance(self.optimizer, Optimizer):
            return self.optimizer.build(stacked)
        return with_standard_promotion(self.optimizer)

    @property
    def ema(self) -> float | None:
        """Momentum of the weights' average, or None."""
        return self.optimizer.ema if isinstance(self.optimizer, Optimizer) else None

    def same_optimizer(self, other: "Recipe | None") -> bool:
        """Whether the other's optimizer state can be gone on with."""
        if other is None:
            return False
        mine, theirs = self.optimizer, other.optimizer
        if isinstance(mine, Optimizer) and isinstance(theirs, Optimizer):
            return mine.name == theirs.name and repr(mine) == repr(theirs)
        return mine is theirs

    def to_json(self) -> dict[str, Any] | None:
        """The recipe as JSON values; None if it holds functions of the user's own, which no file can carry."""
        if not _named(self.loss) or not isinstance(self.optimizer, Optimizer):
            return None
        if not all(map(self._by_name, self.metrics)):
            return None
        try:
            optimizer = self.optimizer.to_json()
        except ValueError:
            return None
        metrics = [m.name for m in self.metrics]
        return {"optimizer": optimizer, "loss": self.loss.name, "metrics": metrics, "precision": self.precision}

    @classmethod
    def from_json(cls, config: Any) -> "Recipe":
        """The inverse of `to_json`."""
        try:
            optimizer = Optimizer.from_json(config["optimizer"])
            return cls.of(optimizer, config["loss"], config["metrics"], config["precision"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"load: the training recipe is damaged: {error!r}") from error

    def _by_name(self, metric: Metric) -> bool:
        """Whether the metric's name stands for all of it."""
        try:
            return metric_by_name(metric.name, self.loss) == metric
        except ValueError:
            return False


def _named(loss: Loss) -> bool:
    """Whether the loss's name stands for all of it."""
    try:
        return loss_by_name(loss.name) == loss
    except ValueError:
        return False


def default_loss(head: str | None, classes: bool) -> tuple[str, tuple[str, ...]]:
    """The loss and metrics of a model that named none: from its last activation, and whether labels are classes."""
    if head == "softmax":
        return ("sparse_categorical_crossentropy" if classes else "categorical_crossentropy"), ("accuracy",)
    if head == "sigmoid":
        return "binary_crossentropy", ("accuracy",)
    return "mean_squared_error", ("mean_absolute_error",)
