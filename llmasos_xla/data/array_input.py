"""Inputs that are arrays of numbers: images, series, token ids, plain features."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_xla.data.pictures import upright
from llmasos_xla.data.readers.arrays import as_array

DTYPES = ("uint8", "int32", "float32")


@dataclasses.dataclass(frozen=True)
class ArrayInput:
    """Shape, dtype and scaling of one array input; `encode` runs on the host, `on_device` inside the compiled step."""

    shape: tuple[int, ...]
    """Of one sample, after `encode`."""
    dtype: str = "float32"
    """What `encode` gives: "uint8" (pixels stay small on their way to the device), "int32" (ids) or "float32"."""
    free: tuple[int, ...] = ()
    """Axes of `shape` whose length may differ from call to call, as the model's shape has None there."""
    scale: float | None = None
    """x * scale on the device, for instance 1/255."""
    mean: tuple[float, ...] | None = None
    """(x - mean) / std on the device, for each feature: along the last axis of a sample."""
    std: tuple[float, ...] | None = None
    columns: tuple[str, ...] | None = None
    """Names of the columns, if the input is a table of pixels: a frame's columns are put into this order."""
    unit: bool = False
    """The training inputs were floats within [0, 1], so that bytes are a mistake."""

    def encode(self, raw: Any, columns: tuple[str, ...] | None = None, who: str = "input") -> np.ndarray:
        """Brings what a user passes to `[rows, *shape]` in the right dtype.

        Raises ValueError for a shape that does not fit, a single sample without the batch axis, NaN or infinity, floats
        in [0, 1] where pixels are wanted; TypeError for text or objects.
        """
        if self.columns is not None:
            raw = self._in_order(raw, columns, who)
        x = as_array(self._pictures(raw, who), who)
        if x.dtype.kind in "OUS":
            raise TypeError(f"{who}: text came ({x.flat[0]!r}) where numbers of shape {self._wanted()} are wanted")
        x = self._reshape(x, who)
        return self._cast(x, who)

    def on_device(self, x: jax.Array | np.ndarray) -> jax.Array:
        """float32 and scaled; ids stay int32. Pure, to be traced."""
        if self.dtype == "int32":
            return jnp.asarray(x).astype(jnp.int32)
        y = jnp.asarray(x).astype(jnp.float32)
        if self.scale is not None:
            y = y * jnp.float32(self.scale)
        if self.mean is not None:
            shape = (1,) * (y.ndim - 1) + (-1,)
            mean, std = (np.asarray(v, np.float32).reshape(shape) for v in (self.mean, self.std))
            y = (y - mean) / std
        return y

    def describe(self) -> str:
        """One phrase for a summary."""
        scale = "" if self.scale is None else f", times 1/{round(1 / self.scale)}"
        standard = "" if self.mean is None else ", standardized"
        return f"{self.dtype} {self._wanted()}{scale}{standard}"

    def _wanted(self) -> str:
        return "(" + ", ".join(["rows", *("any" if a in self.free else str(n) for a, n in enumerate(self.shape))]) + ")"

    def _in_order(self, raw: Any, given: tuple[str, ...] | None, who: str) -> Any:
        names = [str(c) for c in raw.columns] if hasattr(raw, "columns") else list(given) if given else None
        if names is None or tuple(names) == self.columns:
            return raw
        lacking = [name for name in self.columns or () if name not in names]
        if lacking:
            raise ValueError(
                f"{who}: {len(lacking)} of the training's {len(self.columns or ())} columns are missing: "
                f"{', '.join(lacking[:8])}{', ...' if len(lacking) > 8 else ''}"
            )
        order = [names.index(name) for name in self.columns or ()]
        return raw.iloc[:, order] if hasattr(raw, "iloc") else np.asarray(raw)[:, order]

    def _pictures(self, raw: Any, who: str) -> Any:
        if _is_picture(raw):
            raise ValueError(f"{who}: one picture came; a batch is wanted: pass [picture]")
        if not (isinstance(raw, list | tuple) and raw and all(map(_is_picture, raw))):
            return raw
        if len(self.shape) != 3 or self.shape[-1] not in (1, 3, 4):
            raise ValueError(f"{who}: pictures came, but the model wants {self._wanted()}, which is no image")
        height, width, channels = self.shape
        mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
        return np.stack([np.asarray(upright(p).convert(mode).resize((width, height))).reshape(self.shape) for p in raw])

    def _reshape(self, x: np.ndarray, who: str) -> np.ndarray:
        came = x.shape[1:]
        if x.ndim == 0:
            raise ValueError(f"{who}: a single number came; {self._wanted()} is wanted")
        if self._fits(came):
            return x
        if self.free:
            if x.ndim == len(self.shape) and self._fits((*came, 1)):
                return x[..., None]
        elif math.prod(came) == math.prod(self.shape) and (
            _squeeze(came) == _squeeze(self.shape) or len(_squeeze(came)) < 2 or len(_squeeze(self.shape)) < 2
        ):
            return x.reshape(len(x), *self.shape)
        if self._fits(x.shape) or _squeeze(x.shape) == _squeeze(self.shape):
            raise ValueError(
                f"{who}: x has shape {x.shape}, which is one sample; the model wants {self._wanted()}: "
                "add the batch axis with x[None]"
            )
        raise ValueError(f"{who}: x has shape {x.shape}, the model wants {self._wanted()}")

    def _fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == len(self.shape) and all(
            a in self.free or n == m for a, (n, m) in enumerate(zip(shape, self.shape))
        )

    def _cast(self, x: np.ndarray, who: str) -> np.ndarray:
        require_finite(x, who)
        if self.dtype == "int32":
            return _as_ids(x, who)
        if self.dtype == "uint8":
            if x.dtype == np.uint8:
                return x
            if is_bytes(x):
                return x.astype(np.uint8)
            largest = 1 / (self.scale or 1)
            if x.size and x.dtype.kind == "f" and x.min() >= 0 and x.max() <= 1 < largest:
                raise ValueError(
                    f"{who}: x holds values from {x.min():.4g} to {x.max():.4g}; this model was trained on pixels "
                    f"0..{largest:.0f} and scales them itself: pass the raw pixels (x * {largest:.0f})"
                )
        elif self.unit and x.dtype == np.uint8 and x.size and x.max() > 1:
            raise ValueError(
                f"{who}: x holds bytes up to {x.max()}; this model was trained on floats from 0 to 1: scale x as for "
                "training (x / 255)"
            )
        with np.errstate(over="ignore"):
            cast = x.astype(np.float32, copy=False)
        if cast is not x and x.dtype.kind == "f":
            require_finite(cast, f"{who} (as float32)")
        return cast


def require_finite(x: np.ndarray, who: str) -> None:
    """Raises ValueError if floats hold NaN or infinity: how many, and in which row first."""
    # min and max pass NaN and infinity on and need no mask the size of x.
    if x.dtype.kind != "f" or not x.size or (np.isfinite(x.min()) and np.isfinite(x.max())):
        return
    bad = ~np.isfinite(x)
    row = int(np.argmax(bad.reshape(len(x), -1).any(axis=1)))
    nan = int(np.isnan(x).sum())
    kinds = [f"{n} {what}" for n, what in ((nan, "NaN"), (int(bad.sum()) - nan, "infinite")) if n]
    raise ValueError(
        f"{who}: {' and '.join(kinds)} of {x.size} values, the first in row {row}; mend or remove those rows"
    )


def is_bytes(x: np.ndarray) -> bool:
    """Whether all values are whole numbers in 0..255."""
    if x.dtype.kind == "b" or not x.size:
        return False
    if x.dtype == np.uint8:
        return True
    if x.min() < 0 or x.max() > 255:
        return False
    # In pieces: a rejected array of floats is rejected by its first rows.
    return x.dtype.kind in "iu" or all(bool(np.all(part == np.floor(part))) for part in np.array_split(x, _pieces(x)))


def _pieces(x: np.ndarray) -> int:
    return max(1, min(len(x), x.size >> 18))


def _as_ids(x: np.ndarray, who: str) -> np.ndarray:
    if x.dtype.kind == "f" and not np.all(x == np.floor(x)):
        raise ValueError(f"{who}: token ids are whole numbers, {x[x != np.floor(x)].flat[0]!r} came")
    if x.size and (x.min() < 0 or x.max() > np.iinfo(np.int32).max):
        raise ValueError(f"{who}: token ids run from 0 to {np.iinfo(np.int32).max}, {x.min()} to {x.max()} came")
    return x.astype(np.int32, copy=False)


def _squeeze(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def _is_picture(value: Any) -> bool:
    return hasattr(value, "convert") and hasattr(value, "getbands")
