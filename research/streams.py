"""What a stream whose encoding has no minus sign or dash shows in its place: a run must not end because a number is
negative and a log is in Latin-1.
"""

import codecs
from typing import TextIO

_ASCII = {"−": "-", "·": "|", "×": "x", "…": "...", "→": "->", "∞": "inf", "’": "'"}


def say_what_can_be_said(*streams: TextIO) -> None:
  """Lets each stream write what its encoding lacks in ASCII. Streams of Unicode stay as they are."""
  codecs.register_error("flagship", _in_ascii)
  for stream in streams:
    encoding = (getattr(stream, "encoding", None) or "utf-8").lower()
    if hasattr(stream, "reconfigure") and not encoding.startswith("utf"):
      stream.reconfigure(errors="flagship")


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
  if not isinstance(error, UnicodeEncodeError):
    raise error
  return "".join(_ASCII.get(char, "?") for char in error.object[error.start : error.end]), error.end
