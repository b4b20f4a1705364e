"""Training: losses, metrics, optimizers, the step, the loop, and what a fit reports."""
