"""Who takes part: an entry of a comparison's table."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One framework as it is used.

    Attributes:
        label: its name in reports.
        module: the module beside its table that does the work.
        variant: what that module is told.
        peer: whether it runs under the peers' Python rather than this project's.
        packages: distributions whose versions are recorded.
        environment: variables that must stand before the framework is imported.
    """

    label: str
    module: str
    variant: str = ""
    peer: bool = True
    packages: tuple[str, ...] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
