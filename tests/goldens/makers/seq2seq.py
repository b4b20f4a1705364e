"""Encoder-decoders with attention as plain torch modules, one row at a time, so that nothing is padded."""

import numpy as np
from makers._torch import Golden, seed, torch
from seeded import ids

SIZES = {"vocab": 19, "target_vocab": 23, "width": 6, "hidden": 8, "depth": 2}


class Model(torch.nn.Module):
    def __init__(self, cell, attention, vocab, target_vocab, width, hidden, depth):
        super().__init__()
        self.additive, linear = attention == "bahdanau", torch.nn.Linear
        self.tokens, self.target_tokens = torch.nn.Embedding(vocab, width), torch.nn.Embedding(target_vocab, width)
        self.encoder = cell(width, hidden, depth, bidirectional=True, batch_first=True)
        self.decoder = cell(width + 2 * hidden * self.additive, hidden, batch_first=True)
        self.bridge_h = linear(2 * hidden, hidden)
        if cell is torch.nn.LSTM:
            self.bridge_c = linear(2 * hidden, hidden)
        self.memory_key = linear(2 * hidden, hidden, bias=False)
        if self.additive:
            self.state_key, self.score = linear(hidden, hidden), linear(hidden, 1, bias=False)
        self.combine, self.head = linear(3 * hidden, hidden), linear(hidden, target_vocab)

    def forward(self, row, steps):
        states, last = self.encoder(self.tokens(row))
        several = isinstance(last, tuple)
        last = last if several else (last,)
        bridges = (self.bridge_h, self.bridge_c) if several else (self.bridge_h,)
        state = [torch.tanh(f(torch.cat([s[-2], s[-1]], -1)))[None] for f, s in zip(bridges, last, strict=True)]
        keys, outputs = self.memory_key(states), []
        for x in self.target_tokens(steps).split(1, dim=1):
            if self.additive:
                asked = torch.tanh(keys + self.state_key(state[0][0])[:, None])
                context = torch.softmax(self.score(asked)[..., 0], -1)[:, None] @ states
                x = torch.cat([x, context], -1)
            y, state = self.decoder(x, tuple(state) if several else state[0])
            state = state if several else (state,)
            if not self.additive:
                context = torch.softmax(y @ keys.transpose(1, 2), -1) @ states
            outputs.append(self.head(torch.tanh(self.combine(torch.cat([y, context], -1)))))
        return torch.cat(outputs, 1)


def goldens():
    made = {}
    for attention, cell in (("luong", "lstm"), ("bahdanau", "gru")):
        module = Model(getattr(torch.nn, cell.upper()), attention, **SIZES)
        arrays = seed(module)
        rows, steps, lengths = ids(0, 19, 3, 9), ids(1, 23, 3, 5), [9, 4, 1]
        mask = (np.arange(9)[None] < np.array(lengths)[:, None]).astype(np.int32)
        output = torch.cat(
            [
                module(torch.from_numpy(rows[i : i + 1, :length]).long(), torch.from_numpy(steps[i : i + 1]).long())
                for i, length in enumerate(lengths)
            ]
        )
        case = {"ids": rows, "attention_mask": mask, "decoder_input_ids": steps, "output": output.numpy()}
        config = {**SIZES, "cell": cell, "attention": attention}
        made[f"seq2seq_{attention}"] = Golden("Seq2SeqConfig", "torch", config, {}, arrays, [case])
    return made
