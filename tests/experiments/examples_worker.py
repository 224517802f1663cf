"""An experiment that tells which examples this process took: `examples_worker.py FOLDER SECONDS EXPERIMENT FLAGS …`.

A line an update in FOLDER/PROCESS.jsonl: {"step", "places": {place of the first row: ids of the rows from there on}}.
Each update takes SECONDS longer.
"""

import importlib
import json
import sys
import time
from pathlib import Path

import numpy as np

from experiments import command
from research.data import feeds
from research.parallel import processes

inputs = feeds.GrainFeed.inputs


def logged(feed, step):
  batch = inputs(feed, step)
  if isinstance(feed.plan, feeds.Shuffled):
    parts = {shard.index[0].start or 0: np.asarray(shard.data).tolist() for shard in batch["index"].addressable_shards}
    with open(Path(sys.argv[1]) / f"{processes.index()}.jsonl", "a") as file:
      file.write(json.dumps({"step": step, "places": parts}) + "\n")
    time.sleep(float(sys.argv[2]))
  return batch


if __name__ == "__main__":
  feeds.GrainFeed.inputs = logged
  experiment = importlib.import_module(f"experiments.{sys.argv[3]}.__main__").EXPERIMENT
  sys.exit(command.main(experiment, sys.argv[4:]))
