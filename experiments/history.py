"""What a run knows of its own past: where its numbers come from, what it has measured, and whether it may go on."""

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import flags, inputs, run_directory
from experiments.command import Request
from experiments.job import Job
from experiments.schema import AUGMENTATION, Experiment
from research import goodput as accounts
from research import manifest, provenance, selection
from research.checkpoint import Checkpoints, is_step
from research.errors import UserError
from research.models.table import parameter_count
from research.parallel.agreement import by_first
from research.report import record
from research.task import State

# Data flags that another content of the data is no consequence of.
KEEP_CONTENT = ("data.batch_size", "data.label_smoothing", *AUGMENTATION)


def about(request: Request, job: Job) -> dict[str, Any]:
  """What each checkpoint says of where it comes from."""
  return {
    "experiment": request.line[2].rpartition(".")[2],
    "flags": {name: flags.write_value(value) for name, value in flags.values(request.config).items()},
    **provenance.code(),
    "mesh": dict(job.mesh.shape),
    "data": job.data.splits.fingerprint,
    "order": _order(job),
  }


def _order(job: Job) -> str:
  """A digest of which examples the first batches are made of: another version's order would be another run."""
  rows = [np.asarray(job.data.train.plan.rows(step)[0], np.int64).tobytes() for step in range(4)]
  return hashlib.sha256(b"".join(rows)).hexdigest()


def changes(request: Request, job: Job, checkpoints: Checkpoints, start: int) -> tuple[list[dict], list[str]]:
  """(what --allow_change has let differ from checkpoint `start`, what else differs, in words). Raises UserError where
  anything else that changes the curve differs."""
  there, here = checkpoints.about(start), about(request, job)
  found = run_directory.differences(there["flags"], request.config)
  known = by_first(lambda: run_directory.read_record(request.workdir).get(run_directory.CHANGES, []))
  allowed = {*request.allowed, *(change["flag"] for change in known)}
  where = f"checkpoint {request.workdir / 'checkpoints' / str(start)}"
  run_directory.refuse(where, [each for each in found if each.name not in allowed])
  if there["data"] != here["data"] and not _other_content(found):
    raise UserError(f"run: {where} was made with other data; give another --workdir")
  if there["order"] != here["order"] and not any(each.name.startswith(("data.", "seed")) for each in found):
    raise UserError(f"run: {where} was made with another order of the examples; give another --workdir")
  versions = [
    f"{name} {theirs} (now {here['versions'].get(name)})"
    for name, theirs in there["versions"].items()
    if here["versions"].get(name) != theirs
  ]
  commits = [(each["git"] or {}).get("commit") for each in (there, here)]
  versions += [f"commit {str(commits[0])[:10]} (now {str(commits[1])[:10]})"] if commits[0] != commits[1] else []
  notes = [f"the checkpoint was made by {', '.join(versions)}: the curve may differ"] if versions else []
  notes += by_first(lambda: _lost_lines(request, start))
  made = [
    {"step": start, "flag": each.name, "from": each.there, "to": each.here}
    for each in found
    if {"flag": each.name, "to": each.here} not in [{"flag": c["flag"], "to": c["to"]} for c in known]
  ]
  notes += [f"from step {start} on --{change['flag']}={change['to']}, before {change['from']}" for change in made]
  return made, notes


def _lost_lines(request: Request, start: int) -> list[str]:
  """A note where lines of metrics are missing that were on the disk before checkpoint `start`."""
  with contextlib.suppress(UserError):
    steps = [line["step"] for line in record.read(request.workdir / "metrics.jsonl") if line["step"] <= start]
    if steps and steps[-1] + 2 * max(request.config.run.log_every, request.config.run.steps_per_call) < start:
      return [f"metrics.jsonl has lost lines: the curve has none from step {steps[-1]} to step {start}"]
    if steps or start < request.config.run.log_every:
      return []
  return [f"metrics.jsonl is gone: the curve begins at step {start}"]


def _other_content(found: Sequence[run_directory.Difference]) -> bool:
  """Whether flags differ that say which data there are."""
  return any(each.name.startswith("data.") and each.name not in KEEP_CONTENT for each in found)


def check_data(workdir: Path, job: Job, advice: str, allowed: Sequence[str] = ()) -> None:
  """Raises UserError where the data are not those that the run was started with, but for a data flag that is allowed
  to differ and does."""
  known, splits = run_directory.read_record(workdir), job.data.splits
  if known.get("data") not in (None, splits.fingerprint):
    differing = run_directory.differing(workdir, job.config)
    if _other_content([each for each in differing if each.name in allowed]):
      return
    differing = differing or _differing_from_newest(workdir, job.config)
    if not differing:  # then what was kept has been read, where there is such
      run_directory.check_kept(workdir, known, splits.about)
    changed = "".join(f"; {each}" for each in differing)
    raise UserError(f"run: {job.config.data.source} is not the data that {workdir} was started with{changed}; {advice}")


def _differing_from_newest(workdir: Path, config: Experiment) -> list[run_directory.Difference]:
  """What differs from the flags of the newest checkpoint, which knows its own: run.flags may have been edited."""
  with contextlib.suppress(OSError, manifest.Damaged):
    steps = [int(path.name) for path in (workdir / "checkpoints").iterdir() if is_step(path.name)]
    return _unlike(workdir, max(steps, default=0), config)
  return []


def _unlike(workdir: Path, step: int, config: Experiment) -> list[run_directory.Difference]:
  about = manifest.read(workdir / "checkpoints" / str(step), step)["about"]
  return run_directory.differences(about["flags"], config)


def told_unlike(workdir: Path, step: int, config: Experiment) -> list[str]:
  """Lines about the flags that change the curve and are not those that the checkpoint of `step` was made with."""
  found = _unlike(workdir, step, config)
  return ["the checkpoint was made with other flags:", *run_directory.table(found)] if found else []


def write(request: Request, job: Job, abstract: State, forms: dict[str, str], changes: Sequence[dict]) -> None:
  """run.json as a start writes it."""
  defaults = {name: flags.write_value(value) for name, value in flags.values(type(request.config)()).items()}
  run_directory.write_record(
    request.workdir,
    {
      **provenance.record(request.line),
      "mesh": dict(job.mesh.shape),
      "parameters": parameter_count(abstract.params),
      "kernels": dict(sorted(forms.items())),
      "data": job.data.splits.fingerprint,
      **job.data.splits.about,
      "examples": inputs.sizes(job.data.splits),
      "defaults": defaults,
      **({"judge": about} if (about := getattr(job.task.judge, "about", None)) else {}),
    },
    changes,
  )


def so_far(
  workdir: Path, start: int, metric: str, watched: Sequence[str], best: Sequence[tuple[int, float]]
) -> tuple[list[tuple[int, float]], bool]:
  """(the scores by `metric` of earlier starts, whether they have evaluated the state at `start`), of a run that goes on
  from `start`. `best` are the scores that checkpoints say of themselves, where there is a metric."""
  earlier = record.read(workdir / "metrics.jsonl") if start else []
  scores = selection.from_records(metric, earlier) if metric else []
  known = {step for step, _ in scores}  # lines may be lost, and the checkpoint that was best says so itself
  scores = sorted([*scores, *((step, value) for step, value in best if step not in known and step <= start)])
  heads = tuple(f"{split}/" for split in watched)
  judged = any(line["step"] == start and any(name.startswith(heads) for name in line) for line in earlier)
  return scores, judged


def goodput(clock: accounts.Clock, workdir: Path) -> dict[str, Any]:
  """run.json's account of the wall time of all starts, {} where nothing is kept."""
  clock.mark()
  total = accounts.account(accounts.read(workdir))
  wall = sum(total.values())
  return {"goodput": {"wall_seconds": wall, "shares": {name: s / wall for name, s in total.items()}}} if wall else {}
