from models_sample import Sample, ids, mask

from llmasos_xla.models import BertConfig

SIZES = {"vocab": 12, "context": 8, "width": 8, "depth": 1, "heads": 2, "hidden": 12}
ROWS = {"ids": ids(12, 6), "attention_mask": mask(6)}

SAMPLES = [
    Sample(
        "bert_classes", BertConfig(**SIZES, classes=3), {**ROWS, "token_type_ids": mask(6)}, unused=(r"/key/bias$",)
    ),
    Sample("bert_words", BertConfig(**SIZES, task="masked-lm"), ROWS, unused=(r"/key/bias$",)),
    Sample("bert_sentences", BertConfig(**SIZES, task="embeddings"), ROWS, unused=(r"/key/bias$",)),
]
