"""What a stream whose encoding has no minus sign or dash shows in its place: a run must not end because a number is
negative and a log is in Latin-1. And who may write to a stream at all, where several processes or libraries would.
"""

import codecs
import io
import os
import sys
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


def mute(name: str) -> None:
  """What is written to the standard stream of that name goes nowhere, C++'s too."""
  stream = getattr(sys, name)
  stream.flush()
  with open(os.devnull, "w") as nowhere:
    os.dup2(nowhere.fileno(), stream.fileno())


def take_from_libraries(name: str) -> None:
  """The standard stream of that name is Python's alone: what C++ writes to it goes nowhere."""
  stream = getattr(sys, name)
  like = {each: getattr(stream, each) for each in ("encoding", "errors", "line_buffering", "write_through")}
  ours = io.TextIOWrapper(io.BufferedWriter(io.FileIO(os.dup(stream.fileno()), "w")), **like)
  mute(name)
  setattr(sys, name, ours)
