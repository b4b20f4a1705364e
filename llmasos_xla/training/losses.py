"""Losses by the names Keras and optax give them; each maps a batch to one number a sample.

Cross-entropies read logits: a model's last softmax or sigmoid is taken off for training (`models.stack.split_head`).
A class id of -100 (`IGNORED`) is no label: `sparse_categorical_crossentropy` is the mean over the labelled steps of a
sample, so that samples weigh alike however many of their steps have labels; a sample without any has a loss of 0, as
one of weight 0 has. Give `sample_weight` in proportion to the labelled steps where steps are to weigh alike.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llmasos_xla.data.labels import IGNORED as IGNORED
from llmasos_xla.data.labels import outside
from llmasos_xla.errors import unknown
from llmasos_xla.training.detection import check_boxes, detection_loss

Function = Callable[[Any, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss function and what it reads.

    Attributes:
        name: its name.
        function: (predictions, targets) -> one loss a sample [batch], or a scalar.
        reads: "logits", before the model's last softmax or sigmoid, or "outputs", after it.
        targets: "class" for integer class ids, "labels" for rows of them padded with 0, "like" for arrays shaped as the
            output, "share" for such arrays of values from 0 to 1, "boxes" for rows of (class, box), "any" for what the
            function takes.
        head: the activation that makes probabilities of the logits which a loss reads, "softmax" or "sigmoid".
    """

    name: str
    function: Function
    reads: str = "outputs"
    targets: str = "like"
    head: str | None = None

    def __call__(self, logits: Any, outputs: Any, y: jax.Array) -> jax.Array:
        """The loss of each sample, [batch], in float32."""
        predictions = jax.tree.map(lambda a: a.astype(jnp.float32), logits if self.reads == "logits" else outputs)
        values = self.function(predictions, y)
        if values.ndim and values.shape[0] != y.shape[0]:
            raise ValueError(
                f"loss {self.name!r} gave shape {values.shape} for a batch of {y.shape[0]} rows; one value a row is "
                "wanted, (outputs, y) -> [batch, ...], or a single number"
            )
        return (
            values.reshape(values.shape[0], -1).mean(axis=1) if values.ndim else jnp.broadcast_to(values, y.shape[:1])
        )


def logits_for(loss: Loss, head: str | None, logits: Any, outputs: Any) -> Any:
    """The logits that `loss` is to read of a model that ends in `head`.

    A softmax's logits are none of a sigmoid. Where a model ends in the other of the two, its outputs are taken as the
    probabilities, cut to [1e-7, 1 - 1e-7] and for a softmax divided by their sum, as Keras does.
    """
    if head is None or loss.head in (None, head):
        return logits
    p = jnp.clip(outputs, 1e-7, 1.0 - 1e-7)
    return jnp.log(p) if loss.head == "softmax" else jnp.log(p) - jnp.log1p(-p)


def _sparse_cross_entropy(logits: jax.Array, y: jax.Array, smoothing: float = 0.0) -> jax.Array:
    if y.size * logits.shape[-1] != logits.size:
        raise ValueError(
            f"sparse_categorical_crossentropy: labels have shape {y.shape}, the outputs {logits.shape}; one label for "
            "each vector of outputs is wanted"
        )
    y = y.reshape(logits.shape[:-1])
    labels = jnp.where(y == IGNORED, 0, y)
    values = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if smoothing:
        # The labels' share is spread evenly: the mean of -log p over classes is its cross-entropy.
        even = jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)
        values = (1.0 - smoothing) * values + smoothing * even
    return over_labelled(values, y)


def over_labelled(values: jax.Array, y: jax.Array) -> jax.Array:
    """The mean of the values [batch, ...] over the labelled steps of each sample, [batch]; 0 where there are none.

    `y` [batch, ...] are class ids, `IGNORED` where there is no label.

    >>> over_labelled(jnp.array([[1.0, 5.0], [2.0, 4.0]]), jnp.array([[7, IGNORED], [7, 7]])).tolist()
    [1.0, 3.0]
    """
    labelled = (y != IGNORED).reshape(y.shape[0], -1)
    values = jnp.where(labelled, values.reshape(labelled.shape), 0)
    return values.sum(axis=1) / jnp.maximum(labelled.sum(axis=1), 1).astype(values.dtype)


def _kl_divergence(p: jax.Array, y: jax.Array) -> jax.Array:
    y, p = jnp.clip(y, 1e-7, 1.0), jnp.clip(p, 1e-7, 1.0)
    return jnp.sum(y * jnp.log(y / p), axis=-1)


def _binary_focal(logits: jax.Array, y: jax.Array) -> jax.Array:
    return optax.sigmoid_focal_loss(logits, y, gamma=2.0)


def _dice(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Cross-entropy plus 1 - the Dice coefficient of each sample's probabilities (Milletari et al. 2016), [batch].

    The 1 in both parts keeps a sample without anything to be found differentiable, and right where nothing is said.
    """
    y = _same(logits, y)
    axes = tuple(range(1, y.ndim))
    p = jax.nn.sigmoid(logits)
    dice = (2.0 * jnp.sum(p * y, axes) + 1.0) / (jnp.sum(p, axes) + jnp.sum(y, axes) + 1.0)
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, y), axes) + 1.0 - dice


def _ctc(logits: jax.Array, y: jax.Array) -> jax.Array:
    if y.ndim != 2 or logits.ndim != 3:
        raise ValueError(
            f"ctc: labels [batch, n] padded with 0, the blank's id, are wanted for logits [batch, steps, vocab], got "
            f"{y.shape} for {logits.shape}"
        )
    # Steps of padding need no mask: models give them a blank that is certain, which costs nothing.
    return optax.ctc_loss(logits, jnp.zeros(logits.shape[:2]), y, (y == 0).astype(jnp.float32))


def _signs(y: jax.Array) -> jax.Array:
    # Hinge losses want -1 and 1; labels of 0 and 1 are converted, as Keras does.
    return jnp.where(y <= 0.0, -1.0, 1.0)


def _same(p: jax.Array, y: jax.Array) -> jax.Array:
    return y.astype(p.dtype).reshape(p.shape)


def _regression(function: Function) -> Function:
    return lambda p, y: function(p, _same(p, y))


def _smooth_categorical(logits: jax.Array, y: jax.Array, smoothing: float) -> jax.Array:
    y = y * (1.0 - smoothing) + smoothing / logits.shape[-1]
    return optax.softmax_cross_entropy(logits, y)


def _smooth_binary(logits: jax.Array, y: jax.Array, smoothing: float) -> jax.Array:
    return optax.sigmoid_binary_cross_entropy(logits, y * (1.0 - smoothing) + smoothing / 2.0)


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss("sparse_categorical_crossentropy", _sparse_cross_entropy, "logits", "class", "softmax"),
        Loss("categorical_crossentropy", _regression(optax.softmax_cross_entropy), "logits", "share", "softmax"),
        Loss("binary_crossentropy", _regression(optax.sigmoid_binary_cross_entropy), "logits", "share", "sigmoid"),
        Loss("binary_focal_crossentropy", _regression(_binary_focal), "logits", "share", "sigmoid"),
        Loss("dice_crossentropy", _dice, "logits", "share", "sigmoid"),
        Loss("mean_squared_error", _regression(lambda p, y: jnp.square(p - y))),
        Loss("mean_absolute_error", _regression(lambda p, y: jnp.abs(p - y))),
        Loss(
            "mean_absolute_percentage_error",
            _regression(lambda p, y: 100.0 * jnp.abs((y - p) / jnp.maximum(jnp.abs(y), 1e-7))),
        ),
        Loss(
            "mean_squared_logarithmic_error",
            _regression(lambda p, y: jnp.square(jnp.log1p(jnp.maximum(p, 0.0)) - jnp.log1p(jnp.maximum(y, 0.0)))),
        ),
        Loss("huber", _regression(optax.huber_loss)),
        Loss("log_cosh", _regression(optax.log_cosh)),
        Loss("hinge", _regression(lambda p, y: jnp.maximum(1.0 - _signs(y) * p, 0.0))),
        Loss("squared_hinge", _regression(lambda p, y: jnp.square(jnp.maximum(1.0 - _signs(y) * p, 0.0)))),
        Loss("poisson", _regression(lambda p, y: p - y * jnp.log(p + 1e-7))),
        Loss("kl_divergence", _regression(_kl_divergence)),
        Loss("ctc", _ctc, "logits", "labels", "softmax"),
        Loss("detection", detection_loss, "logits", "boxes", "sigmoid"),
        Loss("cosine_similarity", _regression(lambda p, y: -optax.cosine_similarity(p, y, epsilon=1e-7))),
    )
}

ALIASES = {
    "mse": "mean_squared_error",
    "mae": "mean_absolute_error",
    "mape": "mean_absolute_percentage_error",
    "msle": "mean_squared_logarithmic_error",
    "bce": "binary_crossentropy",
    "logcosh": "log_cosh",
    "kld": "kl_divergence",
    "kullback_leibler_divergence": "kl_divergence",
    "huber_loss": "huber",
    "softmax_cross_entropy_with_integer_labels": "sparse_categorical_crossentropy",
    "softmax_cross_entropy": "categorical_crossentropy",
    "sigmoid_binary_cross_entropy": "binary_crossentropy",
    "squared_error": "mean_squared_error",
}


def smoothed(loss: str | Loss = "sparse_categorical_crossentropy", share: float | int = 0.1) -> Loss:
    """The cross-entropy with smoothed labels (Szegedy et al. 2016): `share` of each label is spread over all classes.

    Its name says so, and `compile` takes that name as well: "sparse_categorical_crossentropy(label_smoothing=0.1)".

    Raises ValueError for a loss that is none of the three cross-entropies, and unless 0 <= share < 1.

    >>> smoothed("categorical_crossentropy", 0.2).name
    'categorical_crossentropy(label_smoothing=0.2)'
    """
    found = loss_by_name(loss)
    if found not in (LOSSES[name] for name in _SMOOTH):
        raise ValueError(f"smoothed: {found.name!r} has no label smoothing; {', '.join(_SMOOTH)} have")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
        raise ValueError(f"smoothed: a share of the labels is wanted, 0 <= share < 1, got {share!r}")
    return _smoothed(found.name, float(share)) if share else found


@functools.cache
def _smoothed(name: str, share: float) -> Loss:
    # Cached: the loss of a name is one object, whoever asks.
    return dataclasses.replace(
        LOSSES[name],
        name=f"{name}(label_smoothing={share!r})",
        function=functools.partial(_SMOOTH[name], smoothing=share),
    )


_SMOOTH: dict[str, Callable[..., jax.Array]] = {
    "sparse_categorical_crossentropy": _sparse_cross_entropy,
    "categorical_crossentropy": lambda p, y, smoothing: _smooth_categorical(p, _same(p, y), smoothing),
    "binary_crossentropy": lambda p, y, smoothing: _smooth_binary(p, _same(p, y), smoothing),
}
_SMOOTHED_NAME = re.compile(r"(.+)\(label_smoothing=([0-9.e+-]+)\)")


def loss_by_name(loss: str | Loss | Function) -> Loss:
    """The loss of that name, Keras' or optax's spelling, any case; a function `(outputs, y) -> [batch]` is wrapped.

    A cross-entropy may be called with "(label_smoothing=0.1)" behind its name; see `smoothed`.

    >>> loss_by_name("MSE").name
    'mean_squared_error'
    """
    if isinstance(loss, Loss):
        return loss
    if callable(loss):
        return Loss(getattr(loss, "__name__", "loss"), loss, targets="any")
    if isinstance(loss, str) and (match := _SMOOTHED_NAME.fullmatch(loss)):
        return smoothed(match[1], _share(match[2], loss))
    name = spelled(loss, {**LOSSES, **ALIASES})
    if name is None:
        raise unknown("compile", "loss", loss, {*LOSSES, *ALIASES})
    return LOSSES[ALIASES.get(name, name)]


def _share(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"compile: the loss {name[:80]!r} has no number behind label_smoothing=") from None


def check_targets(loss: Loss, y: np.ndarray, output_shape: tuple, label_names: tuple[str, ...] | None = None) -> None:
    """Raises ValueError if targets `y` cannot be compared with outputs of `output_shape` (without the batch axis)."""
    if loss.targets == "any":
        return
    if loss.targets == "boxes":
        check_boxes(y, output_shape)
        return
    if loss.targets == "labels":
        _check_labels(loss.name, y, output_shape)
        return
    if loss.targets == "class":
        classes = output_shape[-1]
        if not np.issubdtype(y.dtype, np.integer):
            whole = _one_each(y, output_shape) and np.all(y == np.floor(y))
            hint = (
                "; cast them with y.astype('int32') (of a table: name its label column in categories=)"
                if whole
                else "; one-hot targets go with categorical_crossentropy"
            )
            raise ValueError(f"{loss.name}: wants integer class labels, got {y.dtype} of shape {y.shape}{hint}")
        if not _one_each(y, output_shape):
            raise ValueError(
                f"{loss.name}: labels have shape {y.shape}, wanted {('batch', *output_shape[:-1])} for outputs "
                f"{('batch', *output_shape)}; one-hot labels go with categorical_crossentropy"
            )
        if np.any(wrong := outside(y, classes)):
            bad = np.argwhere(wrong)[0]
            raise ValueError(
                f"{loss.name}: label {y[tuple(bad)]} of row {bad[0]} is out of range: the model has {classes} outputs, "
                f"so labels go from 0 to {classes - 1}; make the last layer larger or renumber the labels"
                + (f"; {IGNORED} is what stands for no label" if y[tuple(bad)] < 0 else "")
            )
        if y.size and np.all(y == IGNORED):
            raise ValueError(f"{loss.name}: all labels are {IGNORED}, which stands for no label")
        return
    if loss.targets == "like" and len(label_names or ()) > 2:
        names = label_names or ()
        raise ValueError(
            f"{loss.name}: the labels are names of {len(names)} classes ({', '.join(map(repr, names[:4]))}"
            f"{', ...' if len(names) > 4 else ''}); how far apart their numbers are says nothing: end in "
            f"Dense({len(names)}, activation='softmax') with sparse_categorical_crossentropy; numbers that came as "
            "text are to be made numbers first"
        )
    wanted = (len(y), *output_shape)
    if None not in output_shape and int(np.prod(y.shape)) != int(np.prod(wanted)):
        hint = "; integer class labels go with sparse_categorical_crossentropy" if y.ndim < len(wanted) else ""
        raise ValueError(f"{loss.name}: targets have shape {y.shape}, the model's outputs {wanted}{hint}")
    if loss.targets == "share" and y.size and (y.min() < 0 or y.max() > 1):
        raise ValueError(
            f"{loss.name}: labels run from {y.min()} to {y.max()}, wanted 0 to 1: renumber two classes, as in "
            f"y == {y.max()} (of a table: name its label column in categories=); more than two go with a softmax and "
            "sparse_categorical_crossentropy"
        )


def _check_labels(name: str, y: np.ndarray, output_shape: tuple) -> None:
    """Refuses rows of labels that are not ids, that padding stands in, or that no output of that many steps spells."""
    if not np.issubdtype(y.dtype, np.integer) or y.ndim != 2:
        raise ValueError(f"{name}: wants integer labels [rows, n] padded with 0, got {y.dtype} of shape {y.shape}")
    steps, vocab = output_shape[-2:]
    if y.size and (y.min() < 0 or y.max() >= vocab):
        bad = np.argwhere((y < 0) | (y >= vocab))[0]
        raise ValueError(
            f"{name}: label {y[tuple(bad)]} of row {bad[0]} is out of range: the model has {vocab} outputs, so labels "
            f"go from 1 to {vocab - 1}, 0 being padding"
        )
    real = y != 0
    if np.any(real[:, 1:] & ~real[:, :-1]):
        row = np.argwhere(real[:, 1:] & ~real[:, :-1])[0][0]
        raise ValueError(f"{name}: row {row} has a 0 before a label; 0 is padding, which stands at the end")
    # A blank must stand between equal neighbors.
    needed = real.sum(axis=1) + (real[:, 1:] & (y[:, 1:] == y[:, :-1])).sum(axis=1)
    if steps is not None and y.size and needed.max() > steps:
        raise ValueError(
            f"{name}: the labels of row {needed.argmax()} need {needed.max()} steps of output, the model gives {steps}"
        )


def _one_each(y: np.ndarray, output_shape: tuple) -> bool:
    """Whether there is one label for each vector of outputs; an axis of any length, None, takes them all."""
    wanted = output_shape[:-1]
    labels = y.shape[1:-1] if y.ndim == len(wanted) + 2 and y.shape[-1] == 1 else y.shape[1:]
    return len(labels) == len(wanted) and all(n in (None, m) for n, m in zip(wanted, labels))


def spelled(name: object, known: Iterable[str]) -> str | None:
    """The one of `known` that `name` is but for case, "_", "-" and spaces; None if there is none.

    >>> spelled("AdamW", ["adam", "adamw"]), spelled("Mean squared-error", ["mse", "mean_squared_error"])
    ('adamw', 'mean_squared_error')
    """
    return next((k for k in known if _plain(k) == _plain(name)), None) if isinstance(name, str) else None


def _plain(name: str) -> str:
    return name.translate({ord(sign): None for sign in "_- "}).lower()


def known_losses() -> list[Any]:
    """Every name that `loss_by_name` takes."""
    return sorted({*LOSSES, *ALIASES})
