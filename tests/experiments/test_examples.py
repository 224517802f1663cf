"""The examples of a run: each once an epoch, on whatever processes; and never those of other data or another order.

Switched off once: where a process reads the first rows of a batch instead of its own (`Share.rows_R`) the first test
fails. Where `run_directory.differences` and `history.check_data` find nothing all others do: flags are let through, and
other data are only told of by the checkpoint, in its own words.
"""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import command as commands
from experiments.cnn.__main__ import EXPERIMENT as CNN
from experiments.mlp.__main__ import EXPERIMENT as MLP
from tests import started

WORKER = str(Path(__file__).with_name("examples_worker.py"))
BATCH, STEPS, SIZE = 24, 90, 105  # of iris' 150 examples
RUN = [
  "mlp", "--config=iris", f"--run.steps={STEPS}", "--run.eval_every=45", "--run.checkpoint_every=5",
  f"--data.batch_size={BATCH}", "--data.test_fraction=0.3", "--data.feed=grain", "--model.widths=8",
]  # fmt: skip


def read(folder):
  """{step: ids in their places}, each of which one process has read."""
  places = {}
  for path in sorted(folder.glob("*.jsonl")):
    mine = {}
    for line in filter(lambda text: text.endswith("\n"), path.read_text().splitlines(keepends=True)):
      content = json.loads(line)
      assert mine.setdefault(content["step"], content["places"]) == content["places"]
    for step, parts in mine.items():
      of_all = places.setdefault(step, {})
      assert not parts.keys() & of_all.keys(), f"step {step}: {path.name} reads what another has read"
      of_all |= parts
  batches = {step: [id for place in sorted(parts, key=int) for id in parts[place]] for step, parts in places.items()}
  return {step: ids for step, ids in batches.items() if len(ids) == BATCH}  # others were never updates of all


@pytest.mark.slow
def test_four_processes_then_two_then_three_read_each_example_once(tmp_path):
  """The four are killed, the two asked to stop, and the three come to the end."""
  lives, workdir = [], tmp_path / "run"
  for life, (count, number, code) in enumerate([(4, signal.SIGKILL, -9), (2, signal.SIGTERM, 75), (3, None, 0)]):
    folder = tmp_path / f"life{life}"
    folder.mkdir()
    line = [WORKER, str(folder), "0" if number is None else "0.1", *RUN, f"--workdir={workdir}"]
    processes = started.begin(count, line)
    if number is not None:
      wait_for_checkpoint(processes, workdir, 20 * (life + 1))
      for process in processes if number == signal.SIGKILL else processes[-1:]:
        process.send_signal(number)
    ended = started.end(processes)
    assert [each[0] for each in ended] == [code] * count, ended
    lives.append(read(folder))
    if life:  # its batch is looked at for the shapes
      assert lives[life].pop(0) == lives[0][0]

  steps = [sorted(life) for life in lives]
  for mine in steps:
    assert mine == list(range(mine[0], mine[-1] + 1))
  assert steps[0][0] == 0
  assert 20 <= steps[1][0] <= steps[0][-1] + 1  # from the last checkpoint of the four
  assert 40 <= steps[2][0] == steps[1][-1] + 1  # from where the two were stopped
  assert steps[2][-1] == STEPS - 1
  again = set(lives[0]) & set(lives[1])
  assert {step: lives[0][step] for step in again} == {step: lives[1][step] for step in again}

  whole = {**lives[0], **lives[1], **lives[2]}
  stream = np.concatenate([whole[step] for step in range(STEPS)])
  for epoch in range(STEPS * BATCH // SIZE):
    np.testing.assert_array_equal(np.sort(stream[epoch * SIZE : (epoch + 1) * SIZE]), np.arange(SIZE))


def wait_for_checkpoint(processes, workdir, step):
  deadline = time.monotonic() + started.SECONDS
  while time.monotonic() < deadline and all(process.poll() is None for process in processes):
    if any(int(path.name) >= step for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()):
      return
    time.sleep(0.05)
  raise AssertionError(started.end(processes, 1))


TINY = [
  "--data.source=sklearn:digits", "--run.steps=4", "--run.eval_every=4", "--run.checkpoint_every=1",
  "--data.batch_size=8", "--parallel.mesh=data:1", "--model.widths=4", "--data.validation_fraction=0.1",
]  # fmt: skip


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
  """A run of the CNN after two updates."""
  from tests.experiments.conftest import _stopping_after

  workdir = tmp_path_factory.mktemp("begun") / "run"
  with _stopping_after(2):
    assert commands.main(CNN, [*TINY, f"--workdir={workdir}"]) == commands.STOPPED
  return workdir


CHANGES = [
  "seed=1", "data.source=synthetic:shapes", "data.batch_size=16", "data.validation_fraction=0.2",
  "data.test_fraction=0.3", "data.split_seed=1", "data.pad_crop=1", "data.flip=true", "data.randaugment=1",
  "data.cutout=2", "data.mixup=0.2", "data.label_smoothing=0.1",
]  # fmt: skip


def written(workdir):
  return {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file() and path.name != "lock"}


def refused(workdir, change, capsys):
  """What is said of it, once nothing was touched."""
  before = written(workdir)
  assert commands.main(CNN, [*TINY, f"--{change}", f"--workdir={workdir}"]) == 2
  assert written(workdir) == before
  return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("change", CHANGES)
def test_other_examples_are_refused_by_name(begun, capsys, change):
  name, _, value = change.partition("=")
  found = refused(begun, change, capsys)
  assert f"belongs to another experiment: 1 flag differs; give another --workdir, or --allow_change={name} " in found[0]
  flag, *_, here = found[2].split()
  assert (flag, float(here) if value[0].isdigit() else here) == (
    f"--{name}", float(value) if value[0].isdigit() else value,
  )  # fmt: skip


@pytest.mark.parametrize("change", ["data.batch_size=16", "data.split_seed=1", "data.flip=true"])
def test_so_they_are_where_someone_has_made_the_flags_fit(begun, capsys, change):
  """The checkpoint has flags of its own."""
  path, before = begun / "run.flags", (begun / "run.flags").read_text()
  path.write_text(f"{before}--{change}\n")
  try:
    found = "\n".join(refused(begun, change, capsys))
  finally:
    path.write_text(before)
  assert f"--{change.partition('=')[0]}" in found


def test_other_data_of_the_same_name_are_refused(tmp_path, capsys, stopping_after):
  """One value of one row of a file is another; no flag is."""
  table, workdir = tmp_path / "flowers.csv", tmp_path / "run"
  rows = [f"{i % 7},{i % 5},{'xy'[i % 2]}" for i in range(40)]
  table.write_text("\n".join(["a,b,kind", *rows]) + "\n")
  flags = [*TINY[1:], f"--data.source=csv:{table}", f"--workdir={workdir}"]
  with stopping_after(2):
    assert commands.main(MLP, flags) == commands.STOPPED
  table.write_text("\n".join(["a,b,kind", *rows[:-1], rows[-1].replace("4", "3")]) + "\n")
  capsys.readouterr()
  assert commands.main(MLP, flags) == 2
  told = capsys.readouterr().err
  assert told == f"run: csv:{table} is not the data that {workdir} was started with; give another --workdir\n"
