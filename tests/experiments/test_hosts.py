"""A host that dies, stands still, hangs or cannot be reached: the others end with 77 in bounded time and name it, and
the same command then ends with the bits of a run that nothing happened to.

Each mechanism has been switched off once, and these fail (quick ones of the same are beside heartbeat.py):
- `Judge._silent` gives None: whoever is killed or stopped, the others wait until `started.SECONDS` are over.
- `Relay.hold` does nothing: where process 0 is killed the others are aborted (134) with jaxlib's words.
- `Judge._stalled` gives None, or the loop does not say what it does: a hang is waited for till the end.
- the look at the own clock in `Pulse._watch` is left out: a process that wakes up does not know why it ends.
- `processes.failed` does nothing: of a mistake in one process the others only say that it has crashed.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from research.checkpoint import Checkpoints
from tests import started
from tests.experiments import links

WORKER = str(Path(__file__).with_name("hosts_worker.py"))
STEPS, FAULT = 60, 30
RUN = [
  "mlp", "--config=digits", f"--run.steps={STEPS}", "--run.eval_every=30", "--run.checkpoint_every=10",
  "--run.log_every=1", "--data.batch_size=16", "--model.widths=8", "--run.stall_seconds=8",
]  # fmt: skip
SILENT = 8.0  # instead of 20 s
BOUND = 30.0  # to end in, as promised with 20 s


def quick(index, port):
  return {"FLAGSHIP_SILENT_SECONDS": str(SILENT)}


def worker(workdir, **fault):
  return [WORKER, json.dumps(fault), *RUN, f"--workdir={workdir}"]


def bits(workdir):
  """SHA-256 of all arrays of the last checkpoint, with their names and types."""
  with contextlib.closing(Checkpoints(workdir / "checkpoints", read_only=True)) as checkpoints:
    assert checkpoints.newest() == STEPS
    arrays = checkpoints.arrays(STEPS, ("step", "params", "opt_state", "extra"))
  assert len(arrays) > 4
  digest = hashlib.sha256()
  for name, array in sorted(arrays.items()):
    digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
  return digest.hexdigest()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """count → the bits of a run of so many processes that nothing happens to; made once."""
  known = {}

  def of(count):
    if count not in known:
      workdir = tmp_path_factory.mktemp("whole") / str(count)
      ended = started.run(count, worker(workdir))
      assert [code for code, *_ in ended] == [0] * count, ended
      known[count] = bits(workdir)
    return known[count]

  return of


def goes_on(count, workdir, expected):
  """The same command again, which must end with the same bits, and not have started anew."""
  ended = started.run(count, worker(workdir))
  assert [code for code, *_ in ended] == [0] * count, ended
  assert "going on from step " in ended[0][1]
  assert bits(workdir) == expected


def state(process):
  return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_for(found, processes, seconds=started.SECONDS):
  until = time.monotonic() + seconds
  while not found():
    if time.monotonic() > until:
      raise AssertionError(started.end(processes, 1))
    time.sleep(0.05)


def end_all(processes, hit):
  """Waits for the others' end, lets a process that stands still go on, and gives the end of all."""
  survivors = [process for index, process in enumerate(processes) if index != hit]
  began = time.monotonic()
  wait_for(lambda: all(process.poll() is not None for process in survivors), processes)
  assert time.monotonic() - began < BOUND
  if processes[hit].poll() is None:
    processes[hit].send_signal(signal.SIGCONT)
  return started.end(processes)


def assert_named(ended, hit, words):
  """Every survivor's last line names the one that was hit, and none shows a trace."""
  for index, (code, _, err) in enumerate(ended):
    if index != hit:
      assert code == 77, (index, ended)
      assert err.strip().split("\n")[-1].startswith(f"processes: process {hit} ("), err
      assert words in err
      assert err.strip().endswith("ending; run the same command again")
    assert "Traceback" not in err, err
    assert "Terminating process" not in err, err


def happens(count, hit, what, tmp_path, whole):
  workdir = tmp_path / "run"
  processes = started.begin(count, worker(workdir, rank=hit, step=FAULT, what=what), extra=quick)
  if what == "kill":
    wait_for(lambda: processes[hit].poll() is not None, processes)
  if what == "stop":
    wait_for(lambda: state(processes[hit]) in "TZ", processes)
  if what == "hang":
    wait_for(lambda: (workdir / "checkpoints" / str(FAULT)).exists(), processes)
  ended = end_all(processes, hit)
  words = {"kill": "", "stop": "has not been heard of for", "hang": "lives and has made no progress for"}[what]
  assert_named(ended, hit, words)
  code, _, err = ended[hit]
  if what == "kill":
    assert code == -signal.SIGKILL
  else:
    assert code == 77, ended
    told = {"stop": ("stood still for", "has not reached its own store"), "hang": ("this process was given up",)}[what]
    assert any(each in err for each in told)
  goes_on(count, workdir, whole(count))


def test_process_0_is_killed_and_the_run_goes_on(tmp_path, whole):
  """The hardest: the store that all beats lie in dies with it."""
  happens(2, 0, "kill", tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("count", "hit", "what"),
  [
    (2, 1, "kill"), (2, 0, "stop"), (2, 1, "stop"), (2, 1, "hang"), (2, 0, "hang"),
    (4, 0, "kill"), (4, 1, "kill"), (4, 2, "kill"), (4, 3, "kill"), (4, 0, "stop"), (4, 3, "stop"), (4, 2, "hang"),
  ],
)  # fmt: skip
def test_whoever_it_is_is_named_and_the_run_goes_on(tmp_path, whole, count, hit, what):
  happens(count, hit, what, tmp_path, whole)


@pytest.mark.slow
def test_with_the_bounds_of_a_real_run_it_takes_less_than_30_seconds(tmp_path):
  workdir = tmp_path / "run"
  processes = started.begin(2, worker(workdir, rank=1, step=FAULT, what="kill"))
  wait_for(lambda: processes[1].poll() is not None, processes)
  assert_named(end_all(processes, 1), 1, "has not been heard of for 2")


@pytest.mark.slow
def test_a_mistake_in_one_is_shown_in_full_and_the_others_name_it(tmp_path):
  ended = started.run(2, worker(tmp_path / "run", rank=1, step=FAULT, what="error"), seconds=90)
  (code, _, err), (own, _, trace) = ended
  assert (code, own) == (1, 1), ended
  assert "Traceback" not in err
  assert "has crashed: KeyError: 'a mistake'" in err
  assert trace.startswith("Traceback")
  assert trace.rstrip().endswith("KeyError: 'a mistake'")


def trained(workdir, step):
  path = workdir / "metrics.jsonl"
  return path.exists() and any(json.loads(line)["step"] >= step for line in path.read_text().splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("way", ["relay", "cable"])
def test_a_link_that_goes_dead_ends_both_sides(tmp_path, whole, way):
  """By the relay only the store cannot be reached, and by the cable nothing at all; each side names the other.

  Where namespaces are not permitted, the cable is the relay again.
  """
  workdir = tmp_path / "run"
  link = links.Namespaces(tmp_path) if way == "cable" and links.Namespaces.permitted() else links.Relay(tmp_path)
  with contextlib.closing(link):
    extra = lambda index, port: quick(index, port) | link.extra(index, port)  # noqa: E731
    processes = started.begin(2, worker(workdir, slow=0.25), extra=extra, before=link.before)
    wait_for(lambda: trained(workdir, 12), processes)
    link.cut()
    began = time.monotonic()
    ended = started.end(processes, 60)
    assert time.monotonic() - began < BOUND
  assert [code for code, *_ in ended] == [77, 77], ended
  for index, (_, _, err) in enumerate(ended):
    assert f"processes: process {1 - index} (" in err
    assert "has not been heard of for" in err
    assert "Traceback" not in err
  goes_on(2, workdir, whole(2))


@pytest.mark.slow
def test_it_is_restarted_by_launch_local(tmp_path):
  """The whole way: killed, named, ended, started again, finished."""
  once = tmp_path / "once"
  fault = json.dumps({"rank": 1, "step": FAULT, "what": "kill"})
  script = (
    f"fault={{}}; [ $JAX_PROCESS_ID = 1 ] && mkdir {once} 2>/dev/null && fault='{fault}';"
    f' exec python {WORKER} "$fault" {" ".join(RUN)} --workdir={tmp_path / "run"}'
  )
  words = ["-m", "launch.local", "--processes=2", "--devices_per_process=4", "--restart", "--", "bash", "-c", script]
  ended = subprocess.run(
    [sys.executable, *words],
    env={**os.environ, **quick(0, 0)},
    capture_output=True,
    text=True,
    timeout=240,
  )
  assert ended.returncode == 0, ended
  assert "launch: process 1 was ended by SIGKILL; all have ended" in ended.stderr
  assert "launch: starting again in 1 s (1 of 10)" in ended.stderr
  assert (tmp_path / "run" / "result.json").exists()
