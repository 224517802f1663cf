"""The SLURM script: read by bash, run with stand-ins for SLURM's programs, and by two real processes of jax."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from launch.slurm import Slurm, text
from research.errors import UserError

# Two tasks on one node. Its code is the greatest of theirs, as srun's is.
SRUN = """
echo "srun $1" >> "$CALLS"
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=1 pids=
for rank in 0 1; do SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" & pids="$pids $!"; done
[ -z "$CANCEL" ] || kill -TERM "$PPID"
greatest=0
for pid in $pids; do wait "$pid"; code=$?; [ "$code" -le "$greatest" ] || greatest=$code; done
exit "$greatest"
"""
SCONTROL = 'echo "scontrol $*" >> "$CALLS"\n'
PSUM = """
import jax
jax.distributed.initialize()
from jax.experimental import multihost_utils
whole = multihost_utils.process_allgather(jax.numpy.float32(2.0 ** jax.process_index()))
print(f"process {jax.process_index()} of {jax.process_count()}: {float(whole.sum())}")
"""
OPTIONS = {  # of sbatch 22.05
  "account", "constraint", "cpus-per-task", "exclusive", "gpus-per-node", "job-name", "mem", "nodes", "ntasks-per-node",
  "open-mode", "output", "partition", "requeue", "signal", "time",
}  # fmt: skip


@pytest.fixture
def run(tool, tmp_path, monkeypatch):
  """(command, resources, variables) → (exit code, output, calls of SLURM's programs) of the script."""
  tool("srun", SRUN)
  tool("scontrol", SCONTROL)
  calls = tmp_path / "calls"

  def go(command, resources=None, **variables):
    calls.write_text("")
    resources = resources or Slurm(setup="")
    environment = {
      **os.environ, "CALLS": str(calls), "SLURM_JOB_ID": str(os.getpid() + 4096), "SLURM_JOB_NAME": "job", "CANCEL": "",
      "LAUNCH_GRACE": "0", **variables,
    }  # fmt: skip
    done = subprocess.run(
      ["bash", "-c", text(command, resources)], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert re.fullmatch(r"(.*Killed.*\n)?", done.stderr)
    assert not list(tmp_path.glob(".job-*"))
    return done.returncode, done.stdout.splitlines(), calls.read_text().splitlines()

  return go


def tasks(first, second):
  """A command that does one thing in task 0 and another in task 1."""
  return ["bash", "-c", f'if [ "$SLURM_PROCID" = 0 ]; then {first}; else {second}; fi']


@pytest.mark.parametrize("code", [75, 77])
def test_it_is_queued_again(run, code):
  found, out, calls = run(["bash", "-c", f"exit {code}"])
  assert (found, out) == (code, [f"launch: ended with {code}; queued again (1 of 10)"])
  assert calls[-1] == f"scontrol requeue {os.getpid() + 4096}"


@pytest.mark.parametrize("code", [0, 1, 2, 76])
def test_it_is_not_queued_again(run, code):
  found, out, calls = run(["bash", "-c", f"exit {code}"])
  assert (found, out) == (code, [f"launch: ended with {code}"])
  assert len(calls) == 1


def test_the_bound_is_kept(run):
  command, resources = ["bash", "-c", "exit 75"], Slurm(setup="", restarts=3)
  _, out, calls = run(command, resources, SLURM_RESTART_COUNT="2")
  assert out == ["launch: ended with 75; queued again (3 of 3)"]
  assert len(calls) == 2
  found, out, calls = run(command, resources, SLURM_RESTART_COUNT="3")
  assert (found, out) == (75, ["launch: ended with 75 after 3 restarts; sbatch the script again to go on"])
  assert len(calls) == 1


def test_the_code_is_of_the_first_to_end_badly(run):
  """srun alone would say 137 of both: a task that hung and was killed, and one that took others along."""
  found, _, calls = run(tasks("exit 77", "sleep 0.3; kill -KILL $$"))
  assert found == 77
  assert len(calls) == 2
  found, _, calls = run(tasks("sleep 0.3; exit 77", "kill -KILL $$"))
  assert found == 137
  assert len(calls) == 1


def test_a_task_that_is_told_to_stop_saves(run):
  """SIGTERM comes to all processes of a task, the shell around the command among them."""
  saves = 'trap "echo saving; exit 75" TERM; kill -TERM $PPID; kill -TERM $$'
  found, out, _ = run(tasks(saves, saves))
  assert found == 75
  assert out.count("saving") == 2


def test_a_cancelled_job_is_not_queued_again(run):
  found, out, calls = run(["bash", "-c", "sleep 0.2; exit 75"], CANCEL="yes")
  assert (found, out) == (75, ["launch: ended with 75, and the job was cancelled"])
  assert len(calls) == 1


def test_a_setup_that_fails_ends_it(run):
  found, out, calls = run(["ls"], Slurm(setup="true; false"))
  assert (found, out, calls) == (2, ["launch: the setup failed"], [])


def test_a_command_reaches_the_tasks_word_for_word(run):
  words = ["two words", "it's", '"$HOME"', "*", "", "a\nb", "\\"]
  _, out, _ = run(["python", "-c", "import sys; print(sys.argv[1:])", *words], Slurm(setup="export UNUSED=1"))
  assert out[:2] == [str(words)] * 2


def test_two_processes_find_each_other_by_slurms_variables(run):
  """Port and address are jax's own choice, from the job's number and its nodes."""
  found, out, _ = run([sys.executable, "-c", PSUM], Slurm(setup=""), XLA_FLAGS="")
  assert found == 0
  assert sorted(re.findall(r"process . of .: 3\.0", "".join(out))) == ["process 0 of 2: 3.0", "process 1 of 2: 3.0"]


@pytest.mark.parametrize(
  "resources",
  [
    Slurm(),
    Slurm(nodes=4, gpus_per_node=8, time="2-00:00:00", partition="p", account="a", sbatch="--exclusive --mem=0"),
    Slurm(gpus_per_node=4, tasks_per_node=1, cpus_per_task=8, container="x.sif", warning=0, setup="module load a; b"),
    Slurm(gpus_per_node=4, container="reg#image:1", runtime="pyxis", setup=""),
  ],
)
def test_the_script_is_sound(resources, checked):
  resources.check()
  script = text(["python", "-m", "experiments.gan", "--note=it's $5 \"and\" `more`"], resources)
  checked(script)
  given = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", script, re.MULTILINE))
  assert given.keys() <= OPTIONS
  assert script.count("#SBATCH") == len(given)
  assert (int(given["nodes"]), int(given["ntasks-per-node"])) == (resources.nodes, resources.tasks)
  assert not set(re.findall(r"\{[a-z]+\}", script))


def test_a_process_with_several_gpus_takes_all_of_them():
  """jax would else give a process of SLURM's the one of its number."""
  assert "JAX_LOCAL_DEVICE_IDS=0,1,2,3\n" in text(["x"], Slurm(gpus_per_node=4, tasks_per_node=1))
  assert "JAX_LOCAL_DEVICE_IDS" not in text(["x"], Slurm(gpus_per_node=4))


def test_containers():
  def step(resources):
    return shlex.split(text(["python", "x"], resources).split("\nsrun ")[1].split("\ncode=")[0].replace("\\\n", ""))

  assert step(Slurm(container="x.sif", gpus_per_node=1))[5:] == [
    "apptainer", "exec", "--nv", "--bind", "$PWD", "--pwd", "$PWD", "x.sif", "python", "x",
  ]  # fmt: skip
  assert "--nv" not in step(Slurm(container="x.sif"))
  found = step(Slurm(container="reg#image:1", runtime="pyxis"))
  assert found[1:4] == ["--container-image=reg#image:1", "--container-mounts=$PWD:$PWD", "--container-workdir=$PWD"]
  assert found[-2:] == ["python", "x"]


@pytest.mark.parametrize(
  ("resources", "said"),
  [
    (Slurm(time="12h"), "--time=12h is no time; 12:00:00"),
    (Slurm(gpus_per_node=8, tasks_per_node=3), "--tasks_per_node=3 does not suit --gpus_per_node=8"),
    (Slurm(partition="a b"), "--partition=a b has a blank in it"),
    (Slurm(setup="a\nb"), "one line each"),
    (Slurm(sbatch="exclusive"), "'exclusive' is no option"),
    (Slurm(name="My job"), "--name=My job names no job"),
  ],
)
def test_what_sbatch_would_refuse_is_refused(resources, said):
  with pytest.raises(UserError, match=re.escape(said)):
    resources.check()
