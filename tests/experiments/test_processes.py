"""A run of several processes is that of one: the same numbers, files, stops and refusals."""

import contextlib
import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import command
from experiments.mlp.__main__ import EXPERIMENT as MLP
from research import throughput
from research.checkpoint import Checkpoints
from tests import started

SMALL = [
  "--config=digits", "--run.steps=12", "--run.eval_every=6", "--run.log_every=1", "--data.batch_size=16",
  "--model.widths=8", "--optim.ema_decay=0.9",
]  # fmt: skip
GPT = [
  f"--data.source=text:{__file__}", "--run.steps=6", "--run.eval_every=3", "--run.log_every=1", "--data.batch_size=8",
  "--model.layers=1", "--model.width=16", "--model.heads=4", "--model.context=16", "--optim.name=adam",
]  # fmt: skip
# Sums over eight devices are made in another order; in float32 an update differs in the last bits.
CLOSE = 1e-5
WRITTEN = ["run.flags", "run.json", "metrics.jsonl", "result.json", "report.html", "predictions.npz", "checkpoints"]


def experiment(name, arguments, workdir):
  return ["-m", f"experiments.{name}", *arguments, f"--workdir={workdir}"]


def lines(workdir):
  parsed = [json.loads(line) for line in Path(workdir, "metrics.jsonl").read_text().splitlines()]
  timed = lambda key: key == "time" or throughput.is_one(key)  # noqa: E731
  return [{key: value for key, value in line.items() if not timed(key)} for line in parsed]


def assert_close(workdir, expected, tolerance=CLOSE):
  ours, theirs = lines(workdir), lines(expected)
  assert [sorted(line) for line in ours] == [sorted(line) for line in theirs]
  for mine, other in zip(ours, theirs, strict=True):
    for name, value in other.items():
      np.testing.assert_allclose(mine[name], value, rtol=tolerance, atol=tolerance, err_msg=f"{name} at {mine['step']}")


def test_two_processes_make_the_run_of_one(tmp_path):
  """One feeds from the host, the other from the device: the rows of each process are its devices' rows of the batch."""
  ended = started.run(2, experiment("mlp", [*SMALL, "--data.feed=grain"], tmp_path / "two"))
  assert [code for code, *_ in ended] == [0, 0], ended
  assert command.main(MLP, [*SMALL, "--data.feed=device", f"--workdir={tmp_path / 'one'}"]) == 0
  assert_close(tmp_path / "two", tmp_path / "one")
  one, two = (np.load(tmp_path / name / "predictions.npz") for name in ("one", "two"))
  for name in ("index", "label", "prediction"):
    np.testing.assert_array_equal(two[name], one[name])
  np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-4, atol=1e-6)
  for name in WRITTEN:
    assert (tmp_path / "two" / name).exists(), name
  assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
  (_, out, err), (_, silence, also) = ended
  assert "test/accuracy" in out
  assert "Gloo" not in out + err
  assert (silence, also) == ("", "")


def test_other_flags_in_one_process_are_refused_in_all_by_name(tmp_path):
  workdir = tmp_path / "run"
  own = lambda index: ["--optim.learning_rate=0.5"] if index == 1 else []  # noqa: E731
  ended = started.run(2, experiment("mlp", SMALL, workdir), own)
  for code, _, err in ended:
    assert code == 2, err
    assert "process 1 differs: --optim.learning_rate=0.5 (process 0: 0.002)" in err
    assert err.strip().count("\n") == 0, err
  assert not workdir.exists()


def test_what_is_wrong_in_one_process_ends_all_with_its_words(tmp_path):
  """Where decoded images are kept is a process' own affair; here one of them cannot be."""
  workdir, images = tmp_path / "run", tmp_path / "images"
  for name in ("a", "b"):
    (images / name).mkdir(parents=True)
    for number in range(8):
      Image.new("L", (4, 4), 16 * number).save(images / name / f"{number}.png")
  caches = (tmp_path / "cache", "/proc/nowhere")
  arguments = [f"--data.source=folder:{images}", "--data.batch_size=8", "--run.steps=4"]
  ended = started.run(2, experiment("mlp", arguments, workdir), lambda index: [f"--data.cache_dir={caches[index]}"])
  for code, _, err in ended:
    assert code == 2, err
    assert err.startswith("process 1: data: ")
    assert "/proc/nowhere" in err
    assert err.strip().count("\n") == 0, err
  assert not workdir.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "mesh"), [("dp", ""), ("fsdp", "data:8"), ("fsdp_tp", "data:4,model:2")])
def test_a_signal_to_one_stops_all_at_one_step_and_fewer_go_on(tmp_path, strategy, mesh):
  """Four processes, then two, then one; the end is that of an uninterrupted run, its parameters too."""
  layout = [f"--parallel.strategy={strategy}", *([f"--parallel.mesh={mesh}"] if mesh else [])]
  often = ["--run.steps=400", "--run.eval_every=200", "--run.checkpoint_every=400", "--run.log_every=20"]
  arguments = [*GPT, *layout, *often]
  workdir, steps = tmp_path / "run", []
  for count in (4, 2):
    processes = started.begin(count, experiment("gpt", arguments, workdir))
    before = steps[-1] if steps else 0
    wait_for_line(processes, workdir, before + 20)
    processes[count - 1].send_signal(signal.SIGTERM)
    ended = started.end(processes)
    assert [code for code, *_ in ended] == [75] * count, ended
    steps.append(max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()))
    assert f"step {steps[-1]} is saved" in ended[0][1]
    assert before < steps[-1] < 400
  from experiments.gpt.__main__ import EXPERIMENT

  assert command.main(EXPERIMENT, [*arguments, f"--workdir={workdir}"]) == 0
  assert command.main(EXPERIMENT, [*arguments, f"--workdir={tmp_path / 'whole'}"]) == 0
  ours, whole = (parameters(each, 400) for each in (workdir, tmp_path / "whole"))
  assert sorted(ours) == sorted(whole)
  for name, array in whole.items():
    # Of a key's bias the gradient is 0 but for rounding, which Adam makes whole steps of: hence an absolute bound.
    np.testing.assert_allclose(ours[name], array, rtol=0, atol=1e-3, err_msg=name)
  ours, whole = (json.loads((each / "result.json").read_text()) for each in (workdir, tmp_path / "whole"))
  assert ours["metrics"]["validation/loss"] == pytest.approx(whole["metrics"]["validation/loss"], rel=1e-3)
  assert [line["step"] for line in lines(workdir)] == [line["step"] for line in lines(tmp_path / "whole")]


def parameters(workdir, step):
  with contextlib.closing(Checkpoints(workdir / "checkpoints", read_only=True)) as checkpoints:
    return checkpoints.arrays(step, ("params",))


def wait_for_line(processes, workdir, step):
  """Until metrics of a step at or after `step` are written."""
  deadline = time.monotonic() + started.SECONDS
  while time.monotonic() < deadline and all(process.poll() is None for process in processes):
    if (workdir / "metrics.jsonl").exists() and any(line["step"] >= step for line in lines(workdir)):
      return
    time.sleep(0.05)
  raise AssertionError(started.end(processes, 1))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_other(tmp_path, victim):
  processes = started.begin(2, experiment("mlp", [*SMALL, "--run.steps=1000000"], tmp_path / "run"))
  wait_for_line(processes, tmp_path / "run", 20)
  processes[victim].kill()
  began = time.monotonic()
  ended = started.end(processes)
  assert time.monotonic() - began < 30
  assert ended[1 - victim][0] == 77, ended
