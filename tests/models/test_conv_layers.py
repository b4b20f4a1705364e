"""Convolution layers beyond the Keras fixtures: what their definitions say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close

from llmasos_xla.core import Variables
from llmasos_xla.models import layers as L  # noqa: N812


def correlate(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """[height, width] with [h, w], "valid", in float64."""
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), kernel.shape)
    return np.einsum("hwij,ij->hw", windows, kernel.astype(np.float64))


def test_depthwise_channel_c_under_filter_m_is_channel_c_times_multiplier_plus_m(rng, apply_layer):
    x = rng.normal(size=(2, 5, 6, 3)).astype(np.float32)
    layer = L.DepthwiseConv2D((3, 2), depth_multiplier=2)
    y, variables = apply_layer(layer, jnp.asarray(x))
    kernel, bias = variables.params["kernel"], variables.params["bias"]
    assert kernel.shape == (3, 2, 3, 2)
    for c in range(3):
        for m in range(2):
            assert_close(
                y[1, :, :, 2 * c + m], correlate(x[1, :, :, c], np.asarray(kernel[:, :, c, m])) + bias[2 * c + m]
            )


def test_groups_see_their_own_channels_only(rng, apply_layer):
    x = jnp.asarray(rng.normal(size=(1, 5, 5, 4)), jnp.float32)
    layer = L.Conv2D(6, 3, groups=2)
    y, variables = apply_layer(layer, x)
    other, _ = apply_layer(layer, x.at[..., 2:].add(1.0), variables=variables)
    assert_close(other[..., :3], y[..., :3])
    assert float(jnp.abs(other[..., 3:] - y[..., 3:]).min()) > 1e-4


@pytest.mark.parametrize("size", [7, 8])
def test_padding_in_numbers_is_a_valid_convolution_of_the_padded_image(rng, apply_layer, size):
    x = jnp.asarray(rng.normal(size=(2, size, 5, 3)), jnp.float32)
    layer = L.Conv2D(4, 3, strides=2, padding=(1, (2, 0)))
    y, variables = apply_layer(layer, x)
    padded = jnp.pad(x, ((0, 0), (1, 1), (2, 0), (0, 0)))
    assert_close(y, apply_layer(L.Conv2D(4, 3, strides=2), padded, variables=variables)[0])


def test_padding_in_numbers_never_is_the_largest(apply_layer):
    x = -1.0 - jnp.arange(9.0).reshape(1, 3, 3, 1)
    y, _ = apply_layer(L.MaxPooling2D(3, strides=2, padding=1), x)
    assert y[0, :, :, 0].tolist() == [[-1.0, -2.0], [-4.0, -5.0]]


def test_causal_convolution_does_not_see_the_future(rng, apply_layer):
    x = jnp.asarray(rng.normal(size=(1, 9, 2)), jnp.float32)
    layer = L.Conv1D(3, 3, padding="causal", dilation_rate=2)
    y, variables = apply_layer(layer, x)
    later, _ = apply_layer(layer, x.at[:, 5:].add(1.0), variables=variables)
    assert y.shape == (1, 9, 3)
    assert_close(later[:, :5], y[:, :5])


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("window", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (2, 3, 1), (4, 2, 1), (2, 1, 3)])
def test_transposed_convolution_is_the_gradient_of_the_convolution(rng, apply_layer, padding, window, stride, dilation):
    x = jnp.asarray(rng.normal(size=(2, 4, 3, 5)), jnp.float32)
    up = L.Conv2DTranspose(2, window, stride, padding, dilation_rate=dilation, use_bias=False)
    y, variables = apply_layer(up, x)
    kernel = variables.params["kernel"]

    def down(image):
        return jax.lax.conv_general_dilated(
            image,
            kernel,
            (stride, stride),
            padding.upper(),
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    image = jnp.zeros(y.shape, jnp.float32)
    assert down(image).shape == x.shape
    assert_close(y, jax.vjp(down, image)[1](x)[0])


def test_output_padding_lengthens_the_valid_output_by_positions_that_hold_the_bias(rng, apply_layer):
    x = jnp.asarray(rng.normal(size=(1, 3, 3, 2)), jnp.float32)
    longer = L.Conv2DTranspose(2, 2, strides=2, output_padding=1, bias_initializer="ones")
    y, variables = apply_layer(longer, x)
    plain, _ = apply_layer(L.Conv2DTranspose(2, 2, strides=2), x, variables=variables)
    assert y.shape == (1, 7, 7, 2)
    assert_close(y[:, :6, :6], plain)
    assert_close(y[:, 6:], np.ones((1, 1, 7, 2)))


def test_separable_is_depthwise_then_pointwise(rng, apply_layer):
    x = jnp.asarray(rng.normal(size=(2, 5, 6, 3)), jnp.float32)
    y, variables = apply_layer(L.SeparableConv2D(4, 3, depth_multiplier=2), x)
    params = variables.params
    middle, _ = apply_layer(
        L.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False),
        x,
        variables=Variables({"kernel": params["depthwise_kernel"]}, {}),
    )
    assert_close(y, jnp.einsum("bhwc,cf->bhwf", middle, params["pointwise_kernel"][0, 0]))


def test_bilinear_upsampling_goes_through_the_middle(apply_layer):
    x = jnp.asarray([0.0, 4.0]).reshape(1, 1, 2, 1)
    y, _ = apply_layer(L.UpSampling2D((1, 2), interpolation="bilinear"), x)
    assert_close(y[0, 0, :, 0], np.array([0.0, 1.0, 3.0, 4.0]))
