"""The operating layer: jobs by priority and need on the machines that are there, and what the machines do.

planner      `plan(claims, nodes, rules)`: how many devices each job gets, and which: a pure function
claims       what it is told and what it answers: `Claim`, `Node`, `Rules`, `Plan`
seats        the devices and bytes of all nodes while a plan is made
reasons      why a job waits, shrinks or grows, in words
simulation   traces of jobs through the planner and through other schedulers
workload     such traces, of stated distributions
backfill     those other schedulers: FIFO, EASY, Slurm's backfill

Names are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmasos_xla.runtime.claims import Claim as Claim
    from llmasos_xla.runtime.claims import Node as Node
    from llmasos_xla.runtime.claims import Plan as Plan
    from llmasos_xla.runtime.claims import Rules as Rules
    from llmasos_xla.runtime.planner import plan as plan

_HOMES = {"Claim": "claims", "Node": "claims", "Plan": "claims", "Rules": "claims", "plan": "planner"}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
