"""Predicted against measured memory of training on the CPU: a fresh process a line.

python benchmarks/memory.py                       # steps and whole fits of an MLP, a CNN and an LSTM
python benchmarks/memory.py --rows mlp-2048 --modes step --steps 30
python benchmarks/memory.py --mmap-threshold 131072   # with an allocator that gives freed blocks back at once

A step's line runs the compiled program on arrays that are there; a fit's line calls `fit`, which holds the state twice
(what the user had before stays alive) and a few batches on their way. Measured is the growth of the process's resident
memory from before the arrays to its peak (VmHWM), after a small model of the same layers has loaded all code.
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from typing import Any

ROWS = {
    "mlp-256": ("mlp", 256),
    "mlp-2048": ("mlp", 2048),
    "cnn-128": ("cnn", 128),
    "cnn-512": ("cnn", 512),
    "lstm-128": ("lstm", 128),
    "lstm-512": ("lstm", 512),
}
MB = 1e6
UNDER_WAY = 8
"""Batches that a fit holds beside the step's own: read ahead, encoded, handed over, in dispatches under way."""


def model(kind: str, small: bool = False) -> Any:
    from llmasos_xla import Sequential, layers

    wide = 8 if small else 1
    if kind == "mlp":
        parts = [layers.Dense(4096 // wide, activation="relu") for _ in range(2)]
    elif kind == "cnn":
        parts = []
        for features in (32, 64):
            parts += [
                layers.Conv2D(features, 3, activation="relu"),
                layers.BatchNormalization(),
                layers.MaxPooling2D(2),
            ]
        parts += [layers.Flatten(), layers.Dense(256 // wide, activation="relu")]
    else:
        parts = [layers.LSTM(512 // wide, return_sequences=True), layers.LSTM(512 // wide)]
    net = Sequential([*parts, layers.Dense(10, activation="softmax")])
    net.compile("adam", "sparse_categorical_crossentropy")
    net.learner.build(SHAPES[kind])
    return net


SHAPES = {"mlp": (784,), "cnn": (64, 64, 3), "lstm": (100, 64)}


def resident(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


def settle() -> int:
    """Resident bytes once all that is free has been given back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return resident("VmRSS")


def forget_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def measure(kind: str, batch_size: int, mode: str, steps: int) -> dict[str, float]:
    import jax
    import numpy as np

    from llmasos_xla import plan
    from llmasos_xla.api.planning import step_of
    from llmasos_xla.compiling import compiler_options
    from llmasos_xla.sharding import MeshSpec, Placement
    from llmasos_xla.sharding.memory import device_bytes
    from llmasos_xla.sharding.topology import topology

    shape = SHAPES[kind]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch_size * (steps if mode == "fit" else 1), *shape)).astype(np.float32)
    y = rng.integers(0, 10, len(x)).astype(np.int32)
    model(kind, small=True).fit(x[:16], y[:16], epochs=1, batch_size=8, verbose=0, steps_per_dispatch=1)
    net = model(kind)
    row = plan(net, batch_size=batch_size, shard="data").rows[0]
    predicted = row.memory.peak
    if mode == "fit":
        # The weights that `build` made are there before; see the module's first lines.
        base = settle() - device_bytes(net.learner.variables)
        forget_peak()
        net.fit(x, y, epochs=1, batch_size=batch_size, verbose=0, steps_per_dispatch=1)
        return {
            "predicted": predicted,
            "measured": resident("VmHWM") - base,
            "state": state_bytes(row),
            "batch": row.memory.parts["batch"],
        }
    step = step_of(net.learner, topology())
    placement = Placement(MeshSpec(), MeshSpec().mesh())
    program = step.trace(placement, batch_size).lower().compile(compiler_options=compiler_options())
    del net
    base = settle()
    (state, totals, *_), _ = program.in_avals

    def filled(a: Any, value: float) -> Any:
        return jax.device_put(np.full(a.shape, value, a.dtype))

    state = jax.tree.map(lambda a: filled(a, 1e-3), state)
    totals = jax.tree.map(lambda a: filled(a, -1 if a.dtype == np.int32 else 0), totals)
    key = jax.random.key(0)
    weight, count = np.ones((1, batch_size), np.float32), np.int32([batch_size])
    group = {"x": x[None], "y": y[None], "weight": weight, "count": count}
    # The host's batch was there before the arrays: it counts as the step's.
    base -= x.nbytes
    settle()
    forget_peak()
    for _ in range(steps):
        state, totals = program(state, totals, group, np.int32(1), key)
        jax.block_until_ready(state)
    return {
        "predicted": predicted,
        "measured": resident("VmHWM") - base,
        "state": state_bytes(row),
        "batch": row.memory.parts["batch"],
    }


def state_bytes(row: Any) -> int:
    return row.memory.parts["weights"] + row.memory.parts["optimizer"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--modes", nargs="+", choices=("step", "fit"), default=["step", "fit"])
    parser.add_argument("--steps", type=int, default=12, help="steps to run; glibc's arenas have grown after some ten")
    parser.add_argument("--mmap-threshold", type=int, help="bytes from which on glibc returns freed blocks")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, batch_size = ROWS[options.child[0]]
        print(json.dumps(measure(kind, batch_size, options.child[1], options.steps)))
        return
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    if options.mmap_threshold:
        environment["MALLOC_MMAP_THRESHOLD_"] = str(options.mmap_threshold)
    print("| row | what | predicted MB | measured MB | measured / predicted |\n|---|---|---:|---:|---:|")
    for name in options.rows:
        for mode in options.modes:
            command = [sys.executable, __file__, "--steps", str(options.steps), "--child", name, mode]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{name} {mode}: {done.stderr[-2000:]}")
            found = json.loads(done.stdout.splitlines()[-1])
            predicted = found["predicted"]
            if mode == "fit":
                predicted += found["state"] + UNDER_WAY * found["batch"]
            measured = found["measured"]
            cells = name, mode, f"{predicted / MB:.0f}", f"{measured / MB:.0f}", f"{measured / predicted:.2f}"
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
