from models_sample import Sample, ids, mask

from llmasos_xla.models import Seq2SeqConfig

SIZES = {"vocab": 12, "target_vocab": 14, "width": 6, "hidden": 8}
ROWS = {"ids": ids(12, 6), "attention_mask": mask(6), "decoder_input_ids": ids(14, 5, seed=1)}

SAMPLES = [
    Sample("seq2seq_luong", Seq2SeqConfig(**SIZES, cell="lstm"), ROWS),
    Sample("seq2seq_bahdanau", Seq2SeqConfig(**SIZES, attention="bahdanau"), ROWS),
]
