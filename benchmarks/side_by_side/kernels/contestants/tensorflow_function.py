"""TensorFlow's convolution, forward, under `tf.function`.

Its other operations are left out: a gradient alone needs raw operations that users do not call, and its recurrence is
Keras' (benchmarks/steps.py has that).
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from side_by_side.kernels.bench import Program
from side_by_side.kernels.problem import FORWARD, Problem

_THREADS = len(os.sched_getaffinity(0))
tf.config.threading.set_intra_op_parallelism_threads(_THREADS)
tf.config.threading.set_inter_op_parallelism_threads(_THREADS)


def programs(problem: Problem, arrays: list[np.ndarray], cotangent: np.ndarray) -> Iterator[Program]:
    """The forward pass of a convolution; nothing of other problems."""
    if problem.op == "conv" and all(b == 1 for b in problem.options["lhs_dilation"]):
        yield Program(FORWARD, "", partial(_made, problem, arrays))


def _made(problem: Problem, arrays: list[np.ndarray]) -> tuple[Callable[[], Any], Callable[[Any], list[np.ndarray]]]:
    x, w = (tf.constant(a, problem.dtype) for a in arrays)
    function = tf.function(_function(problem))
    return lambda: function(x, w), lambda y: [tf.cast(y, tf.float32).numpy()]


def _function(problem: Problem) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    o, (x_shape, w_shape) = problem.options, problem.shapes
    stride, dilation, pads = o["stride"], o["rhs_dilation"], o["pads"]
    ahead, padding = _padding(x_shape[1:-1], w_shape[:-2], stride, dilation, pads)

    def padded(x: tf.Tensor) -> tf.Tensor:
        return tf.pad(x, [(0, 0), *pads, (0, 0)]) if ahead else x

    if len(stride) == 2 and o["groups"] == x_shape[-1] and stride[0] == stride[1]:
        multiplier = w_shape[-1] // o["groups"]
        shape = (*w_shape[:2], o["groups"], multiplier)
        return lambda x, w: tf.nn.depthwise_conv2d(
            padded(x), tf.reshape(w, shape), (1, *stride, 1), padding, dilations=dilation
        )
    return lambda x, w: tf.nn.convolution(padded(x), w, stride, padding, dilations=dilation)


def _padding(size: Any, kernel: Any, stride: Any, dilation: Any, pads: Any) -> tuple[bool, Literal["VALID", "SAME"]]:
    """Whether to pad ahead, and the padding's name."""
    if all(pair == (0, 0) for pair in pads):
        return False, "VALID"
    for n, k, s, d, (low, high) in zip(size, kernel, stride, dilation, pads):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        if (low, high) != (total // 2, total - total // 2):
            return True, "VALID"
    return False, "SAME"
