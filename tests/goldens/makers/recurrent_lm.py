"""Recurrent language models as plain torch modules."""

from makers._torch import Golden, seed, torch
from seeded import ids


class Model(torch.nn.Module):
    def __init__(self, cell, vocab, width, hidden, depth, tied):
        super().__init__()
        self.encoder = torch.nn.Embedding(vocab, width)
        self.rnn = cell(width, hidden, depth, batch_first=True)
        self.decoder = torch.nn.Linear(hidden, vocab)
        if tied:
            self.decoder.weight = self.encoder.weight

    def forward(self, rows):
        return self.decoder(self.rnn(self.encoder(rows))[0])


def goldens():
    made = {}
    for name, cell, sizes in (
        ("lstm_lm", torch.nn.LSTM, {"vocab": 23, "width": 10, "hidden": 10, "depth": 2, "tied": True}),
        ("gru_lm", torch.nn.GRU, {"vocab": 23, "width": 7, "hidden": 12, "depth": 2, "tied": False}),
    ):
        module = Model(cell, **sizes)
        arrays = seed(module)
        rows = ids(0, 23, 3, 9)
        output = module(torch.from_numpy(rows).long()).numpy()
        mask = (torch.arange(9)[None] < torch.tensor([9, 4, 1])[:, None]).numpy()
        cases = [
            {"ids": rows, "output": output},
            {"ids": rows, "attention_mask": mask.astype("int32"), "output": output, "valid": mask},
        ]
        made[name] = Golden("RecurrentLMConfig", "torch", {**sizes, "cell": name[:-3]}, {}, arrays, cases)
    return made
