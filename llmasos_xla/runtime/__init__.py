"""The operating layer: jobs by priority and need on the machines that are there, and what the machines do.

jobs         what somebody submits, and what has become of it
store        the queue in SQLite: whatever is killed finds it as it was
home         the folder where all of this is kept
locks        which end with whoever holds them
supervisor   looks at jobs and machines, asks the planner, has launchers act
endings      what becomes of a job whose processes have ended
needs        the bytes of jobs: said, asked for, or seen; and who goes where there are too many
launchers    how jobs get processes
engine       the process that the supervisor lives in; service: whether there is one, and how it comes and goes
client       submit, wait, result; commands: the same from a shell; call: runs a function that was submitted

tuning       `lm.runtime.tune()`: a search for hyper-parameters whose trials are jobs
space        what it may try
searching    its loop: asks optuna, submits, listens, prunes; objective: what a trial's job runs

view         the queue and its machine at one moment; viewer: looks again and again
top          `llmasos top`: the view in a terminal
web          the engine's page: the view in a browser; guard: who may look, and who may change things

planner      `plan(claims, nodes, rules)`: how many devices each job gets, and which: a pure function
claims       what it is told and what it answers: `Claim`, `Node`, `Rules`, `Plan`
seats        the devices and bytes of all nodes while a plan is made
reasons      why a job waits, shrinks or grows, in words
simulation   traces of jobs through the planner and through other schedulers
workload     such traces, of stated distributions
backfill     those other schedulers: FIFO, EASY, Slurm's backfill

watching     `lm.runtime.watch()`: a timeline of machine and fit, side by side
monitor      what this machine does, once a second, at next to no cost
figures      the columns of that, and how each is read
gauges       samples for Prometheus
gpus         NVIDIA's GPUs: use, memory, power, heat
jax_memory   the bytes that JAX holds
ring         the newest rows of a table, in memory of a fixed size
timeline     samples as a picture
log          rows as Parquet files
energy       joules of a block of code, and zeus as a source of them

Names are imported when they are first used: a monitor runs in processes that never import JAX.
"""

from typing import TYPE_CHECKING

from llmasos_xla.lazy import lazy

if TYPE_CHECKING:
    from llmasos_xla.runtime.claims import Claim as Claim
    from llmasos_xla.runtime.claims import Node as Node
    from llmasos_xla.runtime.claims import Plan as Plan
    from llmasos_xla.runtime.claims import Rules as Rules
    from llmasos_xla.runtime.client import JobError as JobError
    from llmasos_xla.runtime.client import Submitted as Submitted
    from llmasos_xla.runtime.client import here as here
    from llmasos_xla.runtime.client import queue as queue
    from llmasos_xla.runtime.client import report as report
    from llmasos_xla.runtime.client import submit as submit
    from llmasos_xla.runtime.energy import measure as measure
    from llmasos_xla.runtime.monitor import Monitor as Monitor
    from llmasos_xla.runtime.planner import plan as plan
    from llmasos_xla.runtime.space import choice as choice
    from llmasos_xla.runtime.space import integers as integers
    from llmasos_xla.runtime.space import loguniform as loguniform
    from llmasos_xla.runtime.space import uniform as uniform
    from llmasos_xla.runtime.tuning import Study as Study
    from llmasos_xla.runtime.tuning import Trial as Trial
    from llmasos_xla.runtime.tuning import tune as tune
    from llmasos_xla.runtime.watching import Watch as Watch
    from llmasos_xla.runtime.watching import watch as watch

_HOMES = {
    "Claim": "claims",
    "JobError": "client",
    "Monitor": "monitor",
    "Node": "claims",
    "Plan": "claims",
    "Rules": "claims",
    "Study": "tuning",
    "Submitted": "client",
    "Trial": "tuning",
    "Watch": "watching",
    "choice": "space",
    "here": "client",
    "integers": "space",
    "loguniform": "space",
    "measure": "energy",
    "plan": "planner",
    "queue": "client",
    "report": "client",
    "submit": "client",
    "tune": "tuning",
    "uniform": "space",
    "watch": "watching",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = lazy(__name__, _HOMES)
