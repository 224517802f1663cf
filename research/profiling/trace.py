"""Reads a trace that the profiler wrote: which operations took how long, and how long no device had one.

It knows three ways of telling: a TPU's line "XLA Ops", a GPU's streams, and the threads that run a CPU's programs. It
reads what is measured and guesses nothing: a trace without operations is an error.
"""

import collections
import dataclasses
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_DEVICE = re.compile(r"/device:(?:TPU|GPU):\d+")
_HOST = "/host:CPU"
# An operation of a CPU is on record as long as the thread that began it stays with it; what other threads still do for
# it shows as the program's wait for them.
_WAIT = "ThunkExecutor::Execute (wait for completion)"

PAUSE = "pause of the training loop"  # how the host's events are called between which it evaluates and saves

Operation = tuple[str, str]  # (program, instruction)


@dataclasses.dataclass(frozen=True)
class Span:
  """From start to end, in nanoseconds; a device at work, on an operation where there is a name for it."""

  start: float
  end: float
  operation: Operation | None


@dataclasses.dataclass(frozen=True)
class Cost:
  """What one instruction of a program took on a device, all its times together, without what ran inside of it.

  Attributes:
    program: the name of its HLO module; "" where the trace has none.
    instruction: its name there, or the kernel's.
    seconds: of one device, the mean over devices.
    count: how often it ran on one device.
    share: of the seconds of all operations.
  """

  program: str
  instruction: str
  seconds: float
  count: float
  share: float


@dataclasses.dataclass(frozen=True)
class Summary:
  """What a trace says.

  Attributes:
    seconds: from the first operation's start to the last one's end, on any device, without what lies in a pause.
    outside: share of these seconds in which a device ran no operation, the mean over devices.
    devices: how many there are.
    operations: the costliest first.
  """

  seconds: float
  outside: float
  devices: int
  operations: list[Cost]


def read(path: Path) -> Summary:
  """The summary of an xplane.pb. Raises ValueError where no operation is in it."""
  from jax.profiler import ProfileData

  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "builtin type .* has no __module__", DeprecationWarning)  # on Python 3.12
    profile = ProfileData.from_file(str(path))
    return summarize(lines(profile), pauses(profile))


def lines(profile: Any) -> dict[str, list[list[Span]]]:
  """{device: spans of each of its lines}, from a `jax.profiler.ProfileData`."""
  planes = list(profile.planes)
  found = {plane.name: _device_lines(plane) for plane in planes if _DEVICE.fullmatch(plane.name)}
  found = {name: spans for name, spans in found.items() if any(spans)}
  if found:
    return found
  threads = [list(_thread(line)) for plane in planes if plane.name == _HOST for line in plane.lines]
  devices = sorted({device for thread in threads for device, _ in thread})
  return {
    f"CPU {device}": [[span for owner, span in thread if owner == device] for thread in threads] for device in devices
  }


def pauses(profile: Any) -> list[Span]:
  """When the training loop did other things than to train."""
  events = (event for plane in profile.planes if plane.name == _HOST for line in plane.lines for event in line.events)
  return [Span(event.start_ns, event.start_ns + event.duration_ns, None) for event in events if event.name == PAUSE]


def summarize(devices: Mapping[str, Sequence[Sequence[Span]]], pauses: Sequence[Span] = ()) -> Summary:
  """Costs and idle time of {device: spans of each of its lines}, of which those in a pause count for nothing.

  Raises ValueError where there is no operation.
  """

  def counts(span: Span) -> bool:
    middle = (span.start + span.end) / 2
    return not any(pause.start <= middle < pause.end for pause in pauses)

  devices = {name: [[span for span in line if counts(span)] for line in lines] for name, lines in devices.items()}
  spans = {name: [span for line in lines for span in line] for name, lines in devices.items()}
  everything = [span for each in spans.values() for span in each]
  if not any(span.operation for span in everything):
    raise ValueError("it holds no operation of a device")
  start, end = min(span.start for span in everything), max(span.end for span in everything)
  window = end - start - sum(pause.end - pause.start for pause in pauses if start <= pause.start and pause.end <= end)
  busy = sum(_covered(each) for each in spans.values()) / len(spans)

  times, counts = collections.Counter(), collections.Counter()
  for lines in devices.values():
    for line in lines:
      for operation, own in _own_times(line):
        times[operation] += own
        counts[operation] += 1
  total = sum(times.values()) or 1.0
  costs = [
    Cost(*operation, time / len(devices) / 1e9, counts[operation] / len(devices), time / total)
    for operation, time in times.most_common()
  ]
  return Summary(window / 1e9, 1 - busy / window if window else 0.0, len(devices), costs)


def _device_lines(plane: Any) -> list[list[Span]]:
  """A TPU has one line of operations (and one of copies beside them), a GPU a line for each stream."""
  named = {line.name: line for line in plane.lines}
  chosen = [named["XLA Ops"]] if "XLA Ops" in named else [each for name, each in named.items() if "Stream" in name]
  return [[_on_device(event) for event in line.events] for line in chosen]


def _on_device(event: Any) -> Span:
  told = dict(event.stats)
  # A TPU's event is called by the whole instruction, "%fusion.1 = f32[8] fusion(…)", a GPU's by its kernel.
  instruction = told.get("hlo_op") or event.name.partition(" = ")[0].lstrip("%")
  return Span(event.start_ns, event.start_ns + event.duration_ns, (str(told.get("hlo_module", "")), str(instruction)))


def _thread(line: Any) -> Iterator[tuple[int, Span]]:
  """(device, span) of what a thread of a CPU did for the programs of its devices."""
  device = None  # whose program the thread is at: not every wait says
  for event in sorted(line.events, key=lambda event: event.start_ns):
    waits = event.name == _WAIT
    if not waits and event.name.startswith(("ThreadpoolListener", "end: ")):
      continue  # nine of ten events, and to ask for their facts takes long
    told = dict(event.stats)
    if not waits and "hlo_op" not in told:
      continue
    device = told.get("device_ordinal", device)
    if device is None:
      continue
    operation = None if waits else (str(told.get("hlo_module", "")), str(told["hlo_op"]))
    yield int(device), Span(event.start_ns, event.start_ns + event.duration_ns, operation)


def _covered(spans: Iterable[Span]) -> float:
  """Nanoseconds in which there is at least one."""
  total, reached = 0.0, float("-inf")
  for span in sorted(spans, key=lambda span: span.start):
    total += max(0.0, span.end - max(span.start, reached))
    reached = max(reached, span.end)
  return total


def _own_times(line: Iterable[Span]) -> Iterator[tuple[Operation, float]]:
  """(operation, nanoseconds without the spans inside of it) of one line: a loop holds the operations of its body."""
  open_spans: list[list] = []  # [span, time of what is inside]

  def close() -> tuple[Span, float]:
    span, inside = open_spans.pop()
    if open_spans:
      open_spans[-1][1] += span.end - span.start
    return span, span.end - span.start - inside

  def closed_before(start: float) -> Iterator[tuple[Span, float]]:
    while open_spans and open_spans[-1][0].end <= start:
      yield close()

  def everything() -> Iterator[tuple[Span, float]]:
    for span in sorted(line, key=lambda span: (span.start, -span.end)):
      yield from closed_before(span.start)
      open_spans.append([span, 0.0])
    yield from closed_before(float("inf"))

  for span, own in everything():
    if span.operation is not None:
      yield span.operation, max(0.0, own)
