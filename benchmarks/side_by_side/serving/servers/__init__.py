"""A server a file: `python file.py PORT WEIGHTS.npz` listens on the port until it is ended."""
