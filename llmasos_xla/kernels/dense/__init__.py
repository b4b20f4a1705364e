"""Dense layers: a matrix product with bias and activation."""
