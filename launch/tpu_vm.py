"""A script that has Cloud TPU machines made by a queued resource, and runs a command on every worker of the slice.

It runs where gcloud is, as long as the run lasts, and makes the machines anew when they were taken away. The run's
directory lies in a bucket, since they lose their disks.
"""

import dataclasses
import re
import shlex
import sys
from collections.abc import Sequence

from experiments.schema import flag
from launch.accelerators import vm_type
from launch.engine import AGAIN, Engine, Resources, main
from launch.environment import install
from research.errors import UserError

FOLDER = "flagship"  # on each worker, in its home
_ZONE = re.compile(r"[a-z]+-[a-z]+\d+-(ai\d+)?[a-z]")  # an AI zone is us-south1-ai1b
LOST = 255  # what ssh says when the connection is


@dataclasses.dataclass(frozen=True)
class TpuVm(Resources):
  """What launch.tpu_vm is told."""

  zone: str = flag("", "zone, as us-east5-a")
  accelerator: str = flag("v5litepod-16", "as gcloud calls it: v4-16, v5litepod-16, v5p-16, v6e-16 …")
  project: str = flag("", "Google Cloud project; empty: gcloud's own setting")
  runtime_version: str = flag("", "image of the machines; empty: what suits the accelerator")
  spot: bool = flag(False, "machines that may be taken away, at a lower price")
  reserved: bool = flag(False, "machines of a reservation")
  valid_until: str = flag("", "how long to wait for machines, as 6h; empty: for ever")
  network: str = flag("", "network of the machines; empty: the default one")
  internal_ips: bool = flag(False, "machines without public addresses; then run this inside their network")
  bucket: str = flag("", "Cloud Storage bucket that is mounted as runs/ on every worker, by gcsfuse")
  setup: str = flag("", "shell line on each new worker, before the code is installed", verbatim=True)
  keep: bool = flag(False, "leave the machines when the run has ended, however it ended")

  def check(self) -> None:
    """Raises UserError for machines that do not exist, and for what is missing."""
    super().check()
    vm_type(self.accelerator)
    if not self.zone:
      raise UserError("launch: --zone is needed, such as --zone=us-east5-a")
    if not _ZONE.fullmatch(self.zone):
      raise UserError(f"launch: --zone={self.zone} is no zone of Google Cloud's, which are written as us-east5-a")
    if not self.bucket:
      raise UserError("launch: --bucket is needed: machines that are taken away lose their disks and the run")
    if self.spot and self.reserved:
      raise UserError("launch: --spot and --reserved are both given; give one of them")
    if "\n" in self.setup:
      raise UserError("launch: --setup is one line")


def gcloud(tpu: TpuVm, *words: str) -> str:
  """A command line of `gcloud compute tpus`, in the job's zone and project."""
  where = [f"--zone={tpu.zone}", *([f"--project={tpu.project}"] * bool(tpu.project))]
  quoted = ["=".join(map(shlex.quote, word.split("=", 1))) for word in (*words, *where)]  # --command='…', to be read
  return " ".join(["gcloud compute tpus", *quoted])


def commands(command: Sequence[str], tpu: TpuVm) -> dict[str, str]:
  """Each command line of gcloud in the script, by what it is for."""
  created = [
    f"--node-id={tpu.name}",
    f"--accelerator-type={tpu.accelerator}",
    f"--runtime-version={tpu.runtime_version or vm_type(tpu.accelerator).runtime}",
    *(["--spot"] * tpu.spot),
    *(["--reserved"] * tpu.reserved),
    *([f"--valid-until-duration={tpu.valid_until}"] * bool(tpu.valid_until)),
    *([f"--network={tpu.network}"] * bool(tpu.network)),
    *(["--internal-ips"] * tpu.internal_ips),
    "--quiet",
  ]
  every = ["--worker=all", "--quiet", *(["--internal-ip"] * tpu.internal_ips)]
  ssh = ["tpu-vm", "ssh", tpu.name, *every]
  return {
    "create": gcloud(tpu, "queued-resources", "create", tpu.name, *created),
    "state": gcloud(tpu, "queued-resources", "describe", tpu.name, "--format=value(state.state)"),
    "remove": gcloud(tpu, "queued-resources", "delete", tpu.name, "--force", "--quiet"),
    "copy": gcloud(tpu, "tpu-vm", "scp", f"{tpu.name}.tar.gz", f"{tpu.name}:", *every),
    "prepare": gcloud(tpu, *ssh, f"--command={prepared(tpu)}"),
    "run": gcloud(tpu, *ssh, f"--command={started(command)}"),
  }


def prepared(tpu: TpuVm) -> str:
  """What each worker does once: takes the code, mounts the bucket, makes the environment. A second time is harmless."""
  bucket = shlex.quote(tpu.bucket.removeprefix("gs://"))
  return "; ".join(
    [
      "set -e",
      f"mkdir -p {FOLDER}/runs",
      f"cd {FOLDER}",
      f"tar xzf ../{tpu.name}.tar.gz",
      *([tpu.setup] * bool(tpu.setup)),
      f"mountpoint -q runs || gcsfuse --implicit-dirs {bucket} runs",
      *install("tpu"),
    ]
  )


def started(command: Sequence[str]) -> str:
  """What each worker does for a run. A process that a lost connection has left behind saves and ends first."""
  return "; ".join(
    [
      f"cd {FOLDER} || exit 2",
      'if [ -s pid ] && kill -TERM "$(cat pid)" 2> /dev/null',
      'then timeout 300 tail --pid="$(cat pid)" -f /dev/null',
      "fi",
      "echo $$ > pid",
      ". .venv/bin/activate",
      f"exec {shlex.join(command)}",
    ]
  )


def text(command: Sequence[str], tpu: TpuVm) -> str:
  """The script."""
  return SCRIPT.format(
    name=tpu.name,
    accelerator=tpu.accelerator,
    zone=tpu.zone,
    restarts=tpu.restarts,
    again=" | ".join(map(str, (*AGAIN, LOST))),
    finish="" if tpu.keep else "  remove\n",
    **commands(command, tpu),
  )


SCRIPT = r"""#!/usr/bin/env bash
# {name} on {accelerator} in {zone}. Made by python -m launch.tpu_vm; run it where the code and gcloud are.
# The command is run again, {restarts} times at most, after exit code 75 (stopped after saving), 77 (another host died)
# and 255 (connection lost), and when the machines were taken away. The script itself goes on where it was interrupted.
set -uo pipefail

create() {{
  {create}
}}
state() {{
  {state} 2> /dev/null
}}
remove() {{
  {remove}
}}
pack() {{  # the working tree, without what git ignores: once, so that a run goes on with the code that it began with
  git ls-files -z --cached --others --exclude-standard |
    tar --create --gzip --null --files-from=- --ignore-failed-read --file="$folder/{name}.tar.gz"
}}
copy() (
  cd "$folder" || exit
  {copy}
)
prepare() {{
  {prepare}
}}
run() {{
  {run}
}}

say() {{ echo "launch: $*" >&2; }}
pause() {{ sleep "${{LAUNCH_PAUSE:-30}}"; }}

finish() {{  # with a code; nothing costs money afterwards
{finish}  exit "$1"
}}

# Makes the machines unless they are there, and waits for them. Fails where they can't be had.
have() {{
  local now
  while :; do
    now=$(state)
    case "$now" in
      ACTIVE) return 0 ;;
      "") create || return 1 ;;
      SUSPENDED) say "taken away; making them anew"; remove || return 1 ;;
      FAILED) say "no machines: gcloud says FAILED"; return 1 ;;
      *) pause ;;  # ACCEPTED, WAITING_FOR_RESOURCES, PROVISIONING, CREATING, SUSPENDING, DELETING
    esac
  done
}}

trap 'say "interrupted; the machines are still there: {remove}"; exit 75' INT TERM
folder=$(mktemp --directory)
trap 'rm -rf "$folder"' EXIT
pack || exit 2
restarts=0
while :; do
  have || finish 1
  if copy && prepare; then
    run 2> >(tee "$folder/log" >&2)
    returned=$?
    wait "$!"
    # The code that counts is of the first worker to end badly; gcloud returns that of the worker of lowest number.
    first=$(sed -n 's/.*Command execution on worker .* failed with exit status \([0-9]*\).*/\1/p' "$folder/log")
    code=${{first%%$'\n'*}}
    code=${{code:-$returned}}
  else
    code=$?
  fi
  say "ended with $code"
  [ "$code" -eq 0 ] && finish 0
  pause  # until it is known whether they were taken away
  case "$code" in
    {again}) ;;
    *) [ "$(state)" = ACTIVE ] && finish "$code" ;;
  esac
  if [ "$restarts" -ge {restarts} ]; then
    say "after $restarts restarts"
    finish "$code"
  fi
  restarts=$((restarts + 1))
  say "starting again ($restarts of {restarts})"
done
"""

ENGINE = Engine(
  "tpu_vm", __doc__, TpuVm, text, ("bash",), ".sh", "--zone=us-east5-a --accelerator=v5litepod-16 --bucket=BUCKET"
)

if __name__ == "__main__":
  sys.exit(main(ENGINE))
