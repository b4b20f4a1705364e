"""Convolution and transposed convolution in one to three dimensions."""
