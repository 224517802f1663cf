"""A run that is killed, or asked to stop, goes on with the same command and ends with the same bits."""

import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from experiments import command as commands
from research import throughput

COMMAND = [
  sys.executable, "-m", "experiments.mlp", "--config=iris", "--run.steps=400", "--run.eval_every=100",
  "--run.checkpoint_every=40", "--run.log_every=50", "--data.batch_size=16", "--parallel.mesh=data:1",
  "--model.widths=16", "--model.dropout=0.2", "--optim.ema_decay=0.9",
]  # fmt: skip
# Two optimizers, singular vectors, batch statistics and an average: all that a game keeps.
GAN = [
  sys.executable, "-m", "experiments.gan", "--data.source=synthetic:ring?size=400", "--run.steps=200",
  "--run.eval_every=100", "--run.checkpoint_every=40", "--run.log_every=50", "--data.batch_size=16",
  "--parallel.mesh=data:1", "--model.name=mlp", "--model.widths=8,8", "--model.conditional", "--model.spectral_norm",
  "--gan.critic_steps=2", "--gan.r1=0.1", "--optim.name=adam", "--optim.ema_decay=0.9",
]  # fmt: skip
GPT = [
  sys.executable, "-m", "experiments.gpt", f"--data.source=text:{__file__}", "--run.steps=200", "--run.eval_every=100",
  "--run.checkpoint_every=40", "--run.log_every=50", "--data.batch_size=4", "--parallel.mesh=data:1",
  "--model.layers=1", "--model.width=8", "--model.heads=2", "--model.context=16", "--model.dropout=0.1",
  "--optim.name=muon", "--optim.ema_decay=0.9",
]  # fmt: skip
BERT = [
  sys.executable, "-m", "experiments.bert", f"--data.source=text:{__file__}", "--data.test_fraction=0",
  "--run.steps=160", "--run.eval_every=80", "--run.checkpoint_every=40", "--run.log_every=40", "--data.batch_size=4",
  "--parallel.mesh=data:1", "--text.tokenizer=byte", "--masks.whole_words", "--model.layers=1", "--model.width=8",
  "--model.heads=2", "--model.context=16", "--optim.ema_decay=0.9",
]  # fmt: skip
FORECAST = [
  sys.executable, "-m", "experiments.forecast", "--data.source=synthetic:seasonal?size=500", "--run.steps=160",
  "--run.eval_every=80", "--run.checkpoint_every=40", "--run.log_every=40", "--data.batch_size=8",
  "--parallel.mesh=data:1", "--series.context=12", "--series.horizon=4", "--series.season=6", "--model.name=gru",
  "--model.hidden=8", "--model.dropout=0.1",
]  # fmt: skip


def start(workdir, command=COMMAND):
  return subprocess.Popen(
    [*command, f"--workdir={workdir}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )


def finish(workdir, command=COMMAND):
  process = start(workdir, command)
  output = process.communicate(timeout=120)[0]
  assert process.returncode == 0, output
  return output


def wait_for_step(process, workdir, step):
  """Until a checkpoint at or after `step` is whole; returns it."""
  deadline = time.monotonic() + 60
  while time.monotonic() < deadline and process.poll() is None:
    steps = [int(path.name) for path in Path(workdir, "checkpoints").glob("*") if path.name.isdigit()]
    if steps and max(steps) >= step:
      return max(steps)
    time.sleep(0.005)
  raise AssertionError(process.communicate()[0])


def final_state(workdir):
  """{path: array} of the newest checkpoint, read by Orbax alone."""
  import jax

  steps = [int(path.name) for path in Path(workdir, "checkpoints").iterdir() if path.name.isdigit()]
  newest = Path(workdir, "checkpoints", str(max(steps)))
  tree = ocp.load(newest, checkpointable_name="state")
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def lines(workdir):
  parsed = [json.loads(line) for line in Path(workdir, "metrics.jsonl").read_text().splitlines()]
  return [{key: line[key] for key in line if key != "time" and not throughput.is_one(key)} for line in parsed]


@pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning")  # a bare load has no sharding to give
@pytest.mark.parametrize(
  ("command", "ends"),
  [
    pytest.param(
      COMMAND, [(40, signal.SIGKILL, -9), (120, signal.SIGTERM, 75), (200, signal.SIGINT, 75)], marks=pytest.mark.slow
    ),
    pytest.param(GAN, [(40, signal.SIGKILL, -9)], marks=pytest.mark.slow),
    pytest.param(GPT, [(40, signal.SIGKILL, -9)], marks=pytest.mark.slow),
  ],
  ids=["mlp", "gan", "gpt"],
)
def test_a_run_that_was_ended_and_resumed_is_the_uninterrupted_one(tmp_path, command, ends):
  """Ended at or after a step by a signal, which gives an exit code; the uninterrupted one is made in this process."""
  whole, workdir = tmp_path / "whole", tmp_path / "run"
  experiment = importlib.import_module(f"{command[2]}.__main__").EXPERIMENT
  assert commands.main(experiment, [*command[3:], f"--workdir={whole}"]) == 0
  for step, number, code in ends:
    process = start(workdir, command)
    reached = wait_for_step(process, workdir, step)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == code, output
    assert not Path(workdir, "result.json").exists()

  output = finish(workdir, command)
  assert "going on from step" in output
  went_on_from = int(output.split("going on from step ")[1].split()[0])
  assert went_on_from >= reached
  assert_same(whole, workdir)
  assert len(json.loads(Path(workdir, "run.json").read_text())["starts"]) == len(ends) + 1


@pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning")  # a bare load has no sharding to give
@pytest.mark.parametrize("command", [pytest.param(BERT, marks=pytest.mark.slow), FORECAST], ids=["bert", "forecast"])
def test_a_run_that_was_asked_to_stop_is_the_uninterrupted_one(tmp_path, stopping_after, command):
  """All in this process, between two checkpoints; what a signal does to a process is tested above."""
  whole, workdir = tmp_path / "whole", tmp_path / "run"
  experiment = importlib.import_module(f"{command[2]}.__main__").EXPERIMENT
  assert commands.main(experiment, [*command[3:], f"--workdir={whole}"]) == 0
  arguments = [*command[3:], f"--workdir={workdir}"]
  with stopping_after(57):
    assert commands.main(experiment, arguments) == commands.STOPPED
  assert not (workdir / "result.json").exists()
  assert commands.main(experiment, arguments) == 0
  assert_same(whole, workdir)


def assert_same(whole, workdir):
  """Two runs' lines, states and results, bit for bit."""
  assert lines(workdir) == lines(whole)
  expected, actual = final_state(whole), final_state(workdir)
  assert expected.keys() == actual.keys()
  for name in expected:
    np.testing.assert_array_equal(expected[name], actual[name], err_msg=name)
  results = [json.loads(Path(each, "result.json").read_text()) for each in (whole, workdir)]
  assert results[0]["metrics"] == results[1]["metrics"]


def test_a_second_process_in_the_same_directory_is_refused(tmp_path):
  workdir = tmp_path / "run"
  process = start(workdir)
  try:
    wait_for_step(process, workdir, 40)
    second = start(workdir)
    output = second.communicate(timeout=60)[0]
    assert second.returncode == 2
    assert "another process is using" in output
  finally:
    process.kill()
    process.communicate()


def test_a_read_only_directory_is_told_in_one_line():
  """/proc refuses to make directories even for root."""
  process = start("/proc/run")
  output = process.communicate(timeout=60)[0]
  assert process.returncode == 2
  assert output.count("\n") == 1
  assert "cannot write /proc/run" in output


def test_a_full_disk_is_told_in_one_line(tmp_path):
  """A file-size limit of 4 kB stands for a disk that takes no more."""
  command = f"ulimit -f 4; trap '' XFSZ; exec {' '.join(COMMAND)} --workdir={tmp_path}/run --model.widths=512"
  done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
  assert done.returncode == 2, done.stderr
  assert done.stderr.strip().count("\n") == 0, done.stderr
  assert "run" in done.stderr
  assert not (tmp_path / "run" / "result.json").exists()
