"""Data: `Dataset` reads, `Preprocessing` encodes, `batches.batches` iterates, `tokenizers` make ids of texts."""

from llmasos_xla.data import pictures, sound, tokenizers
from llmasos_xla.data.dataset import Dataset
from llmasos_xla.data.preprocessing import Preprocessing
from llmasos_xla.data.rows import Rows

__all__ = ["Dataset", "Preprocessing", "Rows", "pictures", "sound", "tokenizers"]
