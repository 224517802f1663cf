"""Numbers that were measured and not reasoned: the block sizes of a form, for a kind of device and a version of jax.

An operation's folder keeps them in `tuned.json`: {form: {device kind: {jax version: {case: {name: number}}}}}. What it
does not have is the form's default. `python -m research.kernels.tune OPERATION` measures and writes it.
"""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from research.parsing import parse_json

TUNABLES: dict[tuple[str, str], "Tunable"] = {}  # (operation, form)
Parameters = dict[str, int]

_trying: dict[tuple[str, str], Parameters] = {}  # what the tuner is measuring


@dataclasses.dataclass(frozen=True)
class Tunable:
  """What of a form can be tuned.

  Attributes:
    op: the folder's name, such as "attention".
    form: such as "chunked".
    default: parameters where nothing was measured.
    candidates: what the tuner tries, beside the default.
    cases: name of a case → () → (a function to jit, its arrays): what the tuner times for it. A case is what decides
      the best parameters: a direction, a dtype, a width.
  """

  op: str
  form: str
  default: Mapping[str, int]
  candidates: Sequence[Mapping[str, int]]
  cases: Mapping[str, Callable[[], tuple[Callable[..., Any], tuple[jax.Array, ...]]]]

  def __post_init__(self) -> None:
    TUNABLES[self.op, self.form] = self

  def parameters(self, case: str, device_kind: str | None = None) -> Parameters:
    """For a case on a kind of device (of this process' first, where none is named): measured with this jax, else with
    the newest of which there are measurements on that device, else the default."""
    if (tried := _trying.get((self.op, self.form))) is not None:
      return {**self.default, **tried}
    by_version = tuned(self.op).get(self.form, {}).get(device_kind or this_kind(), {})
    found = [each[case] for _, each in sorted(by_version.items(), key=lambda item: _order(item[0])) if case in each]
    exact = by_version.get(version("jax"), {}).get(case)
    return {**self.default, **(exact or (found[-1] if found else {}))}


@contextlib.contextmanager
def trying(op: str, form: str, parameters: Mapping[str, int]) -> Iterator[None]:
  """Within it, the form has these parameters, in every thread. What was traced before keeps what it had."""
  before = _trying.get((op, form))
  _trying[op, form] = dict(parameters)
  try:
    yield
  finally:
    if before is None:
      del _trying[op, form]
    else:
      _trying[op, form] = before


@functools.cache
def this_kind() -> str:
  """What this process' first device is called; of a CPU, its processor."""
  device = jax.devices()[0]
  if device.platform != "cpu":
    return device.device_kind
  try:
    return re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1].strip()
  except (OSError, TypeError):
    return "cpu"


@functools.cache
def tuned(op: str) -> dict[str, Any]:
  """The operation's tuned.json, or {} where there is none."""
  try:
    return parse_json(path(op).read_text())
  except FileNotFoundError:
    return {}


def path(op: str) -> Path:
  """Where an operation's measurements are kept."""
  return Path(__file__).parent / op / "tuned.json"


def _order(written: str) -> tuple[int, ...]:
  return tuple(int(part) for part in written.split(".") if part.isdigit())
