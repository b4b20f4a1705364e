"""Tokenizers: texts to rows of ids and back, as published models and own vocabularies have them.

    protocol        Tokenizer: encode, decode, batch, special ids
    keeping         in a model's file
    opening         load_tokenizer: a file or folder, whatever its format
    chat_template   ChatTemplate: how a conversation becomes a prompt
    characters      Characters: each character an id, by a vocabulary of the training text
    huggingface     HuggingFace: tokenizer.json, WordPiece's vocab.txt, GPT-2's vocab.json and merges.txt; trains BPE
    sentence_piece  SentencePiece: .model
    llama2c         Llama2C: tok512.bin and its kin

`Dataset` makes word and character ids by itself; these are for models that come with a vocabulary. Extra `text`.
"""

from llmasos_xla.data.tokenizers.characters import Characters as Characters
from llmasos_xla.data.tokenizers.chat_template import ChatTemplate as ChatTemplate
from llmasos_xla.data.tokenizers.huggingface import HuggingFace as HuggingFace
from llmasos_xla.data.tokenizers.llama2c import Llama2C as Llama2C
from llmasos_xla.data.tokenizers.opening import load_tokenizer as load_tokenizer
from llmasos_xla.data.tokenizers.protocol import Special as Special
from llmasos_xla.data.tokenizers.protocol import Tokenizer as Tokenizer
from llmasos_xla.data.tokenizers.sentence_piece import SentencePiece as SentencePiece
