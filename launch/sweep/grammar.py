"""What --over says: a flag of the experiment and the values that it is to have, or the range that they are drawn from.

  optim.learning_rate=1e-3,3e-3,1e-2     values, with commas between them
  model.widths=64;128,128                with ; where a value has commas itself
  optim.learning_rate=log:1e-4..1e-1     a range, evenly over the logarithm
  model.dropout=0..0.5                   a range; whole numbers where the flag takes whole numbers

A flag that is a list of numbers has to be written with ;, so that no line can be read in two ways.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from experiments import flags
from research.errors import UserError

_WORDS = 100  # characters of a trial's name


@dataclasses.dataclass(frozen=True)
class Values:
  """A flag's values, as they are written on the command line."""

  flag: str
  values: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Range:
  """Where a flag's value lies, both ends included."""

  flag: str
  low: float
  high: float
  logarithmic: bool
  whole: bool

  @property
  def ends(self) -> tuple[str, ...]:
    return tuple(write(end) for end in (self.low, self.high))


Swept = Values | Range
Choice = Mapping[str, str]  # flag → value, both as written


def parse(schema: type, texts: Sequence[str]) -> list[Swept]:
  """The flags that are swept. Raises UserError for one that does not exist, is there twice, or says nothing clear."""
  leaves = {leaf.name: leaf for leaf in flags.leaves(schema)}
  found = [_parse(leaves, text) for text in texts]
  names = [each.flag for each in found]
  if twice := [name for name in names if names.count(name) > 1]:
    raise UserError(f"sweep: --over={twice[0]}=… is given twice; give all of its values in one")
  return found


def _parse(leaves: Mapping[str, flags.Leaf], text: str) -> Swept:
  name, equals, rest = text.partition("=")
  name, rest = name.strip().lstrip("-"), rest.strip()
  if not equals or not rest:
    raise UserError(f"sweep: --over={text} names no values; write --over='optim.learning_rate=1e-3,3e-3,1e-2'")
  if name not in leaves:
    raise UserError(f"sweep: --over={text}: no flag --{name}{flags.nearest(name, list(leaves))}")
  default = leaves[name].field.default
  number = isinstance(default, int | float) and not isinstance(default, bool)
  if number and (".." in rest or rest.startswith("log:")):
    return _range(name, rest, isinstance(default, int))
  if isinstance(default, tuple) and "," in rest and ";" not in rest:
    raise UserError(
      f"sweep: --over={text} is one value of --{name}, or several: write ; between values, as in"
      f" --over='{name}={rest.replace(',', ';', 1)}'"
    )
  values = [value.strip() for value in rest.rstrip(";").split(";" if ";" in rest else ",")]
  if twice := [value for value in values if values.count(value) > 1]:
    raise UserError(f"sweep: --over={text} has {twice[0] or 'an empty value'} twice")
  return Values(name, tuple(values))


def _range(name: str, rest: str, whole: bool) -> Range:
  wrong = f"sweep: --over={name}={rest} is no range; write LOW..HIGH or log:LOW..HIGH, as in log:1e-4..1e-1"
  logarithmic = rest.startswith("log:")
  ends = rest.removeprefix("log:").split("..")
  try:
    low, high = (int(end) if whole else float(end) for end in ends)
  except ValueError as error:
    raise UserError(wrong + (f"; --{name} takes whole numbers" if whole else "")) from error
  if not (math.isfinite(low) and math.isfinite(high) and low < high):
    raise UserError(f"{wrong}; the first end has to be less than the second")
  if logarithmic and low <= 0:
    raise UserError(f"sweep: --over={name}={rest}: a range over the logarithm begins above 0")
  return Range(name, low, high, logarithmic, whole)


def grid(space: Sequence[Swept]) -> Iterator[Choice]:
  """Every combination, the last flag's values changing first. Raises UserError for a range."""
  for each in space:
    if isinstance(each, Range):
      raise UserError(
        f"sweep: --over={each.flag}={each.ends[0]}..{each.ends[1]} is a range, which --method=random and tpe draw"
        " from; a grid needs values"
      )
  for values in itertools.product(*(each.values for each in space)):
    yield dict(zip((each.flag for each in space), values, strict=True))


def corners(space: Sequence[Swept]) -> Iterator[Choice]:
  """Combinations in which each value and each end of a range comes once: what is checked before anything is drawn."""
  first = {each.flag: (each.values if isinstance(each, Values) else each.ends)[0] for each in space}
  yield first
  for each in space:
    for value in (each.values if isinstance(each, Values) else each.ends)[1:]:
      yield {**first, each.flag: value}


def write(value: str | float) -> str:
  """A drawn value as it stands on a command line, every digit of it."""
  return flags.write_value(value)


def name(number: int, choice: Mapping[str, str | float]) -> str:
  """A trial's, and its run directory's: its number, and what it has of the swept flags, numbers to three digits."""
  parts = [f"{flag.rpartition('.')[2]}={_short(value)}" for flag, value in choice.items()]
  words = "".join(char if char.isalnum() or char in "-_.=," else "_" for char in "-".join(parts))
  return f"{number:03d}-{words[:_WORDS]}"


def _short(value: str | float) -> str:
  return f"{value:.3g}" if isinstance(value, float) else str(value).rpartition("/")[2]
