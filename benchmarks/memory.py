"""Predicted against measured memory of training on the CPU: a fresh process a line.

python benchmarks/memory.py                       # whole fits, and a batch size that the plan chooses
python benchmarks/memory.py --rows mlp-2048 --modes step fit --steps 30
python benchmarks/memory.py --mmap-threshold 131072   # with an allocator that gives freed blocks back at once

Measured is the growth of the process's resident memory from before the arrays to its peak (VmHWM), after a small model
of the same layers has loaded all code; the rows that a fit reads are there before. A line "fit" sets that against
`lm.plan`'s peak of a step. A line "auto" lets the plan choose the batch for so much memory (`--limit`), and sets what
its fit took against that. A line "step" runs the compiled program alone, on arrays that are there. On rows marked *
the constant of `sharding/planning/memory.py` was found; it had not seen the others.
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
    "mlp-256*": ("mlp", 256),
    "mlp-2048*": ("mlp", 2048),
    "cnn-128*": ("cnn", 128),
    "cnn-512*": ("cnn", 512),
    "lstm-128*": ("lstm", 128),
    "lstm-512*": ("lstm", 512),
    "deep-1024": ("deep", 1024),
    "plain-256": ("plain", 256),
    "gru-256": ("gru", 256),
    "decoder-32": ("decoder", 32),
    "decoder-128": ("decoder", 128),
}
SHAPES = {
    "mlp": (784,), "cnn": (64, 64, 3), "lstm": (100, 64),
    "deep": (256,), "plain": (32, 32, 3), "gru": (60, 40), "decoder": (128,),
}  # fmt: skip
VOCABULARY = 512
MB = 1e6


def model(kind: str, small: bool = False) -> Any:
    from llmasos_xla import Sequential, layers
    from llmasos_xla.models import DecoderConfig

    wide = 8 if small else 1
    head = [layers.Dense(10, activation="softmax")]
    if kind == "mlp":
        parts = [layers.Dense(4096 // wide, activation="relu") for _ in range(2)]
    elif kind == "deep":
        parts = [layers.Dense(1024 // wide, activation="relu") for _ in range(12)]
    elif kind == "cnn":
        parts = []
        for features in (32, 64):
            parts += [
                layers.Conv2D(features, 3, activation="relu"),
                layers.BatchNormalization(),
                layers.MaxPooling2D(2),
            ]
        parts += [layers.Flatten(), layers.Dense(256 // wide, activation="relu")]
    elif kind == "plain":
        parts = [layers.Conv2D(96, 3, padding="same", activation="relu") for _ in range(4)]
        parts += [layers.GlobalAveragePooling2D()]
    elif kind == "decoder":
        config = DecoderConfig(VOCABULARY, 512 // wide, 6, 8)
        parts, head = list(config.layers()), []
    else:
        layer = layers.LSTM if kind == "lstm" else layers.GRU
        units = (512 if kind == "lstm" else 384) // wide
        parts = [layer(units, return_sequences=True), layer(units)]
    net = Sequential([*parts, *head])
    net.compile("adam", "sparse_categorical_crossentropy")
    net.learner.build(SHAPES[kind])
    return net


def rows(kind: str, count: int) -> tuple[Any, Any]:
    import numpy as np

    rng = np.random.default_rng(0)
    if kind == "decoder":
        tokens = rng.integers(0, VOCABULARY, (count, *SHAPES[kind])).astype(np.int32)
        return tokens, tokens
    x = rng.normal(size=(count, *SHAPES[kind])).astype(np.float32)
    return x, rng.integers(0, 10, count).astype(np.int32)


def time(kind: str) -> int | None:
    """Steps of a sequence whose length the model leaves open."""
    return SHAPES[kind][0] if kind == "decoder" else None


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


def measure(kind: str, batch_size: int, mode: str, steps: int, limit: float) -> dict[str, float]:
    from llmasos_xla import plan

    model(kind, small=True).fit(*rows(kind, 16), epochs=1, batch_size=8, verbose=0, steps_per_dispatch=1)
    net = model(kind)
    if mode == "auto":
        from llmasos_xla.sharding.planning.hardware import usable
        from llmasos_xla.sharding.planning.topology import topology

        chosen = plan(net, "auto", shard="data", time=time(kind), margin=1 - limit / usable(topology().hardware))
        row = next(row for row in chosen.rows if row.compiled)
        return {**fitted(net, kind, row, chosen.batch_size, steps), "batch_size": chosen.batch_size, "predicted": limit}
    row = plan(net, batch_size=batch_size, shard="data", time=time(kind)).rows[0]
    found = {"batch_size": batch_size, "predicted": row.memory.peak}
    if mode == "fit":
        return {**fitted(net, kind, row, batch_size, steps), **found}
    return {**found, **stepped(net, kind, batch_size, steps)}


def fitted(net: Any, kind: str, row: Any, batch_size: int, steps: int) -> dict[str, float]:
    """What `fit` takes; the weights that `build` made are there before."""
    x, y = rows(kind, batch_size * steps)
    base = settle() - row.memory.parts["weights"]
    forget_peak()
    net.fit(x, y, epochs=1, batch_size=batch_size, verbose=0, steps_per_dispatch=1)
    return {"measured": resident("VmHWM") - base}


def stepped(net: Any, kind: str, batch_size: int, steps: int) -> dict[str, float]:
    """What the compiled program takes; no batch is under way but its own."""
    import jax
    import numpy as np

    from llmasos_xla.api.planning import step_of
    from llmasos_xla.compiling import compiler_options
    from llmasos_xla.sharding import MeshSpec, Placement
    from llmasos_xla.sharding.planning.memory import device_bytes
    from llmasos_xla.sharding.planning.topology import topology

    x, y = rows(kind, batch_size)
    step = step_of(net.learner, topology(), time(kind))._replace(under_way=0)
    program = step.trace(Placement(MeshSpec(), MeshSpec().mesh()), batch_size).lower()
    program = program.compile(compiler_options=compiler_options())
    del net
    (state, totals, *_), _ = program.in_avals

    def filled(a: Any, value: float) -> Any:
        return jax.device_put(np.full(a.shape, value, a.dtype))

    # The host's batch was there before the arrays: it counts as the step's.
    base = settle() - x.nbytes
    state = jax.tree.map(lambda a: filled(a, 1e-3), state)
    totals = jax.tree.map(lambda a: filled(a, -1 if a.dtype == np.int32 else 0), totals)
    key = jax.random.key(0)
    weight, count = np.ones((1, batch_size), np.float32), np.int32([batch_size])
    group = {"x": x[None], "y": y[None], "weight": weight, "count": count}
    settle()
    forget_peak()
    for _ in range(steps):
        state, totals = program(state, totals, group, np.int32(1), key)
        jax.block_until_ready(state)
    waiting = step_of(model(kind).learner, topology(), time(kind)).under_way * device_bytes(step.batch(batch_size))
    return {"measured": resident("VmHWM") - base, "not_here": waiting}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--modes", nargs="+", choices=("step", "fit", "auto"), default=["fit", "auto"])
    parser.add_argument("--steps", type=int, default=12, help="steps to run; glibc's arenas have grown after some ten")
    parser.add_argument("--limit", type=float, default=1.5e9, help="bytes for which the plan chooses a batch")
    parser.add_argument("--mmap-threshold", type=int, help="bytes from which on glibc returns freed blocks")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, mode = options.child
        print(json.dumps(measure(*ROWS[name], mode, options.steps, options.limit)))
        return
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    if options.mmap_threshold:
        environment["MALLOC_MMAP_THRESHOLD_"] = str(options.mmap_threshold)
    print("| row | what | batch | predicted MB | measured MB | measured / predicted |\n|---|---|---:|---:|---:|---:|")
    seen = set()
    for name in options.rows:
        for mode in options.modes:
            # A batch that the plan chooses is the model's, whatever the row's.
            if mode == "auto" and ROWS[name][0] in seen:
                continue
            seen |= {ROWS[name][0]} if mode == "auto" else set()
            command = [sys.executable, __file__, "--steps", str(options.steps), "--limit", str(options.limit)]
            done = subprocess.run([*command, "--child", name, mode], env=environment, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{name} {mode}: {done.stderr[-2000:]}")
            found = json.loads(done.stdout.splitlines()[-1])
            predicted, measured = found["predicted"] - found.get("not_here", 0), found["measured"]
            cells = name, mode, found["batch_size"], f"{predicted / MB:.0f}", f"{measured / MB:.0f}"
            print(f"| {' | '.join(map(str, cells))} | {measured / predicted:.2f} |", flush=True)


if __name__ == "__main__":
    main()
