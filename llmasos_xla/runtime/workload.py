"""Jobs for simulations, of stated distributions, and how they go on over time.

Sizes, lengths and time limits have the shapes that studies of clusters report, not their figures: most jobs are small
and short, most device-hours are the others' (Hu et al. 2021, arXiv:2109.01313); time limits are several times too long
(Mu'alem and Feitelson 2001, IEEE TPDS 12(6)).
"""

import dataclasses
import math
import random

CLASSES = {0: 0.6, 5: 0.3, 10: 0.1}
"""Priorities, and the share of jobs that have them."""
USERS = {"ann": 0.5, "bob": 0.25, "eve": 0.15, "dan": 0.1}
"""Users, and the share of jobs that are theirs."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A job of a simulation.

    Attributes:
        name: unlike any other's.
        arrival: seconds at which it is submitted.
        asked: devices that it gets from schedulers that give fixed sizes.
        sizes: devices that it can run on, `asked` among them.
        seconds: how long it computes on `asked` devices.
        limit: the time limit that its user states, in seconds of computing on `asked` devices.
        priority: its points.
        user: whose it is.
        power: on k devices it computes k ** power times as fast as on one.
    """

    name: str
    arrival: float
    asked: int
    sizes: tuple[int, ...]
    seconds: float
    limit: float
    priority: int = 0
    user: str = ""
    power: float = 0.9

    def pace(self, size: int) -> float:
        """How fast it computes on so many devices; 1 on `asked`."""
        return (size / self.asked) ** self.power


def workload(
    jobs: int,
    devices: int,
    *,
    seed: int,
    load: float = 1.3,
    elastic: float = 0.6,
    median: float = 900.0,
    spread: float = 1.5,
) -> list[Job]:
    """Jobs in the order of their arrival.

    - Devices: powers of two up to half of all, from a 64th of all on; each 0.7 times as likely as the one before.
    - Seconds: log-normal of that median, `spread` the standard deviation of their logarithm; at least 30 s and at most
      20 times the median.
    - Time limits: the seconds times a factor between 1.2 and 10, its logarithm uniform.
    - Elastic jobs run on a quarter of their devices to four times as many; the others on as many as they ask for.
    - Arrivals: uniform over the time in which that many devices do all the work, divided by `load`.

    >>> one, two = workload(2, 8, seed=0)
    >>> one.arrival <= two.arrival and one.asked in one.sizes
    True
    """
    rng = random.Random(seed)
    most = max(devices // 2, 1).bit_length() - 1
    exponents = range(max(most - 5, 0), most + 1)
    drawn = []
    for i in range(jobs):
        asked = 2 ** rng.choices(exponents, [0.7**i for i in exponents])[0]
        seconds = min(max(median * math.exp(rng.gauss(0.0, spread)), 30.0), 20 * median)
        drawn.append(
            Job(
                name=f"job{i:03}",
                arrival=0.0,
                asked=asked,
                sizes=_elastic(asked, devices) if rng.random() < elastic else (asked,),
                seconds=seconds,
                limit=seconds * 1.2 * (10 / 1.2) ** rng.random(),
                priority=rng.choices(list(CLASSES), list(CLASSES.values()))[0],
                user=rng.choices(list(USERS), list(USERS.values()))[0],
            )
        )
    window = sum(job.seconds * job.asked for job in drawn) / devices / load
    arrivals = sorted(rng.uniform(0.0, window) for _ in drawn)
    return [dataclasses.replace(job, arrival=arrival) for job, arrival in zip(drawn, arrivals)]


def _elastic(asked: int, devices: int) -> tuple[int, ...]:
    return tuple(size for i in range(-2, 3) if 1 <= (size := int(asked * 2.0**i)) <= devices and asked * 2.0**i >= 1)
