"""What there is to start runs with:

  python -m launch.local       processes of this machine
  python -m launch.slurm       a job of Slurm
  python -m launch.tpu_vm      Cloud TPU machines
  python -m launch.gke         a job on Google's Kubernetes Engine
  python -m launch.skypilot    a task of SkyPilot, on any cloud
  python -m launch.sweep       a run for each of some flags' values
  python -m launch.scaling     studies of more devices, parameters, data

Each has --help. This command starts none of them.
"""

import re
import sys
from collections.abc import Sequence

from research.errors import UserError
from research.nearest import meant

NAMES = tuple(re.findall(r"launch\.(\w+)", __doc__))


def main(arguments: Sequence[str] | None = None) -> int:
  """Prints what there is and returns 0; 2 after one line for any word."""
  arguments = list(sys.argv[1:] if arguments is None else arguments)
  if not arguments or arguments[0] in ("-h", "-help", "--help", "--list", "help"):
    print(__doc__.strip())
    return 0
  name = arguments[0]
  if name in NAMES:
    error = UserError(f"launch: {name} is a command of its own: python -m launch.{name}")
  else:
    known = ", ".join(f"launch.{each}" for each in NAMES)
    error = UserError(f"launch: there is no {name!r}{meant(name, NAMES)}; there are {known}")
  print(error, file=sys.stderr)
  return 2


if __name__ == "__main__":
  sys.exit(main())
