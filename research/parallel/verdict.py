"""Which process of a job is dead, stalled or has ended, by what is heard of each. No thread, no clock, no network."""

import dataclasses
from collections.abc import Mapping

RUNNING, FAILING, ENDED = "running", "failing", "ended"  # what a process says of itself
AGAIN = 77  # another host died or stalled: the same command goes on
CRASHED = 1
UNBOUNDED = ("starting",)  # phases whose length is the data's or the compiler's affair
PATIENT = ("compile", "evaluation", "saving")  # and those that may take ten times as long as a step
RESTART = "ending; run the same command again"


@dataclasses.dataclass(frozen=True)
class Bounds:
  """Seconds. Of all these only differences on one host's own clock are taken.

  Attributes:
    beat: between two beats of a process.
    silent: a process that is not heard of for so long is dead.
    suspected: the same where a collective has already broken in another one.
    grace: for a process to end by its own words, when another has ended.
    stall: a process that lives and does not come on for so long is stalled; 0 for never.
  """

  beat: float = 2.0
  silent: float = 20.0
  suspected: float = 8.0
  grace: float = 5.0
  stall: float = 0.0

  def of(self, phase: str) -> float:
    """How long a phase may take; 0 for any time."""
    return 0.0 if phase in UNBOUNDED else self.stall * (10 if phase in PATIENT else 1)


@dataclasses.dataclass(frozen=True)
class Beat:
  """What a process says of itself.

  Attributes:
    number: counts its beats.
    host: its name.
    step: finished updates, or nearly.
    phase: what it does.
    marks: how often it has said what it does; all processes do the same, so the one with the fewest is behind.
    idle: seconds since it last said so.
    status: RUNNING; FAILING, where an error may be another's death; ENDED, with its exit code.
    code: exit code where it has ended.
    text: the error's one line.
  """

  number: int
  host: str = ""
  step: int = 0
  phase: str = UNBOUNDED[0]
  marks: int = 0
  idle: float = 0.0
  status: str = RUNNING
  code: int = 0
  text: str = ""

  @property
  def where(self) -> str:
    return f"at step {self.step} ({self.phase})"


@dataclasses.dataclass(frozen=True)
class Verdict:
  """Why a job ends: the process, the exit code of the others, their line, and whether the process said so itself."""

  process: int
  code: int
  line: str
  own: bool = False


class Judge:
  """What process 0 knows of all, itself too.

  Args:
    count: how many processes there are.
    now: seconds, as in all calls.
  """

  def __init__(self, count: int, bounds: Bounds, now: float):
    self.bounds = bounds
    self._heard = dict.fromkeys(range(count), now)
    self._beats = {number: Beat(0) for number in range(count)}
    self._failing: dict[int, float] = {}  # process → since when it is

  def hear(self, beats: Mapping[int, Beat], now: float) -> None:
    """Takes in the newest beats; one that is known already is no sign of life."""
    for process, beat in beats.items():
      if beat.number == self._beats[process].number:
        continue
      self._beats[process], self._heard[process] = beat, now
      if beat.status == FAILING:
        self._failing.setdefault(process, now)

  def verdict(self, now: float) -> Verdict | None:
    """Why to end, if there is a reason. `now` is when the beats were last looked at."""
    return self._ended() or self._silent(now) or self._crashed(now) or self._stalled()

  def _ended(self) -> Verdict | None:
    ended = [process for process, beat in self._beats.items() if beat.status == ENDED]
    return own_end(ended[0], self._beats[ended[0]]) if ended else None

  def _silent(self, now: float) -> Verdict | None:
    process = min(self._heard, key=lambda each: self._heard[each])
    silence = now - self._heard[process]
    if silence < (self.bounds.suspected if self._failing else self.bounds.silent):
      return None
    return Verdict(process, AGAIN, silent(process, self._beats[process], silence))

  def _crashed(self, now: float) -> Verdict | None:
    """A process whose error is nobody's death, for all are still heard of."""
    for process, since in sorted(self._failing.items()):
      if now - since >= self.bounds.suspected + 2 * self.bounds.beat:
        return own_end(process, self._beats[process])
    return None

  def _stalled(self) -> Verdict | None:
    """The process that is behind, where it says that it has been in one phase for too long: for it the others wait.

    Only its own word counts. The time since it was last heard of is not added: whether it lives is then unknown.
    """
    process = min(self._beats, key=lambda each: self._beats[each].marks)
    beat = self._beats[process]
    if not 0 < self.bounds.of(beat.phase) < beat.idle:
      return None
    alone = len({each.marks for each in self._beats.values()}) > 1
    what = f"{_name(process, beat)} lives and has made no progress" if alone else "no process has made any progress"
    return Verdict(process, AGAIN, f"processes: {what} for {beat.idle:.0f} s {beat.where}; {RESTART}")


def silent(process: int, beat: Beat, seconds: float) -> str:
  """The line for a process that is not heard of."""
  return f"processes: {_name(process, beat)} has not been heard of for {seconds:.0f} s {beat.where}; {RESTART}"


def gone(process: int, beat: Beat) -> str:
  """The line for a process whose connection has closed."""
  return f"processes: {_name(process, beat)} is gone {beat.where}: its connection closed; {RESTART}"


def own_end(process: int, beat: Beat) -> Verdict:
  """For a process that has ended by an error of its own."""
  how = "has crashed" if beat.code == CRASHED else f"has ended with {beat.code}"
  text = beat.text.split("\n")[0]
  return Verdict(process, beat.code, f"processes: {_name(process, beat)} {how}{': ' * bool(text)}{text}", own=True)


def _name(process: int, beat: Beat) -> str:
  return f"process {process}" + (f" ({beat.host})" if beat.host else "")
