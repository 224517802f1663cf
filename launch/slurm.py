"""A SLURM batch script that runs a command on every node, and has itself queued again after exit codes 75 and 77.

jax finds the cluster by SLURM's own variables. Files lie where all nodes see them, above all the run's directory.
"""

import dataclasses
import re
import shlex
import sys
from collections.abc import Sequence

from experiments.schema import flag
from launch.engine import AGAIN, Engine, Resources, main
from research.errors import UserError

_TIME = re.compile(r"(\d+-)?\d+(:\d\d){0,2}")


@dataclasses.dataclass(frozen=True)
class Slurm(Resources):
  """What launch.slurm is told."""

  nodes: int = flag(1, "machines", low=1, high=100_000)
  gpus_per_node: int = flag(0, "GPUs of each; 0: none are asked for", low=0, high=64)
  tasks_per_node: int = flag(0, "processes on each; 0: one for each GPU, or one", low=0, high=512)
  cpus_per_task: int = flag(0, "cores of each process; 0: as the partition has it", low=0, high=4096)
  time: str = flag("", "longest time, as 12:00:00 or 2-00:00:00; empty: the partition's")
  partition: str = flag("", "partition; empty: the cluster's own choice")
  account: str = flag("", "who pays; empty: your own account")
  warning: int = flag(120, "seconds before the end of the time at which the run is told to save", low=0, high=86_400)
  container: str = flag("", "image to run in; empty: none")
  runtime: str = flag("apptainer", "what opens the image", choices=("apptainer", "pyxis"))
  setup: str = flag(". .venv/bin/activate", "shell line before the command: modules, environments", verbatim=True)
  sbatch: str = flag("", "further options of sbatch, with blanks between them", verbatim=True)

  @property
  def tasks(self) -> int:
    """Processes on a node."""
    return self.tasks_per_node or self.gpus_per_node or 1

  def check(self) -> None:
    """Raises UserError for what sbatch would refuse, or jax could not make processes of."""
    super().check()
    if self.time and not _TIME.fullmatch(self.time):
      raise UserError(f"launch: --time={self.time} is no time; 12:00:00 and 2-00:00:00 would be")
    if self.gpus_per_node and self.tasks not in (1, self.gpus_per_node):
      raise UserError(
        f"launch: --tasks_per_node={self.tasks} does not suit --gpus_per_node={self.gpus_per_node}: a process has one"
        " GPU of its node or all of them"
      )
    if "\n" in self.setup or "\n" in self.sbatch:
      raise UserError("launch: --setup and --sbatch are one line each")
    for option in self.sbatch.split():
      if not option.startswith("-"):
        raise UserError(f"launch: --sbatch: {option!r} is no option; write --sbatch='--exclusive --mem=0'")


def text(command: Sequence[str], slurm: Slurm) -> str:
  """The batch script."""
  options = [
    f"--job-name={slurm.name}",
    f"--nodes={slurm.nodes}",
    f"--ntasks-per-node={slurm.tasks}",
    *([f"--gpus-per-node={slurm.gpus_per_node}"] * bool(slurm.gpus_per_node)),
    *([f"--cpus-per-task={slurm.cpus_per_task}"] * bool(slurm.cpus_per_task)),
    *([f"--time={slurm.time}"] * bool(slurm.time)),
    *([f"--partition={slurm.partition}"] * bool(slurm.partition)),
    *([f"--account={slurm.account}"] * bool(slurm.account)),
    "--output=%x-%j.log",
    "--open-mode=append",  # a job that is queued again has the same number
    "--requeue",  # by SLURM itself, when a node fails or another job has precedence
    *([f"--signal=TERM@{slurm.warning}"] * bool(slurm.warning)),  # to the processes, not to the script
    *slurm.sbatch.split(),
  ]
  step = ["srun", "--kill-on-bad-exit=1", *([f"--cpus-per-task={slurm.cpus_per_task}"] * bool(slurm.cpus_per_task))]
  # One process with several GPUs: jax would take the one of the process' number on its node.
  several = slurm.gpus_per_node > 1 and slurm.tasks == 1
  devices = f"export JAX_LOCAL_DEVICE_IDS={','.join(map(str, range(slurm.gpus_per_node)))}\n" if several else ""
  return SCRIPT.format(
    options="\n".join(f"#SBATCH {option}" for option in options),
    setup=f"{{\n{slurm.setup}\n}} || {{ echo 'launch: the setup failed'; exit 2; }}\n" if slurm.setup else "",
    devices=devices,
    restarts=slurm.restarts,
    step=" ".join([*step, *_container_options(slurm)]),
    command=" ".join([*_container_command(slurm), shlex.join(command)]),
    again=" | ".join(map(str, AGAIN)),
  )


def _container_options(slurm: Slurm) -> list[str]:
  if not slurm.container or slurm.runtime != "pyxis":
    return []
  image = f"--container-image={shlex.quote(slurm.container)}"
  return [image, '--container-mounts="$PWD:$PWD"', '--container-workdir="$PWD"']


def _container_command(slurm: Slurm) -> list[str]:
  if not slurm.container or slurm.runtime != "apptainer":
    return []
  gpus = ["--nv"] * bool(slurm.gpus_per_node)
  return ["apptainer", "exec", *gpus, '--bind "$PWD"', '--pwd "$PWD"', shlex.quote(slurm.container)]


SCRIPT = r"""#!/usr/bin/env bash
{options}
# Made by python -m launch.slurm. Runs the command as one process for each task; jax finds the others by itself.
# Exit codes 75 (stopped after saving) and 77 (another host died) queue the job again, {restarts} times at most.
set -uo pipefail
# shellcheck disable=SC1091
{setup}{devices}
# The code that counts is of the first process to end badly. srun tells the greatest, which is that of those it killed.
export FIRST_CODE="$PWD/.$SLURM_JOB_NAME-$SLURM_JOB_ID.code"
rm -f "$FIRST_CODE"
# shellcheck disable=SC2016
task='trap : TERM INT
"$@"
code=$?
if [ "$code" -ne 0 ]; then
  (set -o noclobber; echo "$code" > "$FIRST_CODE") 2> /dev/null
  sleep "${{LAUNCH_GRACE:-10}}"  # before srun ends the others: they may be saving, or write their report
fi
exit "$code"'

# scancel, and SLURM when another job has precedence, end this script too; then it is theirs to queue it again.
cancelled=
trap 'cancelled=yes' TERM
# shellcheck disable=SC2016
{step} \
  bash -c "$task" task \
  {command}
code=$?
if [ "$code" -ne 0 ] && [ -s "$FIRST_CODE" ]; then code=$(< "$FIRST_CODE"); fi
rm -f "$FIRST_CODE"

restarts=${{SLURM_RESTART_COUNT:-0}}
case "$code" in
  {again})
    if [ "$cancelled" ]; then
      echo "launch: ended with $code, and the job was cancelled"
    elif [ "$restarts" -lt {restarts} ]; then
      echo "launch: ended with $code; queued again ($((restarts + 1)) of {restarts})"
      scontrol requeue "$SLURM_JOB_ID"
    else
      echo "launch: ended with $code after $restarts restarts; sbatch the script again to go on"
    fi
    ;;
  *) echo "launch: ended with $code" ;;
esac
exit "$code"
"""

ENGINE = Engine("slurm", __doc__, Slurm, text, ("sbatch",), ".sh", "--nodes=2 --gpus_per_node=8 --time=12:00:00")

if __name__ == "__main__":
  sys.exit(main(ENGINE))
