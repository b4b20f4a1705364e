"""Convolution and pooling as loops in NumPy, float64: what the kernels are held to."""

import itertools

import numpy as np


def spread(value, rank):
    return (value,) * rank if isinstance(value, int) else tuple(value)


def dilate(x, dilation):
    """Zeros between the elements of the spatial axes of [batch, *spatial, channels]."""
    rank = x.ndim - 2
    size = [(n - 1) * d + 1 for n, d in zip(x.shape[1:-1], dilation)]
    y = np.zeros((x.shape[0], *size, x.shape[-1]))
    y[(slice(None), *(slice(None, None, d) for d in dilation[:rank]))] = x
    return y


def pairs(padding, size, window, stride):
    if padding == "VALID":
        return [(0, 0)] * len(size)
    if isinstance(padding, str):
        pads = []
        for n, k, s in zip(size, window, stride):
            total = max((-(-n // s) - 1) * s + k - n, 0)
            less, more = total // 2, total - total // 2
            pads.append((more, less) if padding == "SAME_LOWER" else (less, more))
        return pads
    return list(padding)


def pad(x, pads, fill=0.0):
    grow = [(max(low, 0), max(high, 0)) for low, high in pads]
    x = np.pad(x, [(0, 0), *grow, (0, 0)], constant_values=fill)
    crop = tuple(slice(max(-low, 0), x.shape[i + 1] - max(-high, 0)) for i, (low, high) in enumerate(pads))
    return x[(slice(None), *crop)]


def conv(x, w, stride=1, padding="SAME", rhs_dilation=1, lhs_dilation=1, groups=1):
    """x [batch, *spatial, cin], w [*kernel, cin / groups, cout]."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    rank = x.ndim - 2
    stride, reach, inner = (spread(v, rank) for v in (stride, rhs_dilation, lhs_dilation))
    kernel, cin, cout = w.shape[:rank], w.shape[-2], w.shape[-1] // groups
    x = dilate(x, inner)
    window = [(k - 1) * d + 1 for k, d in zip(kernel, reach)]
    x = pad(x, pairs(padding, x.shape[1:-1], window, stride))
    size = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:-1], window, stride)]
    y = np.zeros((x.shape[0], *size, cout * groups))
    for place in itertools.product(*map(range, size)):
        for k in itertools.product(*map(range, kernel)):
            at = tuple(i * s + j * d for i, s, j, d in zip(place, stride, k, reach))
            for group in range(groups):
                row = x[(slice(None), *at)][:, group * cin : (group + 1) * cin]
                out = slice(group * cout, (group + 1) * cout)
                y[(slice(None), *place, out)] += row @ w[k][:, out]
    return y


def conv_transpose(x, w, strides, padding, rhs_dilation=1, transpose_kernel=False):
    """Every input element adds its copy of the kernel to the output; then the output is cropped.

    Padding of (low, high) around the dilated input leaves `low - reach` more, or crops `reach - low`.
    """
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    rank = x.ndim - 2
    strides, reach = spread(strides, rank), spread(rhs_dilation, rank)
    kernel = w.shape[:rank]
    if not transpose_kernel:
        w = np.flip(w, tuple(range(rank))).swapaxes(-1, -2)
    window = [(k - 1) * d + 1 for k, d in zip(kernel, reach)]
    size = [(n - 1) * s + k for n, s, k in zip(x.shape[1:-1], strides, window)]
    full = np.zeros((x.shape[0], *size, w.shape[-2]))
    for place in itertools.product(*map(range, x.shape[1:-1])):
        for k in itertools.product(*map(range, kernel)):
            at = tuple(i * s + j * d for i, s, j, d in zip(place, strides, k, reach))
            full[(slice(None), *at)] += x[(slice(None), *place)] @ w[k].T
    if padding == "VALID":
        grow = [(0, max(s - k, 0)) for k, s in zip(window, strides)]
    elif padding == "SAME":
        grow = []
        for k, s in zip(window, strides):
            low = 0 if s > k - 1 else -(-(k + s - 2) // 2) - (k - 1)
            grow.append((low, s - k - low))
    else:
        grow = [(low - (k - 1), high - (k - 1)) for (low, high), k in zip(padding, window)]
    return pad(full, grow)


def windows(x, window, strides, padding, fill):
    """[batch, *out, channels, elements of the window], padded by `fill`."""
    rank = x.ndim - 2
    window = spread(window, rank)
    strides = window if strides is None else spread(strides, rank)
    x = pad(np.asarray(x, np.float64), pairs(padding, x.shape[1:-1], window, strides), fill)
    size = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:-1], window, strides)]
    y = np.empty((x.shape[0], *size, x.shape[-1], int(np.prod(window))))
    for place in itertools.product(*map(range, size)):
        at = tuple(slice(i * s, i * s + k) for i, s, k in zip(place, strides, window))
        part = x[(slice(None), *at)]
        y[(slice(None), *place)] = np.moveaxis(part, -1, 1).reshape(x.shape[0], x.shape[-1], -1)
    return y


def max_pool(x, window, strides=None, padding="VALID"):
    return windows(x, window, strides, padding, -np.inf).max(-1)


def avg_pool(x, window, strides=None, padding="VALID", count_include_pad=False):
    if count_include_pad:
        return windows(x, window, strides, padding, 0.0).mean(-1)
    return np.nanmean(windows(x, window, strides, padding, np.nan), -1)


def finite_differences(f, x, step=1e-6):
    """The gradient of a scalar f at x by central differences."""
    x = np.array(x, np.float64)
    gradient = np.empty_like(x)
    for i in np.ndindex(x.shape):
        before = x[i]
        x[i] = before + step
        above = f(x)
        x[i] = before - step
        gradient[i] = (above - f(x)) / (2 * step)
        x[i] = before
    return gradient
