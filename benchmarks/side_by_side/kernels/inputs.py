"""A problem's arrays in files: drawn once, and with the wanted results where every contestant reads them."""

import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from side_by_side.kernels.problem import Problem

# bfloat16 tells the integers up to here apart.
_DISTINCT = 256


def write(problem: Problem, folder: Path) -> None:
    """Writes the arrays as float32 whose values the problem's dtype holds; lengths as int32."""
    rng = np.random.default_rng(zlib.crc32(problem.case.encode()))
    for number, array in enumerate(_draw(problem, rng)):
        np.save(_array(folder, number), array if array.dtype == np.int32 else rounded(array, problem.dtype))


def read(problem: Problem, folder: Path) -> list[np.ndarray]:
    """The arrays, in order."""
    return [np.load(_array(folder, number)) for number in range(len(problem.shapes))]


def results(folder: Path, part: str) -> list[Path]:
    """Where the wanted results of a part stand, in order."""
    return sorted(folder.glob(f"{_stem(part)}.*.npy"))


def write_results(folder: Path, part: str, arrays: Sequence[np.ndarray]) -> None:
    """Writes the wanted results of a part."""
    for number, array in enumerate(arrays):
        np.save(folder / f"{_stem(part)}.{number}.npy", array.astype(np.float32))


def cotangent(folder: Path) -> Path:
    """Where the cotangent of the result stands."""
    return folder / "cotangent.npy"


def rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """As float32, with values that `dtype` holds exactly."""
    if dtype == "float32":
        return array.astype(np.float32)
    import ml_dtypes  # not every peer has it, and peers only read

    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


def _array(folder: Path, number: int) -> Path:
    return folder / f"array.{number}.npy"


def _stem(part: str) -> str:
    return part.replace(" ", "_")


def _draw(problem: Problem, rng: np.random.Generator) -> list[np.ndarray]:
    if problem.op.endswith("pool"):
        return [_without_ties(problem.shapes[0], rng)]
    first, second, *rest = problem.shapes
    if problem.op == "linear_scan":
        return [rng.uniform(0.5, 1, first), _normal(rng, second), _normal(rng, rest[0])]
    if problem.op == "batch_norm":
        # Nothing that is normalized comes close to zero, where the ReLU's mask would hang on the last bit.
        x = _normal(rng, first)
        return [x + np.sign(x) / 2, rng.uniform(0.5, 1.5, second), 0.02 * _normal(rng, rest[0])]
    # Sums of about one.
    scale = 1 / math.sqrt(math.prod(second[:-1]))
    arrays = [_normal(rng, first), scale * _normal(rng, second)]
    if problem.op.startswith("conv"):
        return arrays
    if problem.op == "dense":
        return [*arrays, _normal(rng, rest[0])]
    arrays.append(_normal(rng, rest[0]) / math.sqrt(rest[0][0]))
    lengths = problem.options["lengths"]
    biases = rest[1:] if lengths is None else rest[1:-1]
    arrays += [0.1 * _normal(rng, shape) for shape in biases]
    return arrays if lengths is None else [*arrays, np.asarray(lengths, np.int32)]


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def _without_ties(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """No two values of a small window are equal, so that a maximum's gradient has one place to go.

    Blocks of 256 distinct values repeat through space, each channel's from another place on.
    """
    batch, *size, channels = shape
    side = math.floor(_DISTINCT ** (1 / len(size)) + 1e-9)
    index = np.zeros(size, np.int64)
    for grid in np.indices(size):
        index = index * side + grid % side
    start = rng.integers(0, side ** len(size), (batch, *[1] * len(size), channels))
    values = rng.permutation(side ** len(size)) - _DISTINCT / 2
    return values[(index[None, ..., None] + start) % side ** len(size)].astype(np.float32)
