"""Signs that a training is collapsing, read from the lines of metrics.jsonl alone: nothing of them is stored, so a run
that was resumed and a page that was made anew tell the same.

Most rules ask for several bad values in a row, so that one unlucky evaluation is no alarm, and each tells once an
episode: only after as many good values in a row may the next bad ones be told again. A number that repeats a step is
ignored.
"""

import collections
import dataclasses
import math
import statistics
from collections.abc import Iterable

from research.report.measures import is_floor, say
from research.report.record import Record

WORSE = 1.5  # a Fréchet distance over this times the best so far is bad …
SETTLED = 3  # … once so many evaluations were made before it: the first ones of a run jump about
WON = 0.01  # a discriminator's loss whose absolute value is under this is bad
LINES = 5  # bad lines of training in a row that are an alarm
EVALUATIONS = 2  # bad evaluations in a row that are an alarm
SPIKE_LINES = 20  # before a line of training whose loss can be called a spike, which is over their median by …
SPREADS, UNLEARNED = 10, 0.2  # … so many times their median deviation, and by this share of what was learned till then
NO_RECALL, SOME_RECALL = 0.02, 0.1  # recall under the first is bad once it was over the second
FEWER_MODES = 0.5  # modes under this share of the most so far are bad

_DISCRIMINATOR = "train/discriminator_loss"  # a critic's has another name: near 0 it has not won
_OF_A_GAME = {_DISCRIMINATOR, "train/critic_loss"}
_ADVERSARIAL = "start anew with a smaller --optim.learning_rate or with --gan.r1=1"
_PLAIN = "start anew with a smaller --optim.learning_rate or with --optim.clip_norm=1"


@dataclasses.dataclass(frozen=True)
class Alarm:
  """What is wrong, in one line, and the step whose numbers made it certain."""

  step: int
  text: str


def signs(records: Iterable[Record]) -> list[Alarm]:
  """Every alarm in a run's lines of metrics, in their order."""
  watch = Watch()
  return [alarm for record in records for alarm in watch.see(record)]


class Watch:
  """`signs` a line at a time, in about a microsecond for a line that no rule is about."""

  def __init__(self):
    self._rules: dict[str, _Rule | None] = {}

  def see(self, record: Record) -> list[Alarm]:
    """The alarms that begin with this line."""
    step, found = record["step"], []
    for name, value in record.items():
      if name not in self._rules:
        self._rules[name] = _rule(name)
      rule = self._rules[name]
      if rule is None or step <= rule.step:
        continue
      rule.step = step
      if rule.row.begins(rule.is_bad(step, value)):
        usual = _ADVERSARIAL if _OF_A_GAME & self._rules.keys() else _PLAIN
        found.append(Alarm(step, f"{rule.said(name, step, value)}; {rule.advice or usual}"))
    return found


class _Row:
  """Turns bad and good values into episodes: one begins with `needed` bad ones in a row, and so it ends."""

  def __init__(self, needed: int):
    self._needed, self._bad, self._good, self._told = needed, 0, 0, False

  def begins(self, bad: bool) -> bool:
    self._bad, self._good = (self._bad + 1, 0) if bad else (0, self._good + 1)
    if self._good >= self._needed:
      self._told = False
    begins = self._bad >= self._needed and not self._told
    self._told |= begins
    return begins


class _Rule:
  """One metric's rule. `is_bad` is asked once a step, in order, and remembers what it needs."""

  needed = EVALUATIONS
  advice = ""  # the usual

  def __init__(self):
    self.step, self.row = -1, _Row(self.needed)
    self.best: tuple[int, float] | None = None

  def is_bad(self, step: int, value: float) -> bool:
    raise NotImplementedError

  def said(self, name: str, step: int, value: float) -> str:
    """What is wrong, without the advice."""
    raise NotImplementedError

  def _compared(self, name: str, step: int, value: float) -> str:
    return f"{say(name, value)} at step {step:,}, best was {say(name, self.best[1])} at step {self.best[0]:,}"


class _DistanceGrows(_Rule):
  """A Fréchet distance (Heusel et al. 2017) worse than WORSE times its best. NaN and infinity are worse than any."""

  seen = 0

  def is_bad(self, step: int, value: float) -> bool:
    is_number = math.isfinite(value)
    bad = self.seen >= SETTLED and (not is_number or 0 < WORSE * self.best[1] < value)
    self.seen += is_number
    if is_number and (self.best is None or value < self.best[1]):
      self.best = step, value
    return bad

  def said(self, name: str, step: int, value: float) -> str:
    return f"{name} worsens: {self._compared(name, step, value)}; the generator may be collapsing"


class _DiscriminatorWon(_Rule):
  """A discriminator that is never wrong gives the generator nothing to follow (Goodfellow et al. 2014, section 3)."""

  needed = LINES

  def is_bad(self, step: int, value: float) -> bool:
    return abs(value) < WON

  def said(self, name: str, step: int, value: float) -> str:
    return (f"the discriminator has won: its loss is {say(name, value)} at step {step:,}, and was under {WON} in "
            f"{LINES} lines in a row; the generator learns no more")  # fmt: skip


class _RecallLost(_Rule):
  """Recall (Kynkäänniemi et al. 2019): the share of real examples that lie among the generated ones."""

  def is_bad(self, step: int, value: float) -> bool:
    if not math.isnan(value) and (self.best is None or value > self.best[1]):
      self.best = step, value
    return self.best is not None and self.best[1] > SOME_RECALL and value < NO_RECALL

  def said(self, name: str, step: int, value: float) -> str:
    return f"{name} is lost: {self._compared(name, step, value)}; the generator makes ever the same few things"


class _ModesLost(_Rule):
  """Of a mixture whose modes are known, how many are still found."""

  def is_bad(self, step: int, value: float) -> bool:
    if not math.isnan(value) and (self.best is None or value > self.best[1]):
      self.best = step, value
    return self.best is not None and value < FEWER_MODES * self.best[1]

  def said(self, name: str, step: int, value: float) -> str:
    return f"{name} are lost: {self._compared(name, step, value)}; the generator makes ever the same few things"


class _LossSpikes(_Rule):
  """A training loss far over the lines before it, as Chowdhery et al. (2022, section 5.1) describe of large models.

  One line is enough: a spike may be over before the next. A family's other losses swing, so only train/loss is asked.
  """

  needed = 1
  advice = "if it does not come down again, start anew with --run.skip_spikes=5 or with --optim.clip_norm=1"

  def __init__(self):
    super().__init__()
    self.lines: collections.deque[float] = collections.deque(maxlen=SPIKE_LINES)
    self.first, self.level = math.nan, math.nan

  def is_bad(self, step: int, value: float) -> bool:
    if not math.isfinite(value):
      return False
    bad = False
    if len(self.lines) == SPIKE_LINES:
      self.level = statistics.median(self.lines)
      spread = statistics.median(abs(each - self.level) for each in self.lines)
      bad = value - self.level > max(SPREADS * spread, UNLEARNED * (self.first - self.level), 0)
    if math.isnan(self.first):
      self.first = value
    self.lines.append(value)
    return bad

  def said(self, name: str, step: int, value: float) -> str:
    return f"the loss jumps to {say(name, value)} at step {step:,} from about {say(name, self.level)}"


class _Skipped(_Rule):
  """Updates that `research.guard` passed over: the metric is how many there were so far, so each rise is told."""

  needed = 1

  def __init__(self):
    super().__init__()
    self.known, self.rise = 0.0, 0.0

  def is_bad(self, step: int, value: float) -> bool:
    self.rise, self.known = value - self.known, value
    return self.rise > 0

  def said(self, name: str, step: int, value: float) -> str:
    many = f"{self.rise:,.0f} updates were" if self.rise > 1 else "an update was"
    return f"{many} skipped by step {step:,}, {value:,.0f} in all: a loss or a gradient was not finite"


def _rule(name: str) -> _Rule | None:
  if name.endswith("/frechet_distance") and not is_floor(name):
    return _DistanceGrows()
  kinds = {
    _DISCRIMINATOR: _DiscriminatorWon, "generated/recall": _RecallLost, "generated/modes": _ModesLost,
    "train/loss": _LossSpikes, "train/skipped": _Skipped,
  }  # fmt: skip
  return kinds[name]() if name in kinds else None
