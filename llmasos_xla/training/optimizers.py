"""Optimizers and schedules by the names optax and Keras give them, as specifications that can be saved."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llmasos_xla.errors import unknown
from llmasos_xla.training.losses import spelled
from llmasos_xla.training.tuning import check_pattern, scaled_by_name

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adabelief": optax.adabelief,
    "adadelta": optax.adadelta,
    "adafactor": optax.adafactor,
    "adagrad": optax.adagrad,
    "adam": optax.adam,
    "adamax": optax.adamax,
    "adamw": optax.adamw,
    "amsgrad": optax.amsgrad,
    "lamb": optax.lamb,
    "lars": optax.lars,
    "lion": optax.lion,
    "nadam": optax.nadam,
    "nadamw": optax.nadamw,
    "novograd": optax.novograd,
    "radam": optax.radam,
    "rmsprop": optax.rmsprop,
    "sgd": optax.sgd,
    "sm3": optax.sm3,
    "yogi": optax.yogi,
}

SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "constant": optax.constant_schedule,
    "cosine_decay": optax.cosine_decay_schedule,
    "exponential_decay": optax.exponential_decay,
    "linear": optax.linear_schedule,
    "polynomial": optax.polynomial_schedule,
    "piecewise_constant": optax.piecewise_constant_schedule,
    "warmup_constant": optax.warmup_constant_schedule,
    "warmup_cosine_decay": optax.warmup_cosine_decay_schedule,
    "warmup_exponential_decay": optax.warmup_exponential_decay_schedule,
    "cosine_onecycle": optax.cosine_onecycle_schedule,
}

# Keras' spelling of optax's arguments, and Keras' defaults where the two differ.
_ARGUMENTS = {"beta_1": "b1", "beta_2": "b2", "epsilon": "eps", "rho": "decay"}
_KERAS_DEFAULTS: dict[str, dict[str, float]] = {
    "adam": {"learning_rate": 0.001, "eps": 1e-7},
    "adamw": {"learning_rate": 0.001, "eps": 1e-7, "weight_decay": 0.004},
    "adamax": {"learning_rate": 0.001, "eps": 1e-7},
    "nadam": {"learning_rate": 0.001, "eps": 1e-7},
    "sgd": {"learning_rate": 0.01},
    "rmsprop": {"learning_rate": 0.001, "eps": 1e-7},
    "adagrad": {"learning_rate": 0.001, "eps": 1e-7},
    "adadelta": {"learning_rate": 0.001, "rho": 0.95, "eps": 1e-7},
    "lion": {"learning_rate": 0.001},
}
_OWN = ("clip_norm", "clip_value", "accumulate", "ema", "decay_exclude", "rates", "layer_decay")
_OWN_ALIASES = {
    "lr": "learning_rate",
    "global_clipnorm": "clip_norm",
    "clipvalue": "clip_value",
    "gradient_accumulation_steps": "accumulate",
    "ema_momentum": "ema",
}


class Schedule:
    """A learning rate that changes with the step, by optax's name of it and optax's arguments.

    >>> schedule = Schedule("warmup_cosine_decay", init_value=0.0, peak_value=1e-3, warmup_steps=10, decay_steps=100)
    >>> round(float(schedule(10)), 6)
    0.001
    """

    def __init__(self, name: str, **arguments: Any):
        found = spelled(re.sub("_?schedule$", "", str(name), flags=re.IGNORECASE), SCHEDULES)
        if found is None:
            raise unknown("Schedule", "schedule", name, SCHEDULES)
        self.name = found
        if self.name == "piecewise_constant" and arguments.get("boundaries_and_scales"):
            # JSON has no integer keys.
            arguments["boundaries_and_scales"] = {int(k): v for k, v in arguments["boundaries_and_scales"].items()}
        self.arguments = arguments
        try:
            self._schedule = SCHEDULES[self.name](**arguments)
        except TypeError as error:
            raise ValueError(f"Schedule {self.name!r}: {error}; it takes {_signature(SCHEDULES[self.name])}") from error

    def __call__(self, step: jax.typing.ArrayLike) -> jax.Array:
        """The learning rate at that step."""
        with jax.numpy_dtype_promotion("standard"):
            return jnp.asarray(self._schedule(step), jnp.float32)

    def __repr__(self) -> str:
        return f"Schedule({self.name!r}, {', '.join(f'{k}={v!r}' for k, v in self.arguments.items())})"


class Optimizer:
    """An optimizer by its optax or Keras name, any case, with optax's or Keras' argument names.

    Args:
        name: "adam", "SGD", ...; `OPTIMIZERS` lists them.
        learning_rate: a number, a `Schedule` or a function step -> rate. Default: Keras' default of the optimizer.
        clip_norm: gradients are scaled down together to this global norm (Keras: global_clipnorm).
        clip_value: each gradient is cut to [-clip_value, clip_value] (Keras: clipvalue).
        weight_decay: decoupled decay (Loshchilov and Hutter 2019), for every optimizer.
        decay_exclude: names matching this regular expression are not decayed, for instance "bias|scale".
        accumulate: gradients of so many steps are averaged before one update.
        rates: {regular expression: factor} for the updates of arrays whose names match; of several the first counts.
        layer_decay: a layer's updates are `layer_decay ** n` times as large where n layers stand behind it.
        ema: a running average of the weights with this momentum is kept beside them, and evaluation uses it.
        **arguments: the optimizer's own, "b1" or "beta_1", "momentum", "nesterov", ...

    Raises ValueError for unknown names, listing the known ones.

    >>> Optimizer("Adam", lr=0.001)
    Optimizer('adam', learning_rate=0.001, eps=1e-07)
    """

    def __init__(self, name: str = "adam", learning_rate: Any = None, **arguments: Any):
        found = spelled(name, OPTIMIZERS)
        if found is None:
            raise unknown("Optimizer", "optimizer", name, OPTIMIZERS)
        self.name = found
        arguments = {_OWN_ALIASES.get(k, k): v for k, v in arguments.items()}
        if learning_rate is not None:
            arguments["learning_rate"] = learning_rate
        own_names = inspect.signature(OPTIMIZERS[self.name]).parameters
        # A number of NumPy's or JAX's has no JSON form and prints as more than a number.
        arguments = {
            _ARGUMENTS.get(k, k) if k not in own_names else k: v.item() if getattr(v, "ndim", None) == 0 else v
            for k, v in arguments.items()
        }
        known = {*own_names, *_OWN, "weight_decay"} - {"mask"}
        for key in arguments:
            if key not in known:
                raise unknown(f"Optimizer {self.name!r}", "argument", key, {*known, "lr"})
        defaults = {"learning_rate": 0.001, **_KERAS_DEFAULTS.get(self.name, {})}
        self.arguments = {**defaults, **arguments}
        _check_numbers(self.name, self.arguments)

    @property
    def ema(self) -> float | None:
        """Momentum of the weights' running average; None without one."""
        return self.arguments.get("ema")

    def build(self, stacked: Sequence[str] = ()) -> optax.GradientTransformation:
        """The optax transformation; `stacked` are beginnings of the names of arrays whose first axis counts layers."""
        own = {k: self.arguments[k] for k in _OWN if k in self.arguments}
        arguments = {k: v for k, v in self.arguments.items() if k not in _OWN}
        chain = []
        if own.get("clip_value"):
            chain.append(optax.clip(own["clip_value"]))
        if own.get("clip_norm"):
            chain.append(optax.clip_by_global_norm(own["clip_norm"]))
        factory = OPTIMIZERS[self.name]
        takes = inspect.signature(factory).parameters
        mask = _decay_mask(own.get("decay_exclude"))
        if "mask" in takes:
            arguments["mask"] = mask
        elif "weight_decay" in arguments and "weight_decay" not in takes:
            decay, rate = arguments.pop("weight_decay"), arguments["learning_rate"]
            chain += [factory(**arguments), _decoupled_decay(decay, rate, mask)]
            arguments = None
        if arguments is not None:
            chain.append(factory(**arguments))
        if own.get("rates") or own.get("layer_decay") is not None:
            chain.append(scaled_by_name(own.get("rates") or {}, own.get("layer_decay"), stacked))
        transformation = chain[0] if len(chain) == 1 else optax.chain(*chain)
        steps = own.get("accumulate") or 1
        if steps > 1:
            transformation = optax.MultiSteps(transformation, steps).gradient_transformation()
        return with_standard_promotion(transformation)

    def to_json(self) -> dict[str, Any]:
        """The specification as JSON values; raises ValueError if the learning rate is a bare function."""
        out = {}
        for key, value in self.arguments.items():
            if isinstance(value, Schedule):
                value = {"schedule": value.name, **value.arguments}
            elif callable(value):
                raise ValueError(
                    f"Optimizer {self.name!r}: {key} is a function and cannot be saved; use Schedule(name, ...)"
                )
            out[key] = value
        return {"name": self.name, **out}

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "Optimizer":
        """The inverse of `to_json`."""
        arguments = {k: v for k, v in config.items() if k != "name"}
        for key, value in arguments.items():
            if isinstance(value, Mapping) and "schedule" in value:
                arguments[key] = Schedule(value["schedule"], **{k: v for k, v in value.items() if k != "schedule"})
        return cls(config["name"], **arguments)

    def __repr__(self) -> str:
        return f"Optimizer({self.name!r}, {', '.join(f'{k}={v!r}' for k, v in self.arguments.items())})"


def optimizer_by_name(optimizer: "str | Optimizer | optax.GradientTransformation") -> Any:
    """A name or an `Optimizer` as an `Optimizer`; an optax transformation stays what it is."""
    if isinstance(optimizer, Optimizer | optax.GradientTransformation):
        return optimizer
    if isinstance(optimizer, str):
        return Optimizer(optimizer)
    raise ValueError(
        "compile: optimizer wants a name, an Optimizer or an optax.GradientTransformation, "
        f"got {type(optimizer).__name__}"
    )


def with_standard_promotion(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """The transformation under JAX's standard dtype promotion, which optax relies on, whatever the process has set."""

    def init(params: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return transformation.init(params)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return transformation.update(updates, state, params)

    return optax.GradientTransformation(init, update)


def _decay_mask(exclude: str | None) -> Callable[[dict], dict] | None:
    if exclude is None:
        return None
    pattern = re.compile(exclude)
    return lambda params: {name: pattern.search(name) is None for name in params}


def _decoupled_decay(decay: float, rate: Any, mask: Any) -> optax.GradientTransformation:
    scale = optax.scale_by_learning_rate(rate)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        decayed, state = inner.update(jax.tree.map(jnp.zeros_like, updates), state, params)
        return jax.tree.map(jnp.add, updates, decayed), state

    inner = optax.chain(optax.add_decayed_weights(decay, mask), scale)
    return optax.GradientTransformation(inner.init, update)


def _check_numbers(name: str, arguments: Mapping[str, Any]) -> None:
    rate = arguments["learning_rate"]
    if not callable(rate) and not (_is_number(rate) and 0 <= rate < float("inf")):
        raise ValueError(f"Optimizer {name!r}: learning_rate wants a number >= 0 or a Schedule, got {rate!r}")
    for key in ("b1", "b2", "decay", "momentum", "weight_decay", "eps"):
        value, least, most = arguments.get(key), 0, float("inf") if key in ("weight_decay", "eps") else 1
        if value is not None and not (_is_number(value) and least <= value <= most):
            raise ValueError(f"Optimizer {name!r}: {key} wants a number from {least} to {most}, got {value!r}")
    try:
        re.compile(arguments.get("decay_exclude") or "")
    except (re.error, TypeError) as error:
        raise ValueError(
            f"Optimizer {name!r}: decay_exclude wants a regular expression such as 'bias|scale', got "
            f"{arguments['decay_exclude']!r}: {error}"
        ) from None
    rates = arguments.get("rates")
    if rates is not None and not (
        isinstance(rates, Mapping) and all(isinstance(p, str) and _is_number(f) and f >= 0 for p, f in rates.items())
    ):
        raise ValueError(
            f"Optimizer {name!r}: rates wants {{regular expression: factor >= 0}}, {{'embeddings': 0.1}} for one, "
            f"got {rates!r}"
        )
    for pattern in rates or ():
        check_pattern(f"Optimizer {name!r}", "rates", pattern)
    layer_decay = arguments.get("layer_decay")
    if layer_decay is not None and not (_is_number(layer_decay) and 0 < layer_decay <= 1):
        raise ValueError(f"Optimizer {name!r}: layer_decay wants a factor above 0 and up to 1, got {layer_decay!r}")
    accumulate = arguments.get("accumulate")
    if accumulate is not None and (not isinstance(accumulate, int) or accumulate < 1):
        raise ValueError(f"Optimizer {name!r}: accumulate wants a whole number of steps >= 1, got {accumulate!r}")
    ema = arguments.get("ema")
    if ema is not None and not (_is_number(ema) and 0 < ema < 1):
        raise ValueError(f"Optimizer {name!r}: ema wants a momentum between 0 and 1, got {ema!r}")
    for key in ("clip_norm", "clip_value"):
        if arguments.get(key) is not None and not (_is_number(arguments[key]) and arguments[key] > 0):
            raise ValueError(f"Optimizer {name!r}: {key} wants a number > 0, got {arguments[key]!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _signature(function: Callable) -> str:
    return ", ".join(inspect.signature(function).parameters)
