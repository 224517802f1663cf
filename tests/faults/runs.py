"""What a run has left, as hashes: two runs are the same where these are."""

import hashlib
import json
from pathlib import Path

import numpy as np

from research import throughput
from research.checkpoint import Checkpoints

NOT_THE_CURVE = ("time",)


def digests(workdir):
  """{"state": {path: SHA-256 of an array's bits}, "lines", "samples", "result"} of a finished or unfinished run."""
  workdir = Path(workdir)
  checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
  newest = checkpoints.first_whole(checkpoints.steps[::-1])
  arrays = {} if newest is None else checkpoints.arrays(newest, ("step", "params", "opt_state", "extra"))
  checkpoints.close()
  found = {"step": newest, "state": {name: _of(array) for name, array in sorted(arrays.items())}}
  found["lines"] = [sorted(line.items()) for line in lines(workdir)]
  found["samples"] = {
    str(path.relative_to(workdir)): _of(path.read_bytes())
    for path in sorted((workdir / "samples").rglob("*"))
    if path.is_file()
  }
  found["events"] = events(workdir / "tensorboard")
  if (workdir / "result.json").exists():
    result = json.loads((workdir / "result.json").read_text())
    found["result"] = [result["step"], sorted(result["metrics"].items()), sorted(result["best"].items())]
  return found


def events(folder):
  """{tag: steps} of TensorBoard's events, as its own reader finds them; speeds left out."""
  from tensorboard.backend.event_processing import event_accumulator

  reader = event_accumulator.EventAccumulator(str(folder), {"scalars": 0, "images": 0, "tensors": 0})
  reader.Reload()
  kinds = {"scalars": reader.Scalars, "images": reader.Images, "tensors": reader.Tensors}
  return {
    f"{kind}/{tag}": [event.step for event in read(tag)]
    for kind, read in kinds.items()
    for tag in sorted(reader.Tags()[kind])
    if not throughput.is_one(tag)
  }


def lines(workdir):
  """metrics.jsonl without times and speeds."""
  parsed = [json.loads(line) for line in Path(workdir, "metrics.jsonl").read_text().splitlines()]
  return [
    {name: value for name, value in line.items() if name not in NOT_THE_CURVE and not throughput.is_one(name)}
    for line in parsed
  ]


def _of(content):
  if not isinstance(content, bytes):
    content = f"{content.dtype}{content.shape}".encode() + np.asarray(content).tobytes()
  return hashlib.sha256(content).hexdigest()
