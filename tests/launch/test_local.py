"""launch.local: real processes, of a few lines of Python or shell; an experiment takes seconds to start."""

import os
import signal
import subprocess
import sys
import time

import pytest

from launch import local
from launch.local import Local, environments
from research.errors import UserError

SAVES = """
import os, signal, sys, time
def save(*_):
  print("saving", flush=True)
  time.sleep(0.2 + int(os.environ["JAX_PROCESS_ID"]))  # one is done while the other still saves
  sys.exit(75)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, save)
open(f"ready{os.environ['JAX_PROCESS_ID']}", "w").write(str(os.getpid()))
time.sleep(60)
"""


def start(folder, *words, **options):
  """The launcher as a process, in an empty folder."""
  environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "error"}
  return subprocess.Popen(
    [sys.executable, "-m", "launch.local", *words], cwd=folder, env=environment, text=True,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
  )  # fmt: skip


def ran(capfd, *words):
  """(exit code, lines of stdout, lines of stderr) of the launcher, in this process."""
  code = local.main(list(words))
  out, err = capfd.readouterr()
  return code, out.splitlines(), err.splitlines()


def wait_for(paths, seconds=30):
  end = time.monotonic() + seconds
  while not all(path.exists() and path.read_text() for path in paths):
    assert time.monotonic() < end
    time.sleep(0.02)


def is_gone(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return True
  with open(f"/proc/{pid}/stat") as file:
    return file.read().rpartition(")")[2].split()[0] == "Z"  # dead, and nobody has looked yet


def gone(pids, seconds=10):
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    if all(is_gone(pid) for pid in pids):
      return True
    time.sleep(0.02)
  return False


def test_each_process_knows_who_it_is(capfd, in_directory):
  shell = 'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS: $JAX_PLATFORMS $XLA_FLAGS"'
  shell += "; echo e >&2"
  code, out, err = ran(capfd, "--processes=3", "--devices_per_process=2", "--platform=cpu", "--", "bash", "-c", shell)
  assert code == 0
  assert sorted(err) == ["[0] e", "[1] e", "[2] e"]
  out.sort()
  address = out[0].split(" at ")[1].split(": ")[0]
  assert address.startswith("127.0.0.1:")
  for rank, line in enumerate(out):
    assert line.startswith(f"[{rank}] {rank} of 3 at {address}: cpu ")
    assert line.count("xla_force_host_platform_device_count") == 1  # the tests' own eight are replaced
    assert line.endswith("--xla_force_host_platform_device_count=2")


def test_a_command_reaches_the_processes_word_for_word(capfd, in_directory):
  words = ["two words", "it's", '"$HOME"', "*", "--", "", "ä"]
  code, out, _ = ran(capfd, "--processes=1", "--", "python", "-c", "import sys; print(sys.argv[1:])", *words)
  assert (code, out) == (0, [f"[0] {words}"])


def test_one_dies_and_all_end_with_its_code(capfd, in_directory):
  shell = 'if [ "$JAX_PROCESS_ID" = 1 ]; then exit 9; fi; exec sleep 60'
  began = time.monotonic()
  code, _, err = ran(capfd, "--processes=3", "--", "bash", "-c", shell)
  assert code == 9
  assert err == ["launch: process 1 ended with 9; all have ended"]
  assert time.monotonic() - began < 20


def test_who_does_not_listen_is_killed_after_the_grace_with_all_that_it_started(capfd, in_directory):
  shell = (
    'if [ "$JAX_PROCESS_ID" = 1 ]; then while [ ! -s child ]; do sleep 0.02; done; kill -KILL $$; fi;'
    'trap "" TERM; sleep 60 & echo $! > child; wait'
  )
  code, _, err = ran(capfd, "--processes=2", "--grace=0.3", "--", "bash", "-c", shell)
  assert code == 77
  assert err == ["launch: process 1 was ended by SIGKILL; all have ended"]
  assert gone([int((in_directory / "child").read_text())])


def test_what_a_process_leaves_behind_ends_with_it(capfd, in_directory):
  code, out, _ = ran(capfd, "--processes=1", "--", "bash", "-c", "sleep 60 & echo $! > child; printf last")
  assert (code, out) == (0, ["[0] last"])
  assert gone([int((in_directory / "child").read_text())])


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_is_passed_on_and_saving_is_waited_for(tmp_path, number):
  started = start(tmp_path, "--processes=2", "--restart", "--", "python", "-c", SAVES)
  wait_for([tmp_path / "ready0", tmp_path / "ready1"])
  started.send_signal(number)
  out, err = started.communicate(timeout=30)
  assert started.returncode == 75  # and not again: it was the launcher that was told to stop
  assert sorted(out.splitlines()) == ["[0] saving", "[1] saving"]  # each was told once
  assert "again" not in err


def test_the_processes_die_with_a_launcher_that_is_killed(tmp_path):
  """On Linux, whose kernel tells a process of its parent's end."""
  started = start(tmp_path, "--processes=2", "--", "python", "-c", SAVES)
  ready = [tmp_path / "ready0", tmp_path / "ready1"]
  wait_for(ready)
  started.kill()
  started.communicate(timeout=30)
  assert gone([int(path.read_text()) for path in ready])


def test_a_reader_who_leaves_ends_it(tmp_path):
  command = ["bash", "-c", "while echo line; do sleep 0.01; done"]
  started = start(tmp_path, "--processes=1", "--", *command)
  assert started.stdout.readline() == "[0] line\n"
  started.stdout.close()
  assert started.wait(timeout=30) == 128 + signal.SIGTERM
  with started.stderr as stderr:
    assert stderr.read().splitlines() == ["launch: process 0 was ended by SIGTERM; all have ended"]


@pytest.mark.parametrize("code", [75, 77])
def test_it_runs_again_as_often_as_it_may(capfd, in_directory, monkeypatch, code):
  monkeypatch.setattr(local, "LONGEST_PAUSE", 0.01)
  shell = f'echo "$JAX_COORDINATOR_ADDRESS" >> seen; exit {code}'
  found, _, err = ran(capfd, "--processes=1", "--restart=2", "--", "bash", "-c", shell)
  assert found == code
  seen = (in_directory / "seen").read_text().split()
  assert len(seen) == 3
  assert len(set(seen)) > 1  # a port that lingers is not taken again
  assert [line for line in err if "again" in line] == [
    "launch: starting again in 0 s (1 of 2)",
    "launch: starting again in 0 s (2 of 2)",
  ]


def test_a_run_that_goes_on_ends_with_0(capfd, in_directory, monkeypatch):
  monkeypatch.setattr(local, "LONGEST_PAUSE", 0.01)
  shell = "[ -e saved ] && exit 0; touch saved; exit 75"
  assert ran(capfd, "--processes=1", "--restart", "--", "bash", "-c", shell)[0] == 0


@pytest.mark.parametrize("code", [1, 2, 76])
def test_other_codes_are_not_run_again(capfd, in_directory, code):
  found, _, err = ran(capfd, "--processes=1", "--restart=5", "--", "bash", "-c", f"exit {code}")
  assert (found, err) == (code, [f"launch: process 0 ended with {code}; all have ended"])


def test_a_death_counts_before_what_it_causes():
  from launch.together import Ending, Together

  class Ended:
    def __init__(self, code):
      self._process = subprocess.Popen(["bash", "-c", f"exit {code}"], start_new_session=True)
      self.pid = self._process.pid
      self.wait = self._process.wait
      os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

  group = Together([], [], 1.0)
  group._running = {0: Ended(77), 1: Ended(1)}  # seen in one look
  group._reap()
  assert group._ending == Ending(1, 1)


def test_a_process_that_sigkill_ends_is_a_lost_host(capfd, in_directory, monkeypatch):
  """The run goes on. Mutation: without `_lost_a_host` the code is 137 and nothing is started again."""
  monkeypatch.setattr(local, "LONGEST_PAUSE", 0.01)
  shell = '[ -e lost ] && exit 0; if [ "$JAX_PROCESS_ID" = 1 ]; then touch lost; kill -KILL $$; fi; exec sleep 60'
  code, _, err = ran(capfd, "--processes=2", "--restart", "--", "bash", "-c", shell)
  assert code == 0
  assert err == [
    "launch: process 1 was ended by SIGKILL; all have ended",
    "launch: starting again in 0 s (1 of 10)",
  ]


@pytest.mark.parametrize(("count", "number", "code"), [(1, "KILL", 137), (2, "SEGV", 139), (2, "ABRT", 134)])
def test_a_crash_or_the_end_of_all_there_is_is_none(capfd, in_directory, count, number, code):
  words = [f"--processes={count}", "--restart", "--", "bash", "-c", f"ulimit -c 0; kill -{number} $$"]
  found, _, err = ran(capfd, *words)
  assert found == code
  assert len(err) == 1


def test_gpus_are_divided():
  outer = {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "4,5,6,7"}
  made = environments(Local(processes=2), outer, 1, ["4", "5", "6", "7"])
  assert [each["CUDA_VISIBLE_DEVICES"] for each in made] == ["4,5", "6,7"]
  assert all("JAX_PLATFORMS" not in each for each in made)
  made = environments(Local(processes=3, devices_per_process=1), outer, 1, ["4", "5", "6", "7"])
  assert [each["CUDA_VISIBLE_DEVICES"] for each in made] == ["4", "5", "6"]
  assert environments(Local(platform="cpu"), outer, 1, ["4"])[0]["JAX_PLATFORMS"] == "cpu"
  assert environments(Local(), {**outer, "JAX_PLATFORMS": "cpu"}, 1, ["4", "5"])[0]["JAX_PLATFORMS"] == "cpu"


@pytest.mark.parametrize(
  ("asked", "gpus", "said"),
  [
    (Local(processes=3), 4, "4 GPUs cannot be divided over 3 processes;"),
    (Local(processes=2, devices_per_process=2), 2, "2 GPUs cannot be divided over 2 processes of 2;"),
    (Local(processes=2), 1, "1 GPU cannot be divided over 2 processes;"),
    (Local(processes=2, platform="cuda"), 0, "0 GPUs cannot be divided over 2 processes;"),
  ],
)
def test_gpus_that_do_not_divide_are_refused(asked, gpus, said):
  with pytest.raises(UserError, match=said):
    environments(asked, {}, 1, [str(each) for each in range(gpus)])


@pytest.mark.parametrize(
  ("words", "said"),
  [
    (["--processes=0", "--", "ls"], "--processes=0: expected a whole number from 1 to 512"),
    (["--processes=2"], "launch: there is no command; it stands after --"),
    (["--processes=2", "--"], "launch: there is no command; it stands after --"),
    (["--proceses=2", "--", "ls"], "no flag --proceses (did you mean --processes?)"),
    (["ls", "--", "ls"], "'ls' is no flag"),
    (["--", "no-such-program"], "there is no program 'no-such-program'"),
  ],
)
def test_what_is_wrong_is_one_line(capfd, words, said):
  code, out, err = ran(capfd, *words)
  assert (code, out, len(err)) == (2, [], 1)
  assert said in err[0]


@pytest.mark.slow
def test_an_experiment_is_stopped_and_goes_on(tmp_path):
  """Two processes of two devices each; the second start ends with the result."""
  flags = ["--config=iris", "--workdir=run", "--run.steps=1500", "--run.eval_every=1500"]
  words = ["--processes=2", "--devices_per_process=2", "--", "python", "-m", "experiments.mlp", *flags]
  first = start(tmp_path, *words)
  while "step " not in first.stdout.readline():
    assert first.poll() is None
  first.send_signal(signal.SIGTERM)
  rest, err = first.communicate(timeout=120)
  assert first.returncode == 75, err
  assert "is saved" in rest
  saved = int(rest.split("step ")[-1].split(" is saved")[0].replace(",", ""))
  assert 0 < saved < 1500
  second = start(tmp_path, *words, "--run.log_every=1000")
  out, err = second.communicate(timeout=200)
  assert second.returncode == 0, err
  assert f"going on from step {saved}" in out.replace(",", "")
  assert (tmp_path / "run" / "result.json").exists()
