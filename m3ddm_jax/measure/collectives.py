"""What devices exchange in a compiled program, read from its HLO."""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator

_KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
_BITS = re.compile(r"\d+")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = (.*?) ([a-z][\w-]*)\(")
_SLICED = re.compile(r"^\s*ROOT %?[\w.-]+ = (.*?) dynamic-slice\(%?all-reduce")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# Groups of devices: listed, counted, or as axes of a mesh, parts of axes among them.
_LISTED, _COUNTED = re.compile(r"replica_groups=\{\{([\d,]*)\}"), re.compile(r"replica_groups=\[\d+,(\d+)\]")
_MESH, _SIZE = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}"), re.compile(r"('\w+')=(\d+)")
_AXIS = re.compile(r"('\w+')(?::\(\d+\)(\d+))?")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange: its kind, what it moves, between how many devices, and how often a run of the program makes it.

    shapes: of its results on one device, which are `bytes` large together; of an all-reduce what is reduced.
    """

    kind: str
    dtype: str
    shapes: tuple[tuple[int, ...], ...]
    devices: int
    bytes: int
    times: int


def find_collectives(hlo: str) -> list[Collective]:
    """The exchanges of a program (`compiled.as_text()`), those of loops as often as these run.

    A loop of unknown length counts once; of a condition all branches count. An all-reduce in a fusion that keeps the
    device's own part alone, as TPUs have it, is a reduce-scatter.
    """
    computations, entry = _computations(hlo)
    runs = defaultdict(int)

    def visit(name: str, times: int) -> None:
        runs[name] += times
        for line in computations[name]:
            repeats = int(found[1]) if (found := _TRIPS.search(line)) else 1
            for called in _called(line):
                if called in computations:
                    visit(called, times * repeats)

    visit(entry, 1)
    return [
        dataclasses.replace(_scattered(collective, lines), times=runs[name])
        for name, lines in computations.items()
        if runs[name]
        for line in lines
        if (collective := _collective(line))
    ]


def summarise(collectives: list[Collective]) -> dict[str, dict[str, int | float]]:
    """By kind, dtype and number of devices: how many exchanges a run makes, and MiB of their results on one device."""
    rows = defaultdict(lambda: {"times": 0, "MiB": 0.0})
    for one in collectives:
        row = rows[f"{one.kind} {one.dtype} x{one.devices}"]
        row["times"] += one.times
        row["MiB"] += one.times * one.bytes / 2**20
    return dict(sorted(rows.items()))


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation by its name, and the name of the one that is run."""
    computations, entry, lines = {}, "", []
    for line in hlo.splitlines():
        if head := _COMPUTATION.match(line):
            lines = computations[head[2]] = []
            entry = head[2] if head[1] else entry
        else:
            lines.append(line)
    return computations, entry


def _called(line: str) -> Iterator[str]:
    # What reduces two numbers is called too, and exchanges nothing.
    yield from _CALLED.findall(line)
    for branches in _BRANCHES.findall(line):
        yield from (name.strip().lstrip("%") for name in branches.split(","))


def _collective(line: str) -> Collective | None:
    instruction = _INSTRUCTION.match(line)
    kind = instruction[2].removesuffix("-start") if instruction else None
    if kind not in _KINDS:
        return None
    arrays = _arrays(instruction[1])
    if instruction[2] in ("all-gather-start", "collective-permute-start"):
        # Operands come before results, and what keeps track of them behind; those are scalars.
        arrays = [array for array in arrays if array[1]]
        arrays = arrays[len(arrays) // 2 :]
    return Collective(
        kind=kind,
        dtype=arrays[0][0],
        shapes=tuple(shape for _, shape in arrays),
        devices=_group_size(line),
        bytes=sum(math.prod(shape) * _bytes(dtype) for dtype, shape in arrays),
        times=1,
    )


def _scattered(collective: Collective, computation: list[str]) -> Collective:
    """The reduce-scatter that a computation makes of its all-reduce by slicing it; otherwise the collective itself."""
    sliced = next((found for line in computation if (found := _SLICED.match(line))), None)
    if sliced is None or collective.kind != "all-reduce":
        return collective
    ((_, shape),) = _arrays(sliced[1])
    size = math.prod(shape) * _bytes(collective.dtype)
    return dataclasses.replace(collective, kind="reduce-scatter", shapes=(shape,), bytes=size)


def _arrays(types: str) -> list[tuple[str, tuple[int, ...]]]:
    """Dtype and shape of each array of an instruction's result."""
    return [(dtype, tuple(int(size) for size in sizes.split(",") if size)) for dtype, sizes in _ARRAY.findall(types)]


def _group_size(line: str) -> int:
    if found := _COUNTED.search(line):
        return int(found[1])
    if found := _MESH.search(line):
        sizes = dict(_SIZE.findall(found[1]))
        return math.prod(int(part or sizes[axis]) for axis, part in _AXIS.findall(found[2]))
    found = _LISTED.search(line)
    return len(found[1].split(",")) if found else 2  # a permutation has pairs


def _bytes(dtype: str) -> int:
    return 1 if dtype == "pred" else -(-int(_BITS.search(dtype)[0]) // 8)
