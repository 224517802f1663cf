"""A run reopened without its data: the word sample of a language model needs nothing of them but the tokenizer.

Only with the run's own flags, and with the tokenizer that it was started with; otherwise the data are opened.
"""

import dataclasses
from typing import TYPE_CHECKING

from experiments import run_directory
from experiments.schema import MOST

if TYPE_CHECKING:
  from experiments.command import Definition, Request
  from experiments.job import Job


def job(definition: "Definition", request: "Request") -> "Job | None":
  """The run's job with examples that only look like its own, or None where the data have to be opened.

  Raises UserError where what the run has kept is damaged, or is not what it was started with.
  """
  from experiments.job import make_job

  config, workdir = request.config, request.workdir
  if definition.open_kept is None or run_directory.experiment_of(workdir) != definition.name:
    return None
  if run_directory.differing(workdir, config):
    return None
  record = run_directory.read_record(workdir)
  splits = definition.open_kept(config, workdir)
  if splits is None or not splits.about.keys() <= record.keys():
    return None  # a run from before run.json named what is kept
  run_directory.check_kept(workdir, record, splits.about)
  # The schedule's length stands in no checkpoint, so any that a warm-up fits into will do.
  run = dataclasses.replace(config.run, steps=config.run.steps or MOST, best_metric="", patience=0)
  alike = dataclasses.replace(config, run=run, data=dataclasses.replace(config.data, feed="device"))
  splits = dataclasses.replace(splits, fingerprint=record["data"])
  return make_job(definition, alike, print, workdir, splits)
