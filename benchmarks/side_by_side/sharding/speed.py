"""Step times: all layouts of a model alive at a time, and taking turns."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence

from side_by_side.process import NoSpeedError
from side_by_side.sharding.layouts import Layout
from side_by_side.sharding.models import KINDS
from side_by_side.sharding.world import World
from side_by_side.turns import turns

# Of the loss of the first epoch on one device: what sums in another order may make of it.
_LOSS_TOLERANCE = 1e-3


@dataclasses.dataclass
class Result:
    """What one layout took.

    Attributes:
        steps: milliseconds a step, by round.
        loss: of the first epoch.
        others: cores that other processes kept busy, by round.
        failed: why there is no speed, or "".
    """

    steps: list[float] = dataclasses.field(default_factory=list)
    loss: float = float("nan")
    others: list[float] = dataclasses.field(default_factory=list)
    failed: str = ""


def compete(
    kind: str, layouts: Sequence[Layout], rounds: int, tiny: bool, say: Callable[[str], None]
) -> dict[Layout, Result]:
    """Times the layouts, the first of which says what the loss should be.

    In each round each runs an epoch that does not count, and one that does; who begins moves on by one.
    """
    steps = 2 if tiny else KINDS[kind].steps
    found = {layout: Result() for layout in layouts}
    with contextlib.ExitStack() as stack:
        worlds: dict[Layout, World] = {}
        for layout in layouts:
            worlds[layout] = World(kind, layout, tiny)
            stack.callback(worlds[layout].close)

        def tried(layout: Layout, todo: Callable[[World, Result], None]) -> None:
            if found[layout].failed:
                return
            try:
                todo(worlds[layout], found[layout])
            except NoSpeedError as failure:
                found[layout].failed = str(failure)
                say(f"{kind}, {layout}: {failure}")

        def start(world: World, result: Result) -> None:
            world.ready()
            result.loss = world.epoch().loss
            wanted = found[layouts[0]].loss
            # Written so that a loss that is not a number fails too.
            if not abs(result.loss - wanted) <= _LOSS_TOLERANCE * abs(wanted):
                raise NoSpeedError(f"wrong: a loss of {result.loss:.6g} where one device has {wanted:.6g}")

        def measure(world: World, result: Result) -> None:
            world.epoch()
            epoch = world.epoch()
            result.steps.append(1e3 * epoch.seconds / steps)
            result.others.append(epoch.others)

        for layout in layouts:
            tried(layout, start)
        for number in range(rounds):
            say(f"{kind}: round {number + 1} of {rounds}")
            for layout in turns(list(layouts), number):
                tried(layout, measure)
    return found
