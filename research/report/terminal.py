"""What a person sees while a run goes on: a live line on a terminal, plain lines anywhere else (files, pipes, CI).

It never makes the loop wait: `progress` stores one integer, and drawing happens at most four times a second in a
thread of its own.
"""

import collections
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping

from research import throughput
from research.report.measures import is_baseline, is_floor, say, say_bytes, say_seconds
from research.streams import say_what_can_be_said

_REDRAWS_PER_SECOND = 4
_PLAIN_SECONDS = 5.0  # between two plain lines about training; evaluations are always told
_LEAST_WANTED = ("memory", "mfu", "speed", "loss", "metric", "left")  # in a narrow window, the first goes first
_MOST_TOLD = 6  # numbers of an evaluation on a terminal's line, which should stay a line; the report has all
_RATE_SECONDS = 20.0  # the window that the speed is measured over


def _is_news(name: str) -> bool:
  """Whether a line tells it: floors and baselines are the same each time, and stand in the summary."""
  return not is_floor(name) and not is_baseline(name)


class Pace:
  """Steps a second over the last seconds, from (time, step) pairs that anyone may add at any rhythm."""

  def __init__(self):
    self._marks: collections.deque[tuple[float, int]] = collections.deque(maxlen=4096)

  def mark(self, now: float, step: int) -> None:
    self._marks.append((now, step))
    # Two marks always stay, so that steps slower than the window still have a speed.
    while len(self._marks) > 2 and now - self._marks[1][0] > _RATE_SECONDS:
      self._marks.popleft()

  def steps_per_second(self) -> float | None:
    """None until two moments are known and a step lies between them."""
    if len(self._marks) < 2:
      return None
    (start, first), (end, last) = self._marks[0], self._marks[-1]
    return (last - first) / (end - start) if last > first and end > start else None


class Terminal:
  """Shared state of both forms, and the silent form itself (`--quiet`)."""

  def __init__(self, total_steps: int, start_step: int, batch_size: int, headline: str):
    self.total, self.step, self.batch_size, self.headline = total_steps, start_step, batch_size, headline
    self.loss: tuple[str, float] | None = None  # of training, with its full name
    self.measured: dict[str, float] = {}  # speeds and memory, the newest of each
    self.metric: tuple[str, float] | None = None
    self.started = False
    self.pace = Pace()

  def header(self, rows: Mapping[str, str]) -> None: ...

  def open(self) -> None: ...

  def close(self) -> None: ...

  def note(self, text: str) -> None: ...

  def summary(self, rows: Mapping[str, str]) -> None: ...

  def progress(self, step: int) -> None:
    """Called every step: keep it to a store."""
    self.step = step
    if not self.started:
      # The first call comes after compilation, which says nothing about the speed to come.
      self.started = True
      self.pace.mark(time.monotonic(), step)

  def train(self, step: int, scalars: Mapping[str, float]) -> None:
    self.progress(step)
    self.loss = next((pair for pair in scalars.items() if pair[0].endswith("loss")), self.loss)
    self.measured |= {name.rpartition("/")[2]: scalars[name] for name in scalars if throughput.is_one(name)}

  def evaluation(self, step: int, scalars: Mapping[str, float]) -> None:
    self.metric = self._pick(scalars) or self.metric

  def _measured(self, scalars: Mapping[str, float]) -> dict[str, float]:
    """What an evaluation tells; the training's loss where a run holds no data out."""
    return dict(scalars) or dict([self.loss] if self.loss else [])

  def _pick(self, scalars: Mapping[str, float]) -> tuple[str, float] | None:
    """The headline metric, else the same metric of another split, else whatever was measured."""
    leaf = self.headline.rsplit("/", 1)[-1]
    same = [name for name in scalars if name.rsplit("/", 1)[-1] == leaf]
    names = [self.headline] * (self.headline in scalars) + same + list(scalars)
    return (names[0], scalars[names[0]]) if names else None

  def _speed(self) -> dict[str, str]:
    """{"speed": "12,300 tokens/s", "mfu": "MFU 31.4%", "left": "42 s left"}, as far as known.

    What is left goes by the steps that pass, pauses for evaluation included; the speed is the one that was measured.
    """
    rate = self.pace.steps_per_second()
    if rate is None:
      return {}
    noun = "tokens" if "tokens_per_second" in self.measured else "examples"
    speed = self.measured.get(f"{noun}_per_second", rate * self.batch_size)
    each = self.measured.get(f"{noun}_per_second_per_device", speed)
    shared = f" ({_three_digits(each)} a device)" if each < 0.999 * speed else ""
    left = max(0, self.total - self.step) / rate
    mfu = {"mfu": f"MFU {100 * self.measured['mfu']:.3g}%"} if "mfu" in self.measured else {}
    return {
      "speed": f"{_three_digits(speed)} {noun}/s{shared}", **mfu, "left": f"{say_seconds(math.ceil(left))} left"
    }  # fmt: skip


def _three_digits(value: float) -> str:
  return f"{float(f'{value:.3g}'):,g}"


class Plain(Terminal):
  """Plain lines: no colours, no cursor movement, each one complete."""

  def __init__(self, *args):
    super().__init__(*args)
    self._next_line = 0.0

  def header(self, rows: Mapping[str, str]) -> None:
    width = max(map(len, rows), default=0)
    for name, text in rows.items():
      self._print(f"{name:<{width}}  {_one_line(text)}")

  def note(self, text: str) -> None:
    self._print(_one_line(text))

  def summary(self, rows: Mapping[str, str]) -> None:
    self.header(rows)

  def train(self, step: int, scalars: Mapping[str, float]) -> None:
    super().train(step, scalars)
    now = time.monotonic()
    self.pace.mark(now, step)
    if now >= self._next_line:
      self._next_line = now + _PLAIN_SECONDS
      self._tell(step, scalars)

  def evaluation(self, step: int, scalars: Mapping[str, float]) -> None:
    super().evaluation(step, scalars)
    self._tell(step, self._measured(scalars))

  def _tell(self, step: int, scalars: Mapping[str, float]) -> None:
    names = sorted(filter(_is_news, scalars), key=lambda name: not name.endswith("loss"))
    told = [f"{name} {say(name, scalars[name])}" for name in names if not throughput.is_one(name)]
    memory = [say_bytes(value) for name, value in self.measured.items() if name.endswith("_peak_bytes")]
    self._print(" · ".join([f"step {step:,}/{self.total:,}", *told, *self._speed().values(), *memory]))

  def _print(self, text: str) -> None:
    # A closed pipe (`| head`) or a full disk behind stdout must not stop a run that writes its results elsewhere.
    try:
      print(text, flush=True)
    except OSError:
      self._print = lambda _text: None


def _one_line(text: str) -> str:
  return " ".join(text.split())


class Live(Terminal):
  """One line redrawn in place by rich, in its own thread; evaluations and notes scroll above it."""

  def __init__(self, *args):
    super().__init__(*args)
    from rich.console import Console
    from rich.live import Live as RichLive

    self._opened = time.monotonic()
    self._room, self._dropped = 0, set()
    self._memory = (0.0, "")  # when it was last measured, and what it was
    self._console = Console(highlight=False)  # honours NO_COLOR, TERM and the window's width
    self._live = RichLive(
      get_renderable=self._draw, console=self._console, refresh_per_second=_REDRAWS_PER_SECOND, transient=True
    )

  def header(self, rows: Mapping[str, str]) -> None:
    self._table(rows, "bold cyan")

  def open(self) -> None:
    self._opened = time.monotonic()
    self._live.start()

  def close(self) -> None:
    self._live.stop()

  def note(self, text: str) -> None:
    from rich.text import Text

    self._console.print(Text(_one_line(text)))

  def evaluation(self, step: int, scalars: Mapping[str, float]) -> None:
    super().evaluation(step, scalars)
    from rich.text import Text

    line = Text(f"{step:>{len(f'{self.total:,}')},}", style="dim")
    news = [pair for pair in self._measured(scalars).items() if _is_news(pair[0])]
    for name, value in news[:_MOST_TOLD]:
      line.append("  ").append(name, style="dim").append(" ").append(say(name, value), style="bold")
    self._console.print(line)

  def summary(self, rows: Mapping[str, str]) -> None:
    self._table(rows, "bold green")

  def _table(self, rows: Mapping[str, str], style: str) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows.items():
      table.add_row(Text(name, style), Text(_one_line(text)))
    self._console.print(table, "")

  def _draw(self):
    """The live line."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    now = time.monotonic()
    if not self.started:
      return Text(f"compiling · {say_seconds(int(now - self._opened))}", style="dim")
    self.pace.mark(now, self.step)
    if now - self._memory[0] > 1:
      self._memory = (now, say_bytes(throughput.peak_memory()))
    text = self._fitting(self._console.width - 14)  # a bar of at least 12
    line = Table.grid(expand=True, padding=(0, 1))
    line.add_column(ratio=1)
    line.add_column(no_wrap=True)
    line.add_row(ProgressBar(total=max(1, self.total), completed=self.step), Text(text))
    return line

  def _fitting(self, room: int) -> str:
    """The facts that fit; one that did not fit once stays away at that width, so that the line does not flicker."""
    facts = {
      "step": f"{self.step:,}/{self.total:,}",
      "loss": f"loss {say(*self.loss)}" if self.loss else "",
      "metric": f"{self.metric[0]} {say(*self.metric)}" if self.metric else "",
      **self._speed(),
      "memory": self._memory[1],
    }
    if room != self._room:
      self._room, self._dropped = room, set()
    for candidate in (None, *_LEAST_WANTED):
      self._dropped |= {candidate}
      text = " · ".join(fact for name, fact in facts.items() if fact and name not in self._dropped)
      if len(text) <= room:
        break
    return text


def open_terminal(*args, quiet: bool = False) -> Terminal:
  """The form that fits: silent if asked, live on a terminal that can move its cursor, plain lines elsewhere."""
  if quiet:
    return Terminal(*args)
  say_what_can_be_said(sys.stdout)
  capable = sys.stdout.isatty() and os.environ.get("TERM", "") != "dumb" and shutil.get_terminal_size().columns >= 40
  if capable:
    try:
      return Live(*args)
    except ImportError:
      pass
  return Plain(*args)
