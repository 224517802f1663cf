"""Reads what a run directory holds, finished or not, for pages and comparisons; it writes nothing."""

import dataclasses
import difflib
import re
from collections.abc import Mapping
from pathlib import Path

from research import goodput
from research.errors import UserError
from research.parsing import parse_json
from research.report import predictions, record, samples

_FLAG = re.compile(r"--?([A-Za-z_][\w.]*)(?:=(.*))?$")
_DEFAULT = re.compile(r"#\s*default:\s?(.*)$")


@dataclasses.dataclass(frozen=True)
class Run:
  """Everything there is to tell of one run.

  Attributes:
    curves: metric name → (steps, values).
    flags: name → value as text, from run.flags, in the file's order.
    defaults: the default of each flag for which one is known.
    environment: run.json; {} without one.
    result: result.json; {} while the run is not finished.
    goodput: seconds of wall time by what they went to, of all starts; all 0 without an account.
    profile: profile/summary.json, what a trace of some updates said; {} without one.
    predictions: the arrays of predictions.npz, None without one.
    samples: the files under samples/, each kind's by step; "" is the main kind.
  """

  path: Path
  records: list[record.Record]
  curves: dict[str, tuple[list[int], list[float]]]
  flags: dict[str, str]
  defaults: dict[str, str]
  environment: dict
  result: dict
  goodput: dict[str, float]
  profile: dict
  predictions: predictions.Predictions | None
  samples: samples.Files

  @property
  def name(self) -> str:
    return self.path.resolve().name

  @property
  def step(self) -> int:
    """The last step that is known of."""
    return int(self.result.get("step") or (self.records[-1]["step"] if self.records else 0))

  @property
  def wall_seconds(self) -> float:
    """As result.json says, else by the account of the time so far, else between the first and the last record."""
    if "wall_seconds" in self.result:
      return record.number(self.result["wall_seconds"])
    if accounted := sum(self.goodput.values()):
      return accounted
    return self.records[-1]["time"] - self.records[0]["time"] if self.records else 0.0

  @property
  def final(self) -> dict[str, float]:
    """Each metric's last value; where result.json has it, that one."""
    last = {name: values[-1] for name, (_, values) in self.curves.items()}
    return last | {name: record.number(value) for name, value in self.result.get("metrics", {}).items()}

  def changed(self) -> list[str]:
    """The flags whose value is not the default, as far as defaults are known."""
    return [name for name, value in self.flags.items() if name in self.defaults and self.defaults[name] != value]


def open_run(path: Path, result: Mapping | None = None) -> Run:
  """Reads `path`. `result` stands in for a result.json that is not written yet.

  Raises UserError (one line) if `path` is no run directory or a file in it is damaged.
  """
  path = Path(path)
  if not (path / "metrics.jsonl").is_file():
    raise UserError(f"report: {path} {'has no metrics.jsonl, so it is no run' if path.is_dir() else 'does not exist'}"
                    f"{_nearest(path)}")
  records = record.read(path / "metrics.jsonl")
  flags, defaults = _flags(path / "run.flags")
  environment = _json(path / "run.json")
  stored = environment.get("defaults")
  if isinstance(stored, dict):
    defaults |= {str(name): str(value) for name, value in stored.items()}
  return Run(
    path=path,
    records=records,
    curves=record.curves(records),
    flags=flags,
    defaults=defaults,
    environment=environment,
    result=dict(result) if result is not None else _json(path / "result.json"),
    goodput=goodput.account(goodput.read(path)),
    profile=_json(path / "profile" / "summary.json"),
    predictions=predictions.read(path / "predictions.npz"),
    samples=samples.find(path / "samples"),
  )


def _nearest(path: Path) -> str:
  """" (did you mean …?)" from the runs beside `path`."""
  if not path.parent.is_dir():
    return ""
  runs = [beside.name for beside in path.parent.iterdir() if (beside / "metrics.jsonl").is_file()]
  near = difflib.get_close_matches(path.name, runs, n=1)
  return f" (did you mean {path.parent / near[0]}?)" if near else ""


def _json(path: Path) -> dict:
  try:
    content = parse_json(path.read_text("utf-8"))
  except FileNotFoundError:
    return {}
  except (OSError, ValueError) as error:
    raise UserError(f"report: {path} is damaged ({error}); delete it to do without") from error
  if not isinstance(content, dict):
    raise UserError(f"report: {path} must hold a JSON object")
  return content


def _flags(path: Path) -> tuple[dict[str, str], dict[str, str]]:
  """Values and defaults by flag name. A comment `# default: VALUE` tells the default of the flag on the next line."""
  flags, defaults, default = {}, {}, None
  try:
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
  except (OSError, ValueError) as error:
    raise UserError(f"report: cannot read {path}: {error}") from error
  for line in map(str.strip, lines):
    if flag := _FLAG.match(line):
      name, value = flag[1], "true" if flag[2] is None else flag[2]
      flags[name] = value
      if default is not None:
        defaults[name] = default
    comment = _DEFAULT.match(line)
    default = comment[1] if comment else None
  return flags, defaults
