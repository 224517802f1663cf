"""Tables of measurements in Markdown pages, between two marks that name the command that writes them."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path


def write(page: Path, name: str, lines: Sequence[str]) -> None:
  """Puts lines between `<!-- name -->` and `<!-- end -->`. Exits where the page has not one such place."""
  marks = rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)"
  text, count = re.subn(
    marks, lambda found: found[1] + "\n".join(lines) + "\n" + found[2], page.read_text(), flags=re.DOTALL
  )
  if count != 1:
    sys.exit(f"{page} has {count} places for the table of {name}; it wants one")
  page.write_text(text)


def processor() -> str:
  """The processor's name, where Linux tells it."""
  try:
    return re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1].strip()
  except (OSError, TypeError):
    return "an unnamed processor"
