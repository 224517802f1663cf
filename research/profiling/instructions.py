"""What an instruction of a compiled program is, in a researcher's words: module, operation, forward or backward.

It reads XLA's own text of the program, where instructions carry the path that they were traced under, and the line of
source that asked for them.
"""

import re
from pathlib import PurePath

_MODULE = re.compile(r"HloModule ([\w.\-]+)")
_HEAD = re.compile(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\w+\[[\d,]*\])?.*?[\])}] ([\w\-]+)\(")
_FACTS = {
  "path": re.compile(r'op_name="([^"]*)"'),
  "calls": re.compile(r"calls=%?([\w.\-]+)"),
  "target": re.compile(r'custom_call_target="([^"]*)"'),
  "frame": re.compile(r"stack_frame_id=(\d+)"),
}
_PRODUCTS = ("dot", "convolution")
# Steps of a path that say how the program was made, and not where in the model it is.
_HOW = re.compile(
  r"while|body|cond|closed_call|eval_jaxpr|checkpoint|rematted_computation|shard_map|branch_\d+_fun|[A-Z]\w*\.\w+"
)
_WRAPPED = re.compile(r"[\w.]+\((.*)\)")


class Program:
  """One compiled program.

  Args:
    text: as XLA prints it; "" where there is none, and then instructions keep their names.
  """

  def __init__(self, text: str):
    found = _MODULE.match(text or "")
    self._module = found[1] if found else ""
    self._sources = _Sources(text or "")
    self._facts: dict[str, dict[str, str]] = {}
    self._bodies: dict[str, list[str]] = {}
    body: list[str] = []
    for line in (text or "").splitlines():
      if head := _HEAD.match(line):
        body = self._bodies.setdefault(head[1], [])
      elif instruction := _INSTRUCTION.match(line):
        told = {name: match[1] for name, pattern in _FACTS.items() if (match := pattern.search(line))}
        self._facts[instruction[1]] = {"kind": instruction[3], "shape": instruction[2] or "", **told}
        body.append(instruction[1])

  def name(self, program: str, instruction: str) -> str:
    """"transformer/layers/mlp/up dot_general, backward"; outside of a model's modules "add, optax/_src/update.py:42";
    "copy of f32[8,128]" where nobody asked for it; its own name where nothing is known of it.

    Args:
      program: the HLO module that the instruction is of; what is not this program's is said with its module.
      instruction: its name.
    """
    if program not in ("", self._module):
      return f"{instruction} of {program}"
    facts = self._telling(instruction)
    words, inside = describe(facts.get("path", ""), facts.get("target", ""))
    source = "" if inside else self._sources.line(facts.get("frame", ""))
    return ", ".join(filter(None, [words, source])) if words else self._kind(instruction)

  def _kind(self, instruction: str) -> str:
    """What XLA put in for its own ends: a copy into another layout, zeros to add to."""
    own = self._facts.get(instruction)
    if own is None or not own["shape"]:
      return instruction
    last = self._bodies.get(own.get("calls", ""), [instruction])[-1]
    return f"{self._facts[last]['kind']} of {own['shape']}"

  def _telling(self, instruction: str) -> dict[str, str]:
    """The facts that say most: of a fusion's product where it has one, else its own, else of its last named part."""
    own = self._facts.get(instruction, {})
    inside = [self._facts[each] for each in self._bodies.get(own.get("calls", ""), ())]
    products = [each for each in inside if each["kind"] in _PRODUCTS and each.get("path")]
    named = [each for each in inside if each.get("path")]
    return next((each for each in (*products, own, *reversed(named)) if each.get("path")), own)


def describe(path: str, target: str = "") -> tuple[str, bool]:
  """What an operation is, and whether that says where in the model.

  "jit(update)/transpose(jvp(MLP))/hidden_1/dot_general" → ("hidden_1 dot_general, backward", True)

  Args:
    path: an instruction's op_name; "" gives "".
    target: what a custom call calls, which says more than that it is one.
  """
  path = path.partition(";")[0]  # of several that were made one
  way = ", backward" if "transpose(" in path else ", forward" if "jvp(" in path else ""
  steps = [_unwrapped(step) for step in path.split("/")[1:] if not _HOW.fullmatch(step)]
  *where, what = [step for step in steps if step] or [""]
  words = " ".join(filter(None, ["/".join(where), target or what]))
  return (words + way if words else ""), bool(where and way)


def _unwrapped(step: str) -> str:
  """"jit(silu)" → "silu"; "" of the model itself, "jvp(MLP)", which every path of it begins with."""
  if "jvp(" in step:
    return ""
  while found := _WRAPPED.fullmatch(step):
    step = found[1]
  return step


class _Sources:
  """The tables at the head of a program's text, from which a frame's number leads to a file and a line."""

  def __init__(self, text: str):
    self._files, self._places, self._frames = (
      _table(text, name) for name in ("FileNames", "FileLocations", "StackFrames")
    )

  def line(self, frame: str) -> str:
    """"optax/_src/update.py:42"; "" where it is not known."""
    place = self._places.get(_number("file_location_id", self._frames.get(frame, "")), "")
    file = self._files.get(_number("file_name_id", place), "").strip('"')
    return f"{'/'.join(PurePath(file).parts[-3:])}:{_number('line', place)}" if file else ""


def _table(text: str, name: str) -> dict[str, str]:
  found = re.search(rf"^{name}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
  return dict(row.split(" ", 1) for row in found[1].splitlines()) if found else {}


def _number(name: str, row: str) -> str:
  found = re.search(rf"\b{name}=(\d+)", row)
  return found[1] if found else ""
