"""Every experiment that there is: a new one is tested the day it is added."""

import importlib
from pathlib import Path

from experiments import command

NAMES = sorted(path.parent.name for path in Path(command.__file__).parent.glob("*/__main__.py"))
EXPERIMENTS = [importlib.import_module(f"experiments.{name}.__main__").EXPERIMENT for name in NAMES]
