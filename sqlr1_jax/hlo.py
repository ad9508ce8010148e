"""What a compiled program moves between chips, and through a chip's memory, read from its HLO text.

XLA's own analysis counts a loop's body once and knows no bytes between chips. Here each instruction is counted as often
as the loops around it turn. A loop whose number of turns the program learns when it runs (microbatches, decode steps)
is counted `turns` times, a number that the caller knows.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "f8e4m3fn": 8, "f8e5m2": 8} | {
    f"{sign}{bits}": bits for sign in "su" for bits in (2, 4, 8, 16, 32, 64)
}
_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_ARRAY = re.compile(r"([a-z]+\d*\w*)\[([\d,]*)\](\{[^{}]*\})?")
_LAYOUT = re.compile(r"\{[^{}]*\}|/\*.*?\*/")  # of an array: {1,0:T(8,128)}; /*index=5*/
_OPERATION = re.compile(r" ([a-z][\w\-]*)\(")
_CALLED = re.compile(r"(body|condition|calls|to_apply|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_KNOWN_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')  # as CPU and GPU write it; for TPU the condition tells
_FREE = ("", "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier")
_SLICES = ("dynamic-slice", "slice", "gather")


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    operation: str
    bytes: int  # of the result on one chip, a tuple's parts together
    hbm: int  # of those the ones in its main memory: not in VMEM, not on the host
    operands: tuple[str, ...]
    text: str


Computations = Mapping[str, Sequence[Instruction]]


def collective_bytes(text: str, turns: int = 1) -> dict[str, int]:
    """Bytes that one chip passes to collectives of each kind in a run of the program.

    A collective counts for the larger of what it takes and what it gives on one chip: all-gather and all-reduce their
    result, reduce-scatter its operand. The parts of an asynchronous one count once.
    """
    computations, entry = parse(text)
    sizes = {one.name: one.bytes for body in computations.values() for one in body}

    @functools.cache
    def moved(computation: str) -> dict[tuple[str, str], int]:
        total: dict[tuple[str, str], int] = {}
        for one in computations.get(computation, ()):
            if kind := _collective(one.operation):
                channel = _CHANNEL.search(one.text)
                _raise(total, {(kind, channel[1] if channel else one.name): _size(one, sizes)}, 1)
            for called, times in _calls(one, computations, turns):
                branches = [moved(name) for name in called]
                _raise(total, max(branches, key=lambda branch: sum(branch.values()), default={}), times)
        return total

    by_kind: dict[str, int] = {}
    for (kind, _), amount in moved(entry).items():
        by_kind[kind] = by_kind.get(kind, 0) + amount
    return by_kind


def memory_bytes(text: str, turns: int = 1) -> int:
    """Bytes that one chip reads from its main memory and writes to it in a run of the program, as its fusions do.

    Of a stack of which a fusion takes a slice the slice counts, and of an array written in place what is written. What
    lies in VMEM does not count. A kernel counts once for what it takes and gives, however often it reads that. Of the
    branches of a choice the dearest counts.
    """
    computations, entry = parse(text)

    @functools.cache
    def moved(computation: str) -> int:
        body = computations.get(computation, ())
        by_name, total = {one.name: one for one in body}, 0
        for one in body:
            if not _enters(one):
                total += _traffic(one, by_name, computations)
                continue
            for called, times in _calls(one, computations, turns):
                total += times * max((moved(name) for name in called), default=0)
        return total

    return moved(entry)


def _enters(one: Instruction) -> bool:
    """Whether what it moves is what the computations move that it calls."""
    asynchronous = one.operation.endswith("-start") and "calls=" in one.text
    return asynchronous or one.operation in ("while", "conditional", "call")


def _traffic(one: Instruction, by_name: Mapping[str, Instruction], computations: Computations) -> int:
    """Bytes to and from main memory of one instruction that enters no computation."""
    if one.operation in _FREE or one.operation.endswith(("-done", "-update")) or "AllocateBuffer" in one.text:
        return 0
    operands = [by_name[name] for name in one.operands]
    if one.operation.endswith("-start") and one.operation != "all-reduce-start":
        return one.hbm  # which names the source as well
    if one.operation in _SLICES:
        return one.hbm + min(operands[0].hbm, one.bytes)
    if one.operation == "dynamic-update-slice":
        return 2 * min(one.hbm, operands[1].bytes)
    if one.operation != "fusion":
        return one.hbm + sum(operand.hbm for operand in operands)
    taken = zip(operands, _taken(one, computations), strict=True)
    given = min(one.hbm, _given(one, computations))
    return given + sum(min(operand.hbm, size) for operand, size in taken)


def _fused(one: Instruction, computations: Computations) -> Sequence[Instruction]:
    return computations.get(dict(_CALLED.findall(one.text)).get("calls", "").lstrip("%"), ())


def _taken(fusion: Instruction, computations: Computations) -> list[int]:
    """Bytes that a fusion reads of each of its operands; it may hold others, as TPU's do."""
    fused = _fused(fusion, computations)
    users: dict[str, list[tuple[Instruction, int]]] = {}
    for one in fused:
        for place, name in enumerate(one.operands):
            users.setdefault(name, []).append((one, place))

    def read(one: Instruction) -> int:
        if one is fused[-1]:
            return one.bytes
        total = 0
        for user, place in users.get(one.name, ()):
            if user.operation == "bitcast":
                total += read(user)
            elif user.operation in _SLICES and place == 0:
                total += user.bytes
            elif user.operation == "fusion":
                total += _taken(user, computations)[place]
            elif not (user.operation == "dynamic-update-slice" and place == 0):
                return one.bytes
        return min(total, one.bytes)

    number = re.compile(r"parameter\((\d+)\)")
    parameters = {int(found[1]): one for one in fused if (found := number.search(one.text))}
    return [read(parameters[place]) if place in parameters else 0 for place in range(len(fusion.operands))]


def _given(fusion: Instruction, computations: Computations) -> int:
    """Bytes that a fusion writes: of an array that it writes in place what it puts there."""
    fused = _fused(fusion, computations)
    by_name = {one.name: one for one in fused}

    def written(one: Instruction) -> int:
        if one.operation in ("bitcast", "tuple"):
            return sum(written(by_name[name]) for name in one.operands)
        if one.operation == "fusion":
            return _given(one, computations)
        return by_name[one.operands[1]].bytes if one.operation == "dynamic-update-slice" else one.bytes

    return written(fused[-1]) if fused else fusion.bytes


def _raise(total: dict, more: Mapping, times: int) -> None:
    """Asynchronous collectives stand in several computations under one channel: the largest counts, not the sum."""
    for key, amount in more.items():
        total[key] = max(total.get(key, 0), amount * times)


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Instructions of each computation by its name, and the name of the program's entry."""
    computations: dict[str, list[Instruction]] = {}
    entry, body = "", None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            body = computations.setdefault(header[1], [])
            entry = header[1] if line.startswith("ENTRY") else entry
        elif body is not None and " = " in line:
            body.append(_instruction(line))
    return computations, entry


def _instruction(line: str) -> Instruction:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    plain = _LAYOUT.sub("", rest.partition(", metadata=")[0])
    found = _OPERATION.search(" " + plain)
    at = found.start() if found else len(plain)
    inside = plain[at:].partition("(")[2].partition(")")[0]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    everywhere, hbm = _bytes(_OPERATION.split(" " + rest, maxsplit=1)[0])
    return Instruction(name.lstrip("%"), found[1] if found else "", everywhere, hbm, operands, rest)


def _bytes(types: str) -> tuple[int, int]:
    """Bytes of all arrays that a type names, and of those in main memory, whose layout names no other space."""
    everywhere = hbm = 0
    for kind, shape, layout in _ARRAY.findall(types):
        size = BITS.get(kind, 0) * math.prod(int(size) for size in shape.split(",") if size) // 8
        everywhere, hbm = everywhere + size, hbm + size * ("S(" not in layout)
    return everywhere, hbm


def _collective(operation: str) -> str:
    base = operation.removesuffix("-start")
    return base if base in COLLECTIVES else ""


def _size(one: Instruction, sizes: Mapping[str, int]) -> int:
    taken = sum(sizes.get(name, 0) for name in one.operands)
    if one.operation in ("all-gather-start", "collective-permute-start"):
        return one.bytes - taken  # whose result repeats the operands
    return max(one.bytes, taken)


def _calls(one: Instruction, computations: Computations, turns: int) -> list[tuple[list[str], int]]:
    """Groups of computations that an instruction calls, of which one runs, and how often."""
    called = {key: re.findall(r"[\w.\-]+", names) for key, names in _CALLED.findall(one.text)}
    if one.operation == "while":
        known = _KNOWN_TURNS.search(one.text)
        counted = int(known[1]) if known else _turns(computations.get(called["condition"][0], ()))
        return [(called["body"], counted or turns)]
    return [(names, 1) for names in called.values()]


def _turns(condition: Sequence[Instruction]) -> int:
    """How often a counted loop turns; 0 where the program learns it when it runs."""
    constants = [one for one in condition if one.operation == "constant" and one.text.startswith("s32[]")]
    counted = any(one.operation == "compare" and "direction=LT" in one.text for one in condition)
    found = re.search(r"constant\((\d+)\)", constants[0].text) if len(constants) == 1 and counted else None
    return int(found[1]) if found else 0
