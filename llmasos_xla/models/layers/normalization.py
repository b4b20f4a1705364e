"""Normalization layers. Statistics are taken in float32 where values are narrower; the result has the input's dtype."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla import kernels
from llmasos_xla.kernels.activation import activation as activation_named
from llmasos_xla.models.layers._base import Layer, Shape
from llmasos_xla.models.layers._checks import array_axis, known_channels, number, whole
from llmasos_xla.models.layers._modules import MaskModule, parameter


@dataclasses.dataclass(frozen=True)
class BatchNormalization(Layer):
    """(x - mean) / sqrt(var + epsilon) * scale + bias for each channel (Ioffe and Szegedy 2015).

    In training mean and variance are the batch's, over all axes but `axis`, and the moving ones follow them:
    moving = momentum * moving + (1 - momentum) * batch. Otherwise the moving ones are used. Steps that a mask
    [batch, time] calls padding do not count. Axis 0 is the batch, as in Keras.

    Arrays: scale (Keras' gamma), bias (beta); state: mean, var; all [channels] and float32.

    >>> BatchNormalization().output_shape((28, 28, 3))
    (28, 28, 3)
    """

    axis: int = dataclasses.field(default=-1, metadata={"checked": False})
    momentum: float = 0.99
    epsilon: float = 1e-3
    center: bool = True
    scale: bool = True
    beta_initializer: str = "zeros"
    gamma_initializer: str = "ones"
    moving_mean_initializer: str = "zeros"
    moving_variance_initializer: str = "ones"

    @property
    def fuses_activation(self) -> bool:
        """It does, in training."""
        return True

    def check(self) -> None:
        """Refuses momentum outside [0, 1] and epsilon 0."""
        _check_epsilon(self.who, self.epsilon)
        if number(self.who, "momentum", self.momentum, least=0.0) > 1:
            raise ValueError(f"{self.who}: momentum wants a number between 0 and 1, got {self.momentum!r}")

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module with scale, bias and moving statistics."""
        return _BatchNormalization(self, shape, rngs)

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        known_channels(self.who, shape, array_axis(self.who, self.axis, len(shape)) - 1)
        return shape


class _BatchNormalization(MaskModule):
    def __init__(self, spec: BatchNormalization, shape: Shape, rngs: nnx.Rngs):
        self.spec = spec
        self.axis = array_axis(spec.who, spec.axis, len(shape))
        size = (known_channels(spec.who, shape, self.axis - 1),)
        self.scale = parameter(rngs, spec.gamma_initializer, size) if spec.scale else None
        self.bias = parameter(rngs, spec.beta_initializer, size) if spec.center else None
        self.mean = nnx.BatchStat(parameter(rngs, spec.moving_mean_initializer, size)[...])
        self.var = nnx.BatchStat(parameter(rngs, spec.moving_variance_initializer, size)[...])

    def affine(self) -> tuple[jax.Array, jax.Array]:
        """Factor and offset of each channel, [channels], where the moving statistics are used: x * factor + offset."""
        factor = jax.lax.rsqrt(self.var[...] + self.spec.epsilon)
        factor = factor if self.scale is None else factor * self.scale[...]
        offset = -self.mean[...] * factor
        return factor, offset if self.bias is None else offset + self.bias[...]

    def masked(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        *,
        train: bool,
        rngs: nnx.Rngs | None,
        residual: jax.Array | None = None,
        activation: str | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """The output, with the residual added and the activation applied; in training that is one pass over memory."""

        def after(y: jax.Array) -> jax.Array:
            return activation_named(activation)(y if residual is None else y + residual)

        if not train:
            high = _wide(x).dtype
            mean, var = (_along(s[...].astype(high), x.ndim, (self.axis,)) for s in (self.mean, self.var))
            return after(_normalize(x, mean, var, self.spec.epsilon, self.scale, self.bias, (self.axis,))), mask
        # With time as the channels a mask has no steps to leave out.
        if self.axis == x.ndim - 1 and (mask is None or self.axis < 2):
            scale, bias = (None if p is None else p[...] for p in (self.scale, self.bias))
            if residual is None or residual.dtype == x.dtype:
                y, mean, var = kernels.batch_norm(
                    x, scale, bias, residual=residual, activation=activation, epsilon=self.spec.epsilon
                )
            else:
                y, mean, var = kernels.batch_norm(x, scale, bias, epsilon=self.spec.epsilon)
                y = after(y)
        else:
            others = tuple(i for i in range(x.ndim) if i != self.axis)
            where = None if mask is None or self.axis < 2 else jnp.expand_dims(mask, range(2, x.ndim))
            mean, var = _moments(_wide(x), others, where)
            y = after(_normalize(x, mean, var, self.spec.epsilon, self.scale, self.bias, (self.axis,)))
        momentum = self.spec.momentum
        for moving, batch in ((self.mean, mean), (self.var, var)):
            batch = jax.lax.stop_gradient(batch).reshape(-1).astype(moving[...].dtype)
            moving[...] = momentum * moving[...] + (1 - momentum) * batch
        return y, mask


@dataclasses.dataclass(frozen=True)
class LayerNormalization(Layer):
    """(x - mean) / sqrt(var + epsilon) * scale + bias, over the axes `axis` of each sample (Ba et al. 2016).

    Arrays: scale (Keras' gamma), bias (beta), of the sizes of these axes. Axis 0 is the batch, as in Keras.

    >>> LayerNormalization(axis=(1, 2)).output_shape((5, 8))
    (5, 8)
    """

    axis: int | Sequence[int] = -1
    epsilon: float = 1e-3
    center: bool = True
    scale: bool = True
    beta_initializer: str = "zeros"
    gamma_initializer: str = "ones"

    def check(self) -> None:
        """Refuses epsilon 0."""
        _check_epsilon(self.who, self.epsilon)
        if isinstance(self.axis, Sequence) and not isinstance(self.axis, str):
            self._set(axis=tuple(self.axis))

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module with scale and bias."""
        return _LayerNormalization(self, shape, rngs)

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        for axis in self.axes(shape):
            known_channels(self.who, shape, axis - 1)
        return shape

    def axes(self, shape: Shape) -> tuple[int, ...]:
        """The axes of the array [batch, ...] that are normalized over, in order."""
        given = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        axes = tuple(sorted(array_axis(self.who, axis, len(shape)) for axis in given))
        if not axes or len(set(axes)) < len(axes):
            raise ValueError(f"{self.who}: axis wants one axis or several different ones, got {self.axis!r}")
        return axes


class _LayerNormalization(nnx.Module):
    def __init__(self, spec: LayerNormalization, shape: Shape, rngs: nnx.Rngs):
        self.spec = spec
        self.axes = spec.axes(shape)
        sizes = tuple(known_channels(spec.who, shape, axis - 1) for axis in self.axes)
        self.scale = parameter(rngs, spec.gamma_initializer, sizes) if spec.scale else None
        self.bias = parameter(rngs, spec.beta_initializer, sizes) if spec.center else None

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        mean, var = _moments(_wide(x), self.axes)
        return _normalize(x, mean, var, self.spec.epsilon, self.scale, self.bias, self.axes)


@dataclasses.dataclass(frozen=True)
class GroupNormalization(Layer):
    """Normalizes each sample's channels in `groups` groups, over all other axes (Wu and He 2018).

    `groups=-1` is one group a channel (instance normalization). A mask is not read: padded steps count.

    Arrays: scale (Keras' gamma), bias (beta); [channels].

    >>> GroupNormalization(4).output_shape((28, 28, 32))
    (28, 28, 32)
    """

    groups: int = dataclasses.field(default=32, metadata={"checked": False})
    axis: int = dataclasses.field(default=-1, metadata={"checked": False})
    epsilon: float = 1e-3
    center: bool = True
    scale: bool = True
    beta_initializer: str = "zeros"
    gamma_initializer: str = "ones"

    def check(self) -> None:
        """Refuses epsilon 0 and groups that are neither -1 nor positive."""
        _check_epsilon(self.who, self.epsilon)
        if self.groups != -1:
            self._set(groups=whole(self.who, "groups (or -1, one a channel)", self.groups))

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module with scale and bias."""
        self.output_shape(shape)
        return _GroupNormalization(self, shape, rngs)

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        channels = known_channels(self.who, shape, array_axis(self.who, self.axis, len(shape)) - 1)
        if channels % self.groups:
            raise ValueError(f"{self.who}: the input's {channels} channels are no multiple of groups ({self.groups})")
        return shape


class _GroupNormalization(nnx.Module):
    def __init__(self, spec: GroupNormalization, shape: Shape, rngs: nnx.Rngs):
        self.spec = spec
        self.axis = array_axis(spec.who, spec.axis, len(shape))
        size = (known_channels(spec.who, shape, self.axis - 1),)
        self.scale = parameter(rngs, spec.gamma_initializer, size) if spec.scale else None
        self.bias = parameter(rngs, spec.beta_initializer, size) if spec.center else None

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        channels = x.shape[self.axis]
        groups = channels if self.spec.groups == -1 else self.spec.groups
        values = _wide(x)
        grouped = values.reshape(*x.shape[: self.axis], groups, channels // groups, *x.shape[self.axis + 1 :])
        over = tuple(i for i in range(1, grouped.ndim) if i != self.axis)
        mean, var = (
            jnp.repeat(jnp.squeeze(m, self.axis + 1), channels // groups, axis=self.axis)
            for m in _moments(grouped, over)
        )
        return _normalize(x, mean, var, self.spec.epsilon, self.scale, self.bias, (self.axis,))


def _check_epsilon(who: str, epsilon: float) -> None:
    if number(who, "epsilon", epsilon, least=0.0) == 0:
        raise ValueError(f"{who}: epsilon wants a positive number, got 0")


def _wide(x: jax.Array) -> jax.Array:
    # bf16 has 8 bits: a sum of a thousand values would lose nearly all of each.
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x


def _moments(x: jax.Array, axes: tuple[int, ...], where: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Mean and variance over `axes`, which stay as ones. Two passes: E[x^2] - E[x]^2 cancels when means are large."""
    if where is None:
        mean = jnp.mean(x, axes, keepdims=True)
        return mean, jnp.mean(jnp.square(x - mean), axes, keepdims=True)
    where = jnp.broadcast_to(where, x.shape)
    count = jnp.maximum(jnp.sum(where, axes, keepdims=True), 1).astype(x.dtype)
    mean = jnp.sum(x, axes, keepdims=True, where=where) / count
    return mean, jnp.sum(jnp.square(x - mean), axes, keepdims=True, where=where) / count


def _normalize(
    x: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    epsilon: float,
    scale: nnx.Param | None,
    bias: nnx.Param | None,
    axes: tuple[int, ...],
) -> jax.Array:
    values = _wide(x)
    factor = jax.lax.rsqrt(var + epsilon)
    if scale is not None:
        factor = factor * _along(scale[...].astype(values.dtype), x.ndim, axes)
    y = (values - mean) * factor
    if bias is not None:
        y = y + _along(bias[...].astype(values.dtype), x.ndim, axes)
    return y.astype(x.dtype)


def _along(array: jax.Array, rank: int, axes: tuple[int, ...]) -> jax.Array:
    """An array over `axes` with ones at the other axes."""
    return jnp.expand_dims(array, [i for i in range(rank) if i not in axes])
