"""`python -m side_by_side.sharding.saves MEGABYTES GAP ROUNDS`: how long checkpoints hold a fit up, as JSON.

In each round a fit without checkpoints and one that saves every GAP seconds or so, on one device; the first round and
each fit's first epoch do not count. Checkpoints go to the folder of temporary files (TMPDIR).
"""

import json
import math
import sys
import tempfile

import numpy as np

import llmasos_xla as lm

_BATCH, _FEATURES, _SAVES = 64, 64, 3


def main(megabytes: str, gap: str, rounds: str) -> None:
    # Adam keeps three numbers for each weight: 12 (units^2 + 76 units) bytes.
    units = int(math.sqrt(float(megabytes) * 1e6 / 12 + 38**2) - 38)
    rng = np.random.default_rng(0)
    model = lm.Sequential(
        [
            lm.layers.Dense(units, activation="relu", input_shape=(_FEATURES,)),
            lm.layers.Dense(units),
            lm.layers.Dense(10),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=[])

    def data(steps: int) -> tuple[np.ndarray, np.ndarray]:
        rows = steps * _BATCH
        return rng.normal(size=(rows, _FEATURES)).astype(np.float32), rng.integers(0, 10, rows).astype(np.int32)

    def fitted(x: np.ndarray, y: np.ndarray, checkpoint: lm.Checkpoint | None = None) -> lm.training.history.History:
        return model.fit(x, y, epochs=2, batch_size=_BATCH, verbose=0, steps_per_dispatch=1, checkpoint=checkpoint)

    probe = 20
    every = max(2, math.ceil(float(gap) * probe / fitted(*data(probe)).seconds[1]))
    steps = every * _SAVES + every // 2
    x, y = data(steps)
    plain, saving, held_up = [], [], []
    for _ in range(int(rounds) + 1):
        plain.append(fitted(x, y).seconds[1] / steps)
        with tempfile.TemporaryDirectory() as folder:
            options = lm.Checkpoint(folder, every_steps=every, every_epochs=None, every_seconds=None)
            history = fitted(x, y, options)
        saving.append(history.seconds[1] / steps)
        # The last one is the fit's end, which is not held up by it.
        first = history.saves[-1][0] - steps
        held_up.append([seconds for step, seconds in history.saves[:-1] if step > first])
    state = model.learner.training_state
    assert state is not None
    size = sum(a.nbytes for a in (*state.variables.params.values(), *_leaves(state.optimizer)))
    found = {"bytes": size, "every": every, "plain": plain[1:], "saving": saving[1:], "held_up": held_up[1:]}
    print(json.dumps(found))


def _leaves(tree: object) -> list:
    import jax

    return jax.tree.leaves(tree)


if __name__ == "__main__":
    main(*sys.argv[1:])
