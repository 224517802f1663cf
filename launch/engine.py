"""What the launchers share: flags from a dataclass, the command after `--`, and printing or submitting a text. It knows
no engine, and starts nothing but the tool that an engine names.
"""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from experiments import flags, manual
from experiments.schema import flag
from launch.experiment import check_command
from research.errors import UserError
from research.streams import say_what_can_be_said

T = TypeVar("T")
AGAIN = (75, 77)  # the exit codes after which the same command goes on: stopped after saving, another host died
EXAMPLE = "python -m experiments.gan --config=digits"
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")


@dataclasses.dataclass(frozen=True)
class Resources:
  """What every engine that takes a text is told."""

  name: str = flag("flagship", "the job's name: small letters, digits and hyphens, 40 at most")
  submit: bool = flag(False, "act; without it, what would be done is printed")
  restarts: int = flag(10, "most times that the command is run again after exit code 75 or 77", low=0, high=1000)

  def check(self) -> None:
    """Raises UserError for values that no single flag forbids."""
    if not _NAME.fullmatch(self.name):
      raise UserError(
        f"launch: --name={self.name} names no job; small letters, digits and hyphens would, a letter first, 40 at most"
      )
    for name, value in flags.values(self).items():  # they become lines, where a blank would end the value
      if isinstance(value, str) and not type(self).__dataclass_fields__[name].metadata["verbatim"] and " " in value:
        raise UserError(f"launch: --{name}={value} has a blank in it")


@dataclasses.dataclass(frozen=True)
class Engine:
  """A launcher.

  Attributes:
    name: as in `python -m launch.NAME`.
    about: the module's docstring; its first line stands above --help.
    schema: the dataclass of its flags.
    text: (command's words, resources) → what the engine takes, whole. Pure.
    tool: the program that takes the text, with its arguments; the text's file follows them.
    suffix: of that file.
    example: flags that make a whole command, for --help and errors.
  """

  name: str
  about: str
  schema: type[Resources]
  text: Callable[[tuple[str, ...], Any], str]
  tool: tuple[str, ...]
  suffix: str
  example: str


def main(engine: Engine, arguments: Sequence[str] | None = None) -> int:
  """Prints or submits; returns the exit code: 2 after one line where the flags are wrong or the tool is missing, else
  the tool's."""
  arguments = list(sys.argv[1:] if arguments is None else arguments)
  say_what_can_be_said(sys.stdout, sys.stderr)
  try:
    if asks_for_help(arguments):
      print(help_text(engine.name, engine.about, engine.schema, engine.example))
      return 0
    resources, command = read(engine.name, engine.schema, arguments, engine.example)
    text = engine.text(command, resources)
    if resources.submit:
      return submit(engine, resources.name, text)
    print(text, end="")
  except UserError as error:
    print(" ".join(str(error).split("\n")), file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("stopped", file=sys.stderr)
    return 75
  except BrokenPipeError:
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  the reader has left; say nothing at exit
  return 0


def asks_for_help(arguments: Sequence[str]) -> bool:
  """Whether --help stands among the launcher's own arguments."""
  return bool({"-h", "-help", "--help"} & set(split(arguments)[0]))


def split(arguments: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
  """(what precedes the first `--`, the command after it)."""
  if "--" not in arguments:
    return list(arguments), ()
  dashes = list(arguments).index("--")
  return list(arguments[:dashes]), tuple(arguments[dashes + 1 :])


def read(name: str, schema: type[T], arguments: Sequence[str], example: str) -> tuple[T, tuple[str, ...]]:
  """(resources, the command's words). Raises UserError for anything that is wrong with either."""
  own, command = split(arguments)
  if not command:
    raise UserError(f"launch: there is no command; it stands after --: python -m launch.{name} {example} -- {EXAMPLE}")
  if "\0" in "".join(command):
    raise UserError("launch: the command has a zero byte in it")
  check_command(command)
  resources, words = flags.parse(schema, own)
  if words:
    raise UserError(f"launch: {words[0]!r} is no flag of launch.{name}; the command stands after --")
  return resources, command


def submit(engine: Engine, name: str, text: str) -> int:
  """Hands the text to the engine's tool, as a file that is gone afterwards; returns the tool's exit code."""
  if shutil.which(engine.tool[0]) is None:
    raise UserError(
      f"launch: --submit needs {engine.tool[0]}, which is not on the PATH; without --submit the text is printed"
    )
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / f"{name}{engine.suffix}"
    path.write_text(text, "utf-8")
    return subprocess.run([*engine.tool, str(path)]).returncode


def help_text(name: str, about: str, schema: type, example: str) -> str:
  """The manual: what it does, its usage, and its flags with their defaults."""
  width = min(shutil.get_terminal_size().columns, 120)
  usage = f"  python -m launch.{name} {example} -- {EXAMPLE}"
  lines = [about.strip().splitlines()[0], "", "usage:", usage, "", "flags:"]
  for leaf in flags.leaves(schema):
    lines += manual.flag_lines(leaf, leaf.field.default, width)
  return "\n".join(lines)
