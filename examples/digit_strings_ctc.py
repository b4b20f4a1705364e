"""Strings of spoken digits by CTC: FSDD recordings in a row, with gaps between; word error rate, whole and streamed.

    LLMASOS_DATA=FOLDER python examples/digit_strings_ctc.py

Strings of 3 to 6 digits of one speaker in 4 s. Test strings are made of the official test part (the first five
recordings of each digit by each speaker), validation strings of the next five, training strings, ever new ones, of the
others.
"""

import metrax
import numpy as np
from fsdd import RATE, at_speed, recordings

import llmasos_xla as lm

LENGTH, LONGEST = 4 * RATE, 6
EPOCHS, ROUND = 16, 2048


class Strings:
    """Sound and labels (digits + 1, then zeros) of strings of the recordings with those indices, new at each look."""

    def __init__(self, sounds, indices, count, seed, vary=False):
        self.sounds, self.indices, self.count, self.vary = sounds, indices, count, vary
        self.speakers, self.rng = sorted({speaker for speaker, _, _ in sounds}), np.random.default_rng(seed)

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        rng, labels = self.rng, np.zeros(LONGEST, np.int32)
        x = np.float32(np.exp(rng.uniform(-9, -6))) * rng.standard_normal(LENGTH, np.float32)
        speaker, at = rng.choice(self.speakers), int(RATE * rng.uniform(0.05, 0.3))
        for place in range(rng.integers(3, LONGEST + 1)):
            digit = int(rng.integers(10))
            sound = self.sounds[speaker, digit, int(rng.choice(self.indices))]
            if self.vary:
                sound = np.exp(rng.uniform(-0.7, 0.7)) * at_speed(sound, np.exp(rng.uniform(-0.2, 0.2)))
            if at + len(sound) > LENGTH:
                break
            x[at : at + len(sound)] += sound
            labels[place] = digit + 1
            at += len(sound) + int(RATE * rng.uniform(0.02, 0.3))
        return x, labels


def arrays(strings):
    return tuple(np.stack(part) for part in zip(*(strings[i] for i in range(len(strings)))))


def texts(ids):
    return [" ".join(str(int(i) - 1) for i in row if i) for row in map(np.asarray, ids)]


def word_error_rate(read, labels):
    parts = [metrax.WER.from_model_output(a.split() or ["-"], b.split()) for a, b in zip(read, texts(labels))]
    return sum(float(part.total) for part in parts) / sum(float(part.count) for part in parts)


def main():
    sounds = recordings()
    features = lm.layers.LogMel(rate=RATE, mels=40, window=200, hop=80, fft_length=256, floor=1e-6)
    sizes = {"width": 96, "depth": 4, "window": 9, "left": 32, "channels": 24}
    model = lm.models.conformer_small(vocab=11, features=features, input_shape=(LENGTH,), **sizes)
    rate = {"init_value": 0.0, "peak_value": 2e-3, "warmup_steps": 200, "decay_steps": EPOCHS * ROUND // 32}
    rate = lm.Schedule("warmup_cosine_decay", **rate)
    model.compile(lm.Optimizer("adamw", rate, clip_norm=1.0, weight_decay=1e-3), "ctc")
    validation = arrays(Strings(sounds, range(5, 10), 200, seed=1))
    train = lm.Dataset(Strings(sounds, range(10, 50), ROUND, seed=0, vary=True), normalize=None)
    model.fit(train, epochs=EPOCHS, validation_data=validation)
    read = texts(lm.models.greedy(model(validation[0])))
    print(f"WER on validation strings: {word_error_rate(read, validation[1]):.4f}")
    x, labels = arrays(Strings(sounds, range(5), 500, seed=2))
    logits = np.concatenate([model(x[i : i + 50]) for i in range(0, len(x), 50)])
    read = texts(lm.models.greedy(logits))
    beams = texts([beam[0].labels for beam in lm.models.beam_search(logits, width=8)])
    print(f"WER on {len(x)} test strings, {np.sum(labels > 0)} digits: best path {word_error_rate(read, labels):.4f}")
    print(f"WER by beam search: {word_error_rate(beams, labels):.4f}")
    stream, streamed = model.stream(), []
    for sound in x[:50]:
        pieces = [stream(piece) for piece in np.split(sound, range(1000, LENGTH, 1000))]
        streamed += texts(lm.models.greedy(np.concatenate([*pieces, stream.finish()], axis=1)))
    print(
        f"streamed in pieces of 1/8 s, of 50 strings {np.sum([a == b for a, b in zip(streamed, read)])} read the same"
    )


if __name__ == "__main__":
    main()
