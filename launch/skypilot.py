"""A SkyPilot task that takes machines in whatever cloud has them, and is recovered after exit codes 75 and 77.

SkyPilot's controller makes new machines when some were taken away. The run's directory lies in a bucket.
"""

import dataclasses
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import yaml

from experiments.schema import flag
from launch.accelerators import vm_type
from launch.engine import AGAIN, Engine, Resources, main
from launch.environment import install
from research import nearest
from research.errors import UserError

PORT = 8476  # of the coordinator
GPUS = (
  "T4", "V100", "V100-32GB", "A10", "A10G", "L4", "L40S", "A100", "A100-80GB", "H100", "H200", "B200", "GB200",
)  # fmt: skip
MOUNT = "~/flagship-runs"


@dataclasses.dataclass(frozen=True)
class SkyPilot(Resources):
  """What launch.skypilot is told."""

  accelerator: str = flag("H100:8", "of each machine, as SkyPilot says it: H100:8, L4, tpu-v5litepod-16; cpu: none")
  nodes: int = flag(1, "machines", low=1, high=10_000)
  infra: str = flag("", "cloud, region and zone, as gcp/us-central1; empty: the cheapest that has them")
  spot: bool = flag(False, "machines that may be taken away, at a lower price")
  bucket: str = flag("", "bucket that is mounted as runs/, with its scheme: gs://NAME, s3://NAME, r2://NAME")
  strategy: str = flag(
    "EAGER_NEXT_REGION", "where to look first for new machines", choices=("EAGER_NEXT_REGION", "FAILOVER")
  )

  @property
  def extra(self) -> str:
    """Which of the package's extras the machines need."""
    return "" if self.accelerator == "cpu" else "tpu" if self.accelerator.startswith("tpu-") else "cuda"

  def check(self) -> None:
    """Raises UserError for accelerators that do not exist, and for what is missing."""
    super().check()
    name, colon, count = self.accelerator.partition(":")
    if self.extra == "tpu":
      vm_type(self.accelerator.removeprefix("tpu-"))
      if self.nodes > 1:
        raise UserError("launch: a TPU slice is one node to SkyPilot, whatever its hosts: leave --nodes out")
    elif self.extra == "cuda" and name not in GPUS:
      raise UserError(f"launch: no accelerator {name!r}{nearest.hint(name, (*GPUS, 'cpu', 'tpu-v5litepod-16'))}")
    elif colon and not (count.isdecimal() and 1 <= int(count) <= 16):
      raise UserError(f"launch: --accelerator={self.accelerator}: expected a number from 1 to 16 after the colon")
    if not self.bucket:
      raise UserError("launch: --bucket is needed: machines that are taken away lose their disks and the run")
    if not re.fullmatch(r"(gs|s3|r2|nebius|cos|oci|https)://\S+", self.bucket):
      raise UserError(f"launch: --bucket={self.bucket} is no address; gs://NAME and s3://NAME would be")


def task(command: Sequence[str], sky: SkyPilot) -> dict[str, Any]:
  """The task, as an object."""
  accelerators = {} if sky.accelerator == "cpu" else {"accelerators": sky.accelerator}
  if sky.extra == "tpu":  # SkyPilot's own default is the v5p's image on every v5
    accelerators["accelerator_args"] = {"runtime_version": vm_type(sky.accelerator.removeprefix("tpu-")).runtime}
  return {
    "name": sky.name,
    "workdir": ".",
    "num_nodes": sky.nodes,
    "resources": {
      **accelerators,
      **({"infra": sky.infra} if sky.infra else {}),
      **({"use_spot": True} if sky.spot else {}),
      # The key's codes are recovered without a bound: the command below counts.
      "job_recovery": {"strategy": sky.strategy, "max_restarts_on_errors": 0, "recover_on_exit_codes": list(AGAIN)},
    },
    "file_mounts": {MOUNT: {"source": sky.bucket, "mode": "MOUNT"}},
    "setup": "\n".join(["set -e", *install(sky.extra), ""]),
    "run": run(command, sky),
  }


def run(command: Sequence[str], sky: SkyPilot) -> str:
  """The shell commands of every node."""
  cluster = f"""\
first=$(head -n 1 <<< "$SKYPILOT_NODE_IPS")
export JAX_COORDINATOR_ADDRESS="$first:{PORT}"
export JAX_NUM_PROCESSES="$SKYPILOT_NUM_NODES"
export JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"
"""
  return RUN.format(
    mount=MOUNT,
    cluster=cluster if sky.nodes > 1 else "",  # a TPU's hosts are found by jax
    command=shlex.join(command),
    again=" | ".join(map(str, AGAIN)),
    restarts=sky.restarts,
  )


RUN = """\
[ -L runs ] || ln -sT {mount} runs || exit 2
. .venv/bin/activate
{cluster}{command}
code=$?
case "$code" in
  {again})  # SkyPilot knows no bound: each node counts in the bucket
    counter="runs/.restarts-${{SKYPILOT_TASK_ID//\\//_}}-$SKYPILOT_NODE_RANK"
    restarts=$(cat "$counter" 2> /dev/null || echo 0)
    echo "launch: ended with $code after $restarts restarts of {restarts}"
    [ "$restarts" -lt {restarts} ] || exit 1
    echo $((restarts + 1)) > "$counter"
    ;;
esac
exit "$code"
"""


class _Dumper(yaml.SafeDumper):
  """Several lines as a block, to be read."""


def _string(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
  return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _string)


def text(command: Sequence[str], sky: SkyPilot) -> str:
  """The task, as YAML."""
  return yaml.dump(task(command, sky), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


ENGINE = Engine(
  "skypilot", __doc__, SkyPilot, text, ("sky", "jobs", "launch", "--yes"), ".yaml",
  "--accelerator=H100:8 --nodes=2 --bucket=gs://BUCKET",
)  # fmt: skip

if __name__ == "__main__":
  sys.exit(main(ENGINE))
