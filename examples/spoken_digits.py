"""Spoken digits, FSDD: 8 kHz recordings -> log-mel spectrogram inside of the model -> convolutions -> digit.

    LLMASOS_DATA=FOLDER python examples/spoken_digits.py            # the official test part
    LLMASOS_DATA=FOLDER python examples/spoken_digits.py --held-out # each of the six speakers held out in turn

The official test part is the first five recordings of each digit by each speaker: the same six speakers as in training.
The second figure is harder: the speaker tested was never heard in training.
"""

import sys

import numpy as np
from fsdd import RATE, at_speed, recordings

import llmasos_xla as lm
from llmasos_xla import layers as L  # noqa: N812

LENGTH = 8000
EPOCHS = 30


def placed(sound, offset):
    """The sound, `offset` of the way into LENGTH samples."""
    at = int(offset * max(LENGTH - len(sound), 0))
    return np.pad(sound[:LENGTH], (at, max(LENGTH - at - len(sound), 0)))


class Varied:
    """Recordings and digits, another copy at each look: speed (so pitch) up to a fifth off, moved, scaled, in noise."""

    def __init__(self, sounds, digits):
        self.sounds, self.digits, self.rng = sounds, digits, np.random.default_rng(0)

    def __len__(self):
        return len(self.sounds)

    def __getitem__(self, i):
        speed, gain, noise = np.exp(self.rng.uniform((-0.2, -1, -9), (0.2, 0.5, -4.5))).astype(np.float32)
        x = gain * placed(at_speed(self.sounds[i], speed), self.rng.uniform())
        return x + noise * self.rng.standard_normal(LENGTH, np.float32), self.digits[i]


def network(steps):
    """Four convolutions over time and frequency, then the mean over time."""
    model = [
        L.LogMel(rate=RATE, mels=40, window=200, hop=80, fft_length=256, floor=1e-6, input_shape=(LENGTH,)),
        L.Reshape((-1, 40, 1)),
        L.BatchNormalization(momentum=0.9),
    ]
    for filters in (32, 48, 64, 96):
        model += [L.Conv2D(filters, 3, padding="same", use_bias=False), L.BatchNormalization(momentum=0.9), L.ReLU()]
        model += [L.MaxPooling2D(2)]
    model += [L.Dropout(0.3), L.GlobalAveragePooling2D(), L.Dense(10, activation="softmax")]
    model = lm.Sequential(model, seed=0)
    rate = lm.Schedule("cosine_decay", init_value=3e-3, decay_steps=steps)
    model.compile(lm.Optimizer("adamw", rate, weight_decay=1e-3), metrics=["accuracy"])
    return model


def accuracy(sounds, digits, train, test):
    """Of a network trained on one part, on the other."""
    model = network(EPOCHS * -(-len(train) // 32))
    model.fit(lm.Dataset(Varied([sounds[i] for i in train], digits[train]), normalize=None), epochs=EPOCHS, verbose=0)
    return model.evaluate(np.stack([placed(sounds[i], 0.5) for i in test]), digits[test], verbose=0)["accuracy"]


def main():
    names, sounds = zip(*recordings().items())
    speakers, digits, indices = (np.array(part) for part in zip(*names))
    splits = {
        "validation: recordings 5-9, trained on 10-49": (indices >= 10, (indices >= 5) & (indices < 10)),
        "official test part: recordings 0-4, trained on 5-49": (indices >= 5, indices < 5),
    }
    if "--held-out" in sys.argv[1:]:
        splits = {f"speaker {name} held out": (speakers != name, speakers == name) for name in np.unique(speakers)}
    found = []
    for name, (train, test) in splits.items():
        found.append(accuracy(sounds, digits.astype(np.int32), np.flatnonzero(train), np.flatnonzero(test)))
        print(f"{name}: {found[-1]:.4f} of {test.sum()} recordings", flush=True)
    if len(found) > 2:
        print(f"mean over held-out speakers: {np.mean(found):.4f}")


if __name__ == "__main__":
    main()
