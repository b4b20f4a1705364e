"""Files of weights as arrays by name, a file a format. Nothing in them is executed, and nothing is copied.

views        a file mapped into memory, and arrays that are windows on it
safetensors  Hugging Face's format
index        many files with an index of which has what
torch        what torch.save writes, zipped or as it was before version 1.6, without torch
pickled      the part of pickle that weights need, as data
keras        Keras' HDF5 files
llama2c      the .bin files of llama2.c
"""
