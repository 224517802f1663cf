"""What a compiled program sends between devices, read from its text: collectives by kind, with loops counted out.

XLA for CPUs and GPUs writes how often a loop runs where it knows (`known_trip_count`); of TPU programs it is read from
the loop's condition. Of a loop whose end is computed one turn is counted. A TPU's transfers that go on beside products
stand in the text once for each product; they are counted where they start. Its reduce-scatters are fusions of a sum
over all and a slice.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

BYTES = {
  "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8,
  "u64": 8, "f64": 8, "c64": 8, "c128": 16, "f8e4m3fn": 1, "f8e5m2": 1,
}  # fmt: skip
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.\-]+ = (.*?)\s([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_CONSTANT = re.compile(r"%?([\w.\-]+) = [su]32\[\]\S* constant\((\d+)\)")
_BELOW = re.compile(r"ROOT .* compare\([^,]*%?[\w.\-]+, (?:[su]32\[\]\S* )?%?([\w.\-]+)\), direction=LT")
_TRIPS = re.compile(r'"?known_trip_count"?:?\s*\{"?n"?:\s*"?(\d+)"?')
_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]")
_MESH = re.compile(r"replica_groups=@?mesh\[([^\]]*)\] ?\{([^}]*)\}")
_SCATTERS = "all-reduce-scatter"  # a TPU's fusion
_GOES_ON = re.compile(r'^(?=async_collective_fusion)|custom_call_target="AsyncCollectiveDone"')
_STARTS = re.compile(r'custom_call_target="AsyncCollectiveStart"')
_AXIS = re.compile(r"'([^']+)'(?:=(\d+)|:\((\d+)\)(\d+))?")  # an axis with its size, or a part of one


@dataclasses.dataclass(frozen=True)
class Collective:
  """Those of one kind over groups of one size, of one device in one run of the program.

  Attributes:
    kind: one of KINDS.
    devices: in a group.
    count: how often it is done.
    bytes: what they give (of a reduce-scatter: take), all together.
  """

  kind: str
  devices: int
  count: int
  bytes: float

  @property
  def sent(self) -> float:
    """Bytes out of a device by the ring algorithm, of which no other sends fewer (Patarasuk and Yuan 2009)."""
    if self.kind == "collective-permute":
      return self.bytes
    share = (self.devices - 1) / self.devices
    return self.bytes * share * (2 if self.kind == "all-reduce" else 1)


def collectives(text: str) -> list[Collective]:
  """Of a compiled program's text (`compiled.as_text()`), the most bytes first."""
  computations, entry = _computations(text)
  totals: dict[tuple[str, int], list[float]] = collections.defaultdict(lambda: [0, 0.0])
  for kind, devices, size, times in _walk(computations, entry, 1):
    total = totals[kind, devices]
    total[0] += times
    total[1] += times * size
  found = [Collective(*key, int(count), size) for key, (count, size) in totals.items()]
  return sorted(found, key=lambda each: -each.bytes)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  computations, entry, lines = {}, "", None
  for line in text.splitlines():
    if head := _HEAD.match(line):
      lines = computations.setdefault(head[2], [])
      entry = head[2] if head[1] else entry
    elif line.startswith("}"):
      lines = None
    elif lines is not None:
      lines.append(line)
  return computations, entry


def _walk(computations: dict[str, list[str]], name: str, times: int) -> Iterator[tuple[str, int, float, int]]:
  """(kind, devices of a group, bytes, how often) of each collective that a computation comes to."""
  lines = computations.get(name, ())
  goes_on = _goes_on(name, lines)
  for line in lines:
    instruction = _INSTRUCTION.match(line)
    if instruction is None:
      continue
    result, operation, rest = instruction.groups()
    kind = operation.removesuffix("-start")
    if kind in KINDS:
      if not goes_on:
        size = _payload(kind, operation, result, rest)
        kind = "reduce-scatter" if name.startswith(_SCATTERS) else kind
        yield kind, _group(rest), size, times
      continue  # what it applies are additions of two numbers
    more = 1
    if operation == "while":
      more = _trips(computations, rest)
    called = _CALLED.findall(rest)
    if branches := _BRANCHES.search(rest):
      called += [branch.strip().lstrip("%") for branch in branches[1].split(",")][:1]
    for each in called:
      yield from _walk(computations, each, times * more)


def _goes_on(name: str, lines: Sequence[str]) -> bool:
  """Whether a computation carries on with, or ends, a transfer that another one has started."""
  text = "\n".join((name, *lines))
  return _GOES_ON.search(text) is not None and _STARTS.search(text) is None


def _trips(computations: dict[str, list[str]], rest: str) -> int:
  """How often a loop runs: as XLA says, or up to the constant that its counter is compared with; 1 where neither is."""
  if trips := _TRIPS.search(rest):
    return int(trips[1])
  lines = computations.get(condition[1], []) if (condition := _CONDITION.search(rest)) else []
  constants = {found[1]: int(found[2]) for line in lines if (found := _CONSTANT.search(line))}
  ends = (constants.get(found[1]) for line in lines if (found := _BELOW.search(line)))
  return next((end for end in ends if end), 1)


def _group(rest: str) -> int:
  if iota := _IOTA.search(rest):
    return int(iota[2])
  if groups := _GROUPS.search(rest):
    return groups[1].count(",") + 1
  if mesh := _MESH.search(rest):
    sizes = {name: int(size) for name, size, *_ in _AXIS.findall(mesh[1])}
    return math.prod(int(part) if part else sizes[name] for name, _, _, part in _AXIS.findall(mesh[2]))
  return 2  # a permute has pairs


def _payload(kind: str, operation: str, result: str, rest: str) -> float:
  """Bytes of what it gives; of a reduce-scatter of what it takes, which is larger."""
  sizes = [_size(dtype, shape) for dtype, shape in _ARRAY.findall(result)]
  if kind == "reduce-scatter":
    return sum(sizes) * _group(rest)
  if operation.endswith("-start") and kind in ("all-gather", "collective-permute"):
    # An asynchronous one's result is a pair of what it takes and what it gives, and counters behind.
    half = [size for size in sizes if size > 4]
    return sum(half[len(half) // 2 :])
  return sum(sizes)


def _size(dtype: str, shape: str) -> float:
  return BYTES.get(dtype, 4) * math.prod(int(side) for side in shape.split(",") if side)
