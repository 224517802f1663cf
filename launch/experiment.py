"""An experiment by its folder's name, for commands that start others."""

import importlib
from pathlib import Path

from experiments import command
from research.errors import UserError
from research.nearest import hint


def find(name: str) -> command.Definition:
  """experiments/NAME. Raises UserError where there is no such folder."""
  names = [path.parent.name for path in Path(command.__file__).parent.glob("*/__main__.py")]
  if name not in names:
    raise UserError(f"launch: no experiment {name!r}{hint(name, names)}")
  return importlib.import_module(f"experiments.{name}.__main__").EXPERIMENT
