"""A disk that fills up under a run: it goes on, says which checkpoint is the last, and ends as if there had been room.

Switched off once: where a disk's error in a save is raised at once (`checkpoint._disk_error` gives "") or `_failed`
leaves what there is of it, the slow ones of the first fail; where `Checkpoints.wait` raises nothing, the second; where
`Writer.append` lets a write fail, the third.
"""

import concurrent.futures
import re
import shutil
from pathlib import Path

import pytest

from experiments import command as commands
from experiments.mlp.__main__ import EXPERIMENT
from research.checkpoint import Checkpoints
from research.report import pictures
from tests.faults import disks, runs

FLAGS = [  # a state of 6.2 MB
  "--data.source=sklearn:digits", "--model.widths=680,680", "--run.steps=60", "--run.checkpoint_every=5",
  "--run.eval_every=30", "--run.log_every=1", "--run.keep_checkpoints=2", "--data.batch_size=16",
  "--parallel.mesh=data:1",
]  # fmt: skip
# Threads of a write that failed come back to a loop of Orbax that is closed; a command says nothing of it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
ROOM = 14.5  # MB: for two checkpoints and what else a run writes

@pytest.fixture(scope="module", autouse=True)
def without_pictures():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pictures, "write_all", lambda *_: [])
    yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole") / "run"
  assert run(workdir) == 0
  return runs.digests(workdir)


@pytest.fixture(
  params=[
    pytest.param("asked", id="it says how full it is"),
    pytest.param("quota", id="it does not say", marks=pytest.mark.slow),
    pytest.param("limit", id="limit", marks=pytest.mark.slow),
  ]
)
def disk(request, tmp_path, monkeypatch):
  if request.param == "quota":  # as where a user's share of a disk is full
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 0, 10**12))
  made = disks.Limited(tmp_path / "limited") if request.param == "limit" else disks.small(tmp_path)
  yield made
  made.empty()
  made.close()


def run(workdir):
  return commands.main(EXPERIMENT, [*FLAGS, f"--workdir={workdir}"])


@pytest.fixture
def before_saving(monkeypatch):
  """({step: what happens just before its save}, [the newest whole checkpoint at each save], of which each was read)."""
  happens, newest, save = {}, [], Checkpoints.save

  def armed(checkpoints, step, *arguments):
    if checkpoints._pending:  # the one before is through, well or badly
      concurrent.futures.wait([checkpoints._pending[1]])
    happens.get(step, lambda: None)()
    there = Checkpoints(checkpoints._directory, read_only=True)
    found = there.first_whole(there.steps[::-1])
    if found is not None:
      there.arrays(found, ("params",))
    there.close()
    newest.append(found)
    return save(checkpoints, step, *arguments)

  monkeypatch.setattr(Checkpoints, "save", armed)
  return happens, newest


def left(workdir):
  return sorted(path.name for path in Path(workdir, "checkpoints").iterdir())


def test_saves_fail_and_there_is_room_again(disk, before_saving, whole, capsys):
  happens, newest = before_saving
  happens[5], happens[40] = lambda: disk.leave(ROOM), disk.empty
  if isinstance(disk, disks.Limited):  # it lets nothing through
    happens[15] = happens.pop(5)
  assert run(disk.folder / "run") == 0
  told = re.findall(r"step (\d+) could not be saved: (.*?)(?: \(.*?\))?; (the last .*)", capsys.readouterr().out)
  assert told == [(str(step), disk.said, "the last one is of step 10") for step in range(15, 40, 5)]
  assert set(newest[3:7]) == {10}
  assert left(disk.folder / "run") == ["55", "60"]
  assert runs.digests(disk.folder / "run") == whole


def test_the_last_save_fails_and_the_command_is_repeated(disk, before_saving, whole, capsys):
  happens, _ = before_saving
  happens[45] = lambda: disk.leave(0.5)
  assert run(disk.folder / "run") == 2
  told = capsys.readouterr().err
  assert re.fullmatch(
    rf"run: cannot save in .*: {disk.said}.*; the last is step 40; make room and run it again\n", told
  ), told
  assert left(disk.folder / "run") == ["35", "40"]
  assert not (disk.folder / "run" / "result.json").exists()
  happens.clear()
  disk.empty()
  assert run(disk.folder / "run") == 0
  assert "going on from step 40" in capsys.readouterr().out
  assert runs.digests(disk.folder / "run") == whole


def test_metrics_cannot_be_written_and_the_command_is_repeated(disk, before_saving, whole, capsys):
  happens, _ = before_saving
  happens[20] = disk.fill
  assert run(disk.folder / "run") == 2
  told = capsys.readouterr().err
  assert told.count("\n") == 1, told
  assert re.match(r"workdir: cannot write .*/run/metrics\.jsonl: .* \(free space or choose another --workdir\)$", told)
  assert left(disk.folder / "run") == ["10", "15"]
  happens.clear()
  disk.empty()
  assert run(disk.folder / "run") == 0
  assert "going on from step 15" in capsys.readouterr().out
  assert runs.digests(disk.folder / "run") == whole
