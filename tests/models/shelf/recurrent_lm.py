from models_sample import Sample, ids, mask

from llmasos_xla.models import RecurrentLMConfig

ROWS = {"ids": ids(12, 6), "attention_mask": mask(6)}

SAMPLES = [
    Sample("lstm_lm", RecurrentLMConfig(12, width=8, depth=2, tied=True), ROWS),
    Sample("gru_lm", RecurrentLMConfig(12, width=6, hidden=8, depth=1, cell="gru"), {"ids": ids(12, 5)}),
]
