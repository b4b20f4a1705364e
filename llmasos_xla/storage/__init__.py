"""Files: arrays by name in them, written whole or not at all. Nothing here needs more than NumPy; programs need JAX.

atomic       a file is whole or not there
views        a file mapped into memory, and arrays that are windows on it
safetensors  Hugging Face's format, read as windows and written as a stream
bundle       the `.lmx` bundle: programs for every platform, weights, what rebuilds the model
"""
