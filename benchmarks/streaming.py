"""Times networks on sound that comes chunk by chunk: by how much of real time, and whether a late chunk costs more.

python benchmarks/streaming.py                    # all: ten minutes of sound through each, some minutes
python benchmarks/streaming.py --rows silero_vad --minutes 1
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from side_by_side import machine, report

import llmasos_xla as lm
from llmasos_xla.models.streaming import streaming

ROWS = {
    "silero_vad": {},
    "ctc_lstm": {"vocab": 29},
    "ctc_gru": {"vocab": 29},
    "conformer_small": {"vocab": 29},
    "conformer_medium": {"vocab": 29},
}
_RATE = 16000
_ALLOWED = 2e-4
_EDGE = 20
"""Chunks at either end that count as the first and the last."""


def main() -> None:
    options = _options()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    about = {**machine.describe(), "rounds": options.turns, "minutes": options.minutes}
    with machine.Others(os.getpid()) as others:
        rows = {name: _timed(name, options) for name in options.rows}
    about["busy"] = others.cores
    if options.json:
        options.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    print(_table(about, rows))
    if any(not row["same"] for row in rows.values()):
        sys.exit(1)


def _timed(name: str, options: argparse.Namespace) -> dict:
    model = getattr(lm.models, name)(**ROWS[name])
    config, chunk = model.config, model.config.chunk
    chunks = int(options.minutes * 60 * _RATE / chunk)
    print(f"{name}: {chunks} chunks of {chunk / _RATE:.3f} s", file=sys.stderr, flush=True)
    sound = _sound(chunks * chunk)
    deviation = _deviation(model, sound[: max(12 * _RATE // chunk, 2) * chunk])
    stream, seconds = model.stream(), []
    stream(sound[:chunk])
    stream.reset()
    for start in range(0, len(sound), chunk):
        began = time.perf_counter()
        stream(sound[start : start + chunk])
        seconds.append(time.perf_counter() - began)
    first, last = _in_turns(config, model.variables, stream._state, sound[:chunk], options.turns)
    return {
        "deviation": deviation,
        "same": bool(deviation <= _ALLOWED),
        "parameters": sum(a.size for a in model.variables.params.values()),
        "chunk": chunk / _RATE,
        "real_time_factor": sum(seconds) / (len(sound) / _RATE),
        "median": float(np.median(seconds)),
        "worst": float(np.quantile(seconds, 0.99)),
        "last_to_first": float(np.median(seconds[-_EDGE:]) / np.median(seconds[:_EDGE])),
        "last_to_first_in_turns": float(np.median(np.divide(last, first))),
    }


def _deviation(model: lm.models.Config, sound: np.ndarray) -> float:
    """The largest difference between the streamed outputs and those of the whole, by the largest output."""
    whole = np.asarray(model(sound[None]))
    stream = model.stream()
    streamed = np.concatenate([stream(sound), stream.finish()], axis=1)
    return float(np.abs(streamed - whole).max() / np.abs(whole).max())


def _in_turns(config, variables, late, sound: np.ndarray, turns: int) -> tuple[list[float], list[float]]:
    """Seconds of one chunk from the first state and from that after all of the sound, in turns."""
    step, x = jax.jit(streaming(config)), jnp.asarray(sound[None])
    states, found = (config.stream_state(1), late), ([], [])
    for turn in range(turns + 5):
        for side in (0, 1) if turn % 2 else (1, 0):
            began = time.perf_counter()
            jax.block_until_ready(step(variables, x, states[side]))
            if turn >= 5:
                found[side].append(time.perf_counter() - began)
    return found


def _sound(samples: int) -> np.ndarray:
    """Noise whose loudness and color change, a tenth of full scale."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(samples).astype(np.float32)
    x[1:] += 0.9 * x[:-1]
    return x * (0.05 + 0.05 * np.sin(np.arange(samples) / 5000)).astype(np.float32)


def _table(about: dict, rows: dict) -> str:
    titles = (
        "row",
        "parameters",
        "chunk s",
        "ms a chunk",
        "99 of 100 below",
        "of real time",
        "last / first",
        "in turns",
    )
    lines = [report.head(about, [{"jax": jax.__version__}], about["busy"]), "", report.cells(*titles)]
    lines.append(report.cells("---", *["---:"] * (len(titles) - 1)))
    for name, row in rows.items():
        values = (1e3 * row["median"], 1e3 * row["worst"], row["real_time_factor"])
        told = [f"{row['parameters']:,}", report.number(row["chunk"]), *map(report.number, values)]
        told += [report.times(row["last_to_first"]), report.times(row["last_to_first_in_turns"])]
        if not row["same"]:
            told = [f"red: streamed and whole differ by {row['deviation']:.1e}"]
        lines.append(report.cells(name, *told))
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--minutes", type=float, default=10.0, help="of sound")
    parser.add_argument(
        "--turns", type=int, default=200, help="chunks timed from the first and the last state in turns"
    )
    parser.add_argument("--threads", type=int, help="cores to use; default: all that this process may use")
    parser.add_argument(
        "--json", nargs="?", type=Path, const=Path(f"benchmarks/results/streaming-{machine.slug()}.json")
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
