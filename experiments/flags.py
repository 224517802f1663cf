"""Contract 5: dataclasses ↔ absl flags ↔ flag files. It parses and writes; it refuses to know any experiment."""

import dataclasses
import difflib
import math
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import flags

from research.errors import UserError

T = TypeVar("T")

MOST_FILES = 1000  # with those that they include, each as often as it is
MOST_BYTES = 2**20  # of a flag file


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One flag of a schema: its dotted name, the dataclass it sits in, and its field."""

  name: str
  group: type
  field: dataclasses.Field

  @property
  def changes_curve(self) -> bool:
    return self.field.metadata["curve"]


def leaves(schema: type, prefix: str = "") -> Iterator[Leaf]:
  """Walks a schema in the order in which it is written."""
  for field in dataclasses.fields(schema):
    if dataclasses.is_dataclass(field.type):
      yield from leaves(field.type, f"{prefix}{field.name}.")
    else:
      yield Leaf(f"{prefix}{field.name}", schema, field)


def values(config: Any, prefix: str = "") -> dict[str, Any]:
  """The config as {dotted name: value}."""
  out = {}
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      out |= values(value, f"{prefix}{field.name}.")
    else:
      out[f"{prefix}{field.name}"] = value
  return out


def build(schema: type[T], named: dict[str, Any], prefix: str = "") -> T:
  """The config that `values` came from."""
  parts = {}
  for field in dataclasses.fields(schema):
    name = f"{prefix}{field.name}"
    parts[field.name] = build(field.type, named, f"{name}.") if dataclasses.is_dataclass(field.type) else named[name]
  return schema(**parts)


def write_value(value: Any) -> str:
  """A value as it stands in a flag file: `build(parse(write_value(v)))` gives the same bits."""
  if isinstance(value, bool):
    return "true" if value else "false"
  if isinstance(value, tuple):
    return ",".join(str(item) for item in value)
  return repr(value) if isinstance(value, float) else str(value)


def to_text(config: Any) -> str:
  """A flag file of every flag, one a line."""
  return "".join(f"--{name}={write_value(value)}\n" for name, value in values(config).items())


def read_lines(path: Path, trail: tuple[Path, ...] = (), read: list[Path] | None = None) -> list[str]:
  """A flag file's arguments, by absl's rules (comments, blank lines, nested --flagfile), paths relative to the file."""
  read = [] if read is None else read
  if path.resolve() in trail:
    raise UserError(f"flags: {path} includes itself")
  read.append(path)
  if len(read) > MOST_FILES:
    raise UserError(f"flags: {read[0]} includes more than {MOST_FILES} files")
  try:
    about = path.stat()
    if not stat.S_ISREG(about.st_mode) or about.st_size > MOST_BYTES:
      raise UserError(f"flags: {path} is no flag file: it is larger than 1 MB, or no file at all")
    text = path.read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"flags: cannot read the flag file {path}: {getattr(error, 'strerror', None) or error}") from error
  arguments = []
  for number, line in enumerate(text.splitlines(), 1):
    line = line.strip()
    if not line or line.startswith(("#", "//")):
      continue
    if not line.startswith("-"):
      raise UserError(f"flags: {path} line {number}: {line!r} is no flag; write --name=value, one a line")
    name, value = line.lstrip("-").replace(" ", "=", 1).partition("=")[::2]
    if name in ("config", "workdir"):
      raise UserError(f"flags: {path} line {number}: --{name} belongs on the command line; --flagfile=… reads a file")
    if name == "flagfile":
      nested = value.strip()
      arguments += read_lines(path.parent / Path(nested).expanduser(), (*trail, path.resolve()), read)
    else:
      arguments.append(line)
  return arguments


class _Number(flags.ArgumentParser):
  """A finite int or float within bounds, whose complaint says what would be right."""

  def __init__(self, kind: type, low: float | None, high: float | None):
    self._kind, self._low, self._high = kind, low, high
    noun = "a whole number" if kind is int else "a number"
    if low is not None and high is not None:
      self.syntactic_help = f"{noun} from {_written(low)} to {_written(high)}"
    else:
      self.syntactic_help = noun if low is None else f"{noun}, at least {_written(low)}"

  def parse(self, argument: Any) -> float:
    try:
      value = self._kind(argument)
    except ValueError as error:
      raise ValueError(self.syntactic_help) from error
    outside = (self._low is not None and value < self._low) or (self._high is not None and value > self._high)
    if not math.isfinite(value) or outside or (self._kind is int and abs(value) >= 2**63):
      raise ValueError(self.syntactic_help)
    return value

  def flag_type(self) -> str:
    return self._kind.__name__


def _written(bound: float) -> str:
  return str(int(bound)) if bound == int(bound) else str(bound)


class _Numbers(flags.ArgumentParser):
  """Whole numbers with commas between them; empty for none."""

  syntactic_help = "whole numbers, at least 1, with commas between them"

  def parse(self, argument: Any) -> tuple[int, ...]:
    if isinstance(argument, tuple):
      return argument
    try:
      numbers = tuple(int(item) for item in argument.split(",")) if argument.strip() else ()
    except ValueError as error:
      raise ValueError(self.syntactic_help) from error
    if any(number < 1 for number in numbers):
      raise ValueError(self.syntactic_help)
    return numbers

  def flag_type(self) -> str:
    return "ints"


class _Choice(flags.EnumParser):
  """One of a few words; the nearest is named."""

  def __init__(self, choices: Sequence[str]):
    super().__init__(list(choices))
    self.syntactic_help = "one of " + ", ".join(choices)

  def parse(self, argument: str) -> str:
    if argument not in self.enum_values:
      near = difflib.get_close_matches(argument, self.enum_values, 1)
      raise ValueError(self.syntactic_help + (f" (did you mean {near[0]}?)" if near else ""))
    return argument


class _Line(flags.ArgumentParser):
  """A string that fits on a line of a flag file."""

  syntactic_help = "text without line breaks"

  def parse(self, argument: str) -> str:
    if argument != argument.strip() or len(argument.splitlines()) > 1:
      raise ValueError(self.syntactic_help + " or blanks around it")
    return argument


class _Truth(flags.BooleanParser):
  syntactic_help = "true or false"

  def parse(self, argument: Any) -> bool:
    try:
      return super().parse(argument)
    except (TypeError, ValueError) as error:
      raise ValueError(self.syntactic_help) from error


def parser(field: dataclasses.Field) -> flags.ArgumentParser:
  """absl's parser for a field's type, range and choices."""
  low, high = field.metadata["low"], field.metadata["high"]
  if field.metadata["choices"]:
    return _Choice(field.metadata["choices"])
  if isinstance(field.default, bool):
    return _Truth()
  if isinstance(field.default, int | float):
    return _Number(type(field.default), low, high)
  if field.metadata["verbatim"]:
    return flags.ArgumentParser()
  return _Numbers() if isinstance(field.default, tuple) else _Line()


def parse(schema: type[T], arguments: Sequence[str]) -> tuple[T, list[str]]:
  """Reads expanded arguments (no --config or --flagfile left) into a config.

  Returns:
    The config, checked, and the positional words.

  Raises:
    UserError: an unknown flag, a value of the wrong type or range, an impossible combination.
  """
  known, defaults = flags.FlagValues(), values(schema())  # a group's own default may differ from its class's
  known.set_gnu_getopt(True)
  for leaf in leaves(schema):
    named = {"name": leaf.name, "default": defaults[leaf.name], "help": leaf.field.metadata["help"]}
    if isinstance(leaf.field.default, bool):
      flags.DEFINE_boolean(**named, flag_values=known)
      known[leaf.name].parser = _Truth()
    else:
      flags.DEFINE(parser(leaf.field), **named, flag_values=known, serializer=flags.ArgumentSerializer())
  try:
    words = known(["", *arguments])[1:]
  except flags.UnrecognizedFlagError as error:
    hint = nearest(error.flagname, list(known))
    raise UserError(f"flags: no flag --{error.flagname}{hint}; --help lists them") from error
  except flags.Error as error:
    raise UserError(f"flags: {_plain(str(error))}") from error
  config = build(schema, {name: known[name].value for name in defaults})
  config.check()
  return config, words


def typed(schema: type, arguments: Sequence[str]) -> list[str]:
  """The names of the schema's flags that stand in a command line, whatever they are set to."""
  names = {leaf.name for leaf in leaves(schema)}
  found = [each.lstrip("-").partition("=")[0] for each in arguments if each.startswith("-")]
  return [name for each in found if (name := each if each in names else each.removeprefix("no")) in names]


def nearest(name: str, names: list[str]) -> str:
  """' (did you mean --x?)' by the whole name, or by its last part: people forget the group."""
  by_last = {each.rpartition(".")[2]: each for each in reversed(names)}
  near = difflib.get_close_matches(name, names, 1, 0.75) or [
    by_last[last] for last in difflib.get_close_matches(name.rpartition(".")[2], by_last, 1, 0.75)
  ]
  return f" (did you mean --{near[0]}?)" if near else ""


def _plain(message: str) -> str:
  """absl's «flag --x=y: reason» as «--x=y: expected reason»."""
  head, _, reason = message.partition(": ")
  if head.startswith("flag --"):
    return f"{head.removeprefix('flag ')}: expected {reason}"
  return " ".join(message.split())
