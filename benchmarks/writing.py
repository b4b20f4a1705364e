"""Times texts that a server writes for several readers at once, beside `lm.generate` alone and for all in one batch.

python benchmarks/writing.py                                 # both models, some minutes
python benchmarks/writing.py --models small --clients 1 8
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import machine, report

import llmasos_xla as lm

_CLIENT = Path(__file__).resolve().parent / "side_by_side" / "serving" / "texts.py"
MODELS = {
    "small": lambda: lm.models.llama(vocab=512, width=256, depth=6, heads=8, kv_heads=4, hidden=688, longest=1024),
    "gpt2": lm.models.gpt2,
}
_PROMPT, _NEW = 24, 64


def main() -> None:
    options = _options()
    about = {**machine.describe(), "rounds": options.rounds}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, machine.Others(os.getpid(), children=True) as others:
        for name in options.models:
            found[name] = _timed(name, Path(folder), options)
    about["busy"] = others.cores
    if options.json:
        options.json.write_text(json.dumps({"about": about, "models": found}, indent=1) + "\n")
    print(_text(about, found))


def _timed(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Ids a second by number of clients, a list a round; and of `lm.generate`."""
    model = MODELS[name]()
    # Weights are drawn, so that any text is as good as another: each id is a character.
    letters = (chr(i) for i in range(0x100, 0x110000) if not 0xD800 <= i < 0xE000)
    model.tokenizer = lm.data.tokenizers.Characters("".join(next(letters) for _ in range(model.config.vocab)))
    model.save(folder / f"{name}.safetensors")
    rows = np.random.default_rng(0).integers(0, model.config.vocab, (max(options.clients), _PROMPT)).tolist()
    rates: dict[str, list[float]] = {}
    first: dict[int, list[float]] = {clients: [] for clients in options.clients}
    between: dict[int, list[float]] = {clients: [] for clients in options.clients}
    with lm.Deployer(folder / f"{name}.safetensors").deploy(wait=False) as server:
        body = {"model": server.name, "prompt": rows[0], "max_tokens": _NEW, "temperature": 0.8}
        plan = {"host": "127.0.0.1", "port": server.port, "path": "/v1/completions", "body": body}
        for clients in options.clients:
            # Programs for more rows are compiled beside those that write: until they are there, and then some.
            for _ in range(2):
                _load({**plan, "clients": clients, "seconds": options.seconds})
        for _ in range(options.rounds):
            for clients in options.clients:
                seen = _load({**plan, "clients": clients, "seconds": options.seconds})
                wrong = {text["status"] for text in seen["texts"]} - {"200"}
                assert not wrong, wrong
                rates.setdefault(f"server, {clients}", []).append(_rate(seen))
                first[clients] += [text["times"][0] for text in seen["texts"]]
                between[clients] += [b - a for t in seen["texts"] for a, b in zip(t["times"], t["times"][1:])]
            for count in (1, max(options.clients)):
                rates.setdefault(f"lm.generate, {count}", []).append(_alone(model, rows[:count], options.seconds))
        written = server.stats()["writing"]
    return {"rates": rates, "first": first, "between": between, "written": written}


def _alone(model: Any, rows: list[list[int]], seconds: float) -> float:
    """Ids a second of `lm.generate` in this process, as often as it can."""

    def once(seed: int) -> int:
        texts = lm.generate(model, rows, max_new_tokens=_NEW, temperature=0.8, seed=seed, tokenizer=None)
        return sum(map(len, texts))

    once(0)
    began, ids, turn = time.perf_counter(), 0, 0
    while time.perf_counter() - began < seconds:
        turn += 1
        ids += once(turn)
    return ids / (time.perf_counter() - began)


def _load(plan: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(_CLIENT)], input=json.dumps(plan), stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def _rate(seen: dict[str, Any]) -> float:
    return sum(text["ids"] for text in seen["texts"]) / seen["seconds"]


def _text(about: dict[str, Any], found: dict[str, Any]) -> str:
    lines = [report.head(about, [], about["busy"]), ""]
    lines += [
        report.cells("model", "who, clients", "ids/s", "first piece, ms: p50", "p99", "between pieces: p50", "p99")
    ]
    lines += [report.cells(*["---"] * 7)]
    for name, each in found.items():
        for who, rates in each["rates"].items():
            clients = int(who.rpartition(" ")[2])
            columns = []
            if who.startswith("server"):
                for times in (each["first"][clients], each["between"][clients]):
                    columns += [report.number(1e3 * float(q)) for q in np.quantile(times, (0.5, 0.99))]
            lines.append(
                report.cells(name, who, report.number(statistics.median(rates)), *columns, *[""] * (4 - len(columns)))
            )
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement (6)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write what was found there, too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
