"""Studies of what more of something gives: `devices` of more devices, `laws` of more parameters, data and compute.

  python -m launch.scaling devices --help
  python -m launch.scaling laws --help
"""

import difflib
import importlib
import sys
import traceback
from collections.abc import Sequence

from launch.scaling.points import Stopped
from research.errors import UserError
from research.streams import say_what_can_be_said

WORDS = ("devices", "laws")  # each a module here with main(arguments) → exit code
STOPPED = 75


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs a study and returns its exit code. A UserError is one line on stderr and 2."""
  arguments = list(sys.argv[1:] if arguments is None else arguments)
  say_what_can_be_said(sys.stdout, sys.stderr)
  try:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
      print(__doc__.strip())
      return 0
    word, *rest = arguments
    if word not in WORDS:
      near = difflib.get_close_matches(word, WORDS, 1)
      hint = f" (did you mean {near[0]}?)" if near else ""
      raise UserError(f"scaling: no study {word!r}{hint}; the studies are {', '.join(WORDS)}")
    return importlib.import_module(f"launch.scaling.{word}").main(rest)  # the other study's libraries may be missing
  except UserError as error:
    print(" ".join(str(error).split("\n")), file=sys.stderr)
    return 2
  except (KeyboardInterrupt, Stopped):
    print("stopped; the same command goes on", file=sys.stderr)
    return STOPPED
  except Exception:
    traceback.print_exc()
    return 1


if __name__ == "__main__":
  sys.exit(main())
