"""`python -m side_by_side.sharding.wire TINY`: bytes that a step sends, as compiled and by formula, as JSON.

On the devices of this process; nothing is run.
"""

import json
import sys
from typing import Any

import jax

import llmasos_xla as lm
from llmasos_xla.models import DecoderConfig
from llmasos_xla.sharding import MeshSpec, Placement
from llmasos_xla.sharding.planning.collectives import sent_by_axes
from llmasos_xla.sharding.planning.formula import messages

TIME = 64
CASES = [
    *(("mlp", strategy) for strategy in ("data", "fsdp", "tensor")),
    *(("decoder", strategy) for strategy in ("data", "fsdp", "tensor", "seq", "pipe")),
    ("experts", "expert"),
]
"""Model, strategy over all devices."""
TINY = CASES[:3]


def model(kind: str, devices: int, tiny: bool) -> lm.Sequential:
    """A model that divides over so many devices in every way."""
    small = 4 if tiny else 1
    if kind == "mlp":
        units = 1024 // small
        layers = [lm.layers.Dense(units, activation="relu", input_shape=(784,)), lm.layers.Dense(units)]
        layers.append(lm.layers.Dense(16))
    else:
        experts = devices if kind == "experts" else 0
        config = DecoderConfig(256, 128 // small, devices, devices, hidden_dim=384 // small, experts=experts)
        layers = list(config.layers())
    made = lm.Sequential(layers)
    made.compile("adam", "sparse_categorical_crossentropy", metrics=[])
    return made


def counted(kind: str, strategy: str, tiny: bool) -> dict[str, Any]:
    """Bytes that each device sends in a step, by the axes of the mesh."""
    devices = jax.device_count()
    made, spec, rows = model(kind, devices, tiny), MeshSpec.of(strategy).over(devices), 2 * devices
    time = None if kind == "mlp" else TIME
    found: dict[str, Any] = {"model": kind, "strategy": strategy}
    placement = Placement(spec, spec.mesh(), made.learner.spec.stacked)
    by_formula = messages(made.variables.params, placement, rows * (time or 1))
    found["formula"] = sent_by_axes(by_formula)
    (row,) = lm.plan(made, rows, shard=spec, time=time).rows
    if not row.compiled:
        return {**found, "failed": f"not compiled: {row.why}"}
    return {**found, "compiled": dict(row.sent)}


def main(tiny: str) -> None:
    small = bool(int(tiny))
    rows = [counted(kind, strategy, small) for kind, strategy in (TINY if small else CASES)]
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main(*sys.argv[1:])
