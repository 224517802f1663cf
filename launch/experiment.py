"""An experiment by its folder's name, for commands that start others."""

import importlib
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from experiments import command
from research.errors import UserError
from research.nearest import hint, meant

FOLDER = Path(command.__file__).parent


def find(name: str) -> command.Definition:
  """experiments/NAME. Raises UserError where there is no such folder."""
  if name not in (known := names()):
    raise UserError(f"launch: no experiment {name!r}{hint(name, known)}")
  return importlib.import_module(f"experiments.{name}.__main__").EXPERIMENT


def names() -> list[str]:
  """Of all experiments."""
  return sorted(path.parent.name for path in FOLDER.glob("*/__main__.py"))


def check_command(words: Sequence[str]) -> None:
  """Raises UserError where `python -m experiments.NAME … --config=PRESET` names what this checkout has not.

  Other commands may be anything, and a --config that looks like a path may lie on the machines alone.
  """
  options = list(itertools.takewhile(lambda word: word.startswith("-") and word != "-m", words[1:]))
  rest = words[1 + len(options) :]
  if not re.fullmatch(r"python[\d.]*", Path(words[0]).name) or len(rest) < 2 or rest[0] != "-m":
    return
  package, _, name = rest[1].removesuffix(".__main__").partition(".")
  if package != "experiments":
    return
  if name not in (known := names()):
    near = meant(name, known)
    raise UserError(f"launch: the command's {rest[1]} does not exist{near}; experiments: {', '.join(known)}")
  presets = sorted(path.stem for path in (FOLDER / name).glob("*.flags"))
  for word, following in itertools.zip_longest(rest[2:], rest[3:], fillvalue=""):
    flag, equals, value = word.partition("=")
    if flag not in ("--config", "-config") or not (value := value if equals else following):
      continue
    if not re.search(r"[/.~]", value) and value not in presets and not Path(value).exists():
      raise UserError(
        f"launch: the command's experiments.{name} has no preset {value!r}{meant(value, presets)};"
        f" presets: {', '.join(presets)}"
      )
