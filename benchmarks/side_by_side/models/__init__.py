"""Models of the shelf against the originals in PyTorch: inference, decoding, a training step.

rows            the workloads
weights         the weights that everybody has, drawn by the published names
contestants/    how each framework runs a row
arena           asks them in turns and compares what they give
"""
