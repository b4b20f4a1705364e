"""Whole models: a training step and an epoch, or a prediction, of every framework.

rows            the workloads: model kind, batch size, training or inference, precision, synthetic data
architectures   the large models' blocks and the weights that everybody predicts with
reference       what those weights predict, in NumPy and float64
contestants/    one file a family of front ends: how each trains and predicts
gate            what a contestant runs against: an epoch when asked
arena           the other end: asks the contestants in turns
tables          Markdown and JSON
"""
