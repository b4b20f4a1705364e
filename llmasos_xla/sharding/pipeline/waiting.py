"""What a compiled pipeline must not do."""

import re

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_CALLED = re.compile(r"(?:branch_computations|true_computation|false_computation|calls|to_apply|body|condition)=")
_NAME = re.compile(r"%?([\w.-]+)")


def waits_for_all(program: str) -> list[str]:
    """The collective permutes that stand in a branch of a compiled program (`compiled.as_text()`).

    The stages of a pipeline take different branches. Other collectives name groups of devices, which lie within one
    stage; a permute waits for all devices, also for those of other stages, and never ends. XLA makes permutes where an
    axis that lies over several devices is sliced, padded or shifted.
    """
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in program.splitlines():
        if found := _COMPUTATION.match(line):
            lines = computations[found[1]] = []
        else:
            lines.append(line)
    reached: set[str] = set()
    todo = [
        name for body in computations.values() for line in body if " conditional(" in line for name in _called(line)
    ]
    while todo:
        name = todo.pop()
        if name in computations and name not in reached:
            reached.add(name)
            todo += [called for line in computations[name] for called in _called(line)]
    permute = re.compile(r" collective-permute(?:-start)?\(")
    return [line.strip() for name in sorted(reached) for line in computations[name] if permute.search(line)]


def _called(line: str) -> list[str]:
    names = []
    for found in _CALLED.finditer(line):
        rest = line[found.end() :]
        names += _NAME.findall(rest[1 : rest.index("}")]) if rest.startswith("{") else _NAME.findall(rest)[:1]
    return names
