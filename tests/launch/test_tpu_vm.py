"""The Cloud TPU script: its commands against gcloud's own flags, its decisions with a stand-in for gcloud."""

import itertools
import json
import re
import shlex
import shutil
import subprocess

import pytest

from launch import tpu_vm
from launch.accelerators import vm_type
from launch.tpu_vm import TpuVm, commands, started, text
from research.errors import UserError

ASKED = TpuVm(name="gan", zone="us-east5-a", bucket="gs://my-runs")
ZONE = "us-west1-c"
EVERY = (
  ASKED,
  TpuVm(name="a", zone=ZONE, project="p", accelerator="v4-16", spot=True, valid_until="6h", bucket="b", keep=True),
  TpuVm(name="a", zone=ZONE, accelerator="v5p-8", reserved=True, network="n", internal_ips=True, bucket="b"),
  TpuVm(name="a", zone=ZONE, accelerator="v6e-256", runtime_version="r", bucket="b", setup="sudo apt-get update"),
)
WORDS = ["python", "-m", "experiments.gan", "--note=it's $5"]
# `gcloud compute tpus … --help` of gcloud 528: what a command must have, and what it may.
WIDE = {"project", "quiet", "format"}
FLAGS = {
  "queued-resources create": (
    {"node-id", "accelerator-type", "runtime-version", "zone"},
    {"spot", "reserved", "guaranteed", "valid-until-duration", "network", "internal-ips"},
  ),
  "queued-resources describe": ({"zone"}, set()),
  "queued-resources delete": ({"zone"}, {"force", "async"}),
  "tpu-vm scp": ({"zone", "worker"}, {"internal-ip", "recurse"}),
  "tpu-vm ssh": ({"zone", "worker", "command"}, {"internal-ip"}),
}
SWITCHES = {"spot", "reserved", "guaranteed", "internal-ips", "internal-ip", "force", "async", "recurse", "quiet"}

# `now` is the slice's state; each line of `plan` is what a run of the command does: what it says, the state after it,
# gcloud's exit code.
GCLOUD = r"""
echo "$3 $4" >> calls
case "$3 $4" in
  "queued-resources create") cat supply > now ;;
  "queued-resources describe") cat now 2> /dev/null ;;
  "queued-resources delete") rm -f now ;;
  "tpu-vm scp") [ -s "$5" ] && cp "$5" sent.tar.gz ;;
  "tpu-vm ssh")
    case "$*" in
      *mkdir*) exit "$(cat prepares 2> /dev/null || echo 0)" ;;
    esac
    line=$(head -n 1 plan); sed -i 1d plan
    IFS='|' read -r said state code <<< "$line"
    for each in $said; do
      echo "##### Command execution on worker ${each%:*} failed with exit status ${each#*:}. Continuing." >&2
    done
    echo "$state" > now
    exit "$code" ;;
esac
"""


@pytest.fixture
def run(tool, in_directory, monkeypatch):
  """(plan, resources) → (exit code, what the launcher said, gcloud's commands) of the script, in a checkout."""
  tool("gcloud", f"cd {shlex.quote(str(in_directory))} || exit\n" + GCLOUD.replace('"$5"', '"$OLDPWD/$5"'))
  for command in ("git init -q", "git config user.email a@b", "git config user.name a"):
    subprocess.run(command.split(), check=True)
  (in_directory / "code.py").write_text("new\n")
  (in_directory / ".gitignore").write_text("runs/\nbin/\n")
  (in_directory / "supply").write_text("ACTIVE\n")
  monkeypatch.setenv("LAUNCH_PAUSE", "0")

  def go(plan, resources=ASKED):
    (in_directory / "plan").write_text("\n".join(plan) + "\n")
    (in_directory / "calls").write_text("")
    done = subprocess.run(["bash", "-c", text(WORDS, resources)], capture_output=True, text=True)
    said = [line.removeprefix("launch: ") for line in done.stderr.splitlines() if line.startswith("launch: ")]
    calls = [line for line in (in_directory / "calls").read_text().splitlines() if "describe" not in line]
    return done.returncode, said, calls

  return go


CREATE, DELETE = "queued-resources create", "queued-resources delete"
START = ["tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"]


def test_a_run_that_ends_well(run, in_directory):
  assert run(["|ACTIVE|0"]) == (0, ["ended with 0"], [CREATE, *START, DELETE])
  names = subprocess.run(["tar", "tzf", "sent.tar.gz"], capture_output=True, text=True, check=True).stdout.split()
  assert {"code.py", ".gitignore"} <= set(names)
  assert not [name for name in names if name.startswith("bin/")]  # what git ignores stays here


@pytest.mark.parametrize("code", [75, 77, 255])
def test_the_command_is_run_again(run, code):
  found, said, calls = run([f"|ACTIVE|{code}", "|ACTIVE|0"])
  assert (found, said) == (0, [f"ended with {code}", "starting again (1 of 10)", "ended with 0"])
  assert calls == [CREATE, *START, *START, DELETE]


@pytest.mark.parametrize("code", [1, 2, 76])
def test_other_codes_end_it(run, code):
  assert run([f"|ACTIVE|{code}"]) == (code, [f"ended with {code}"], [CREATE, *START, DELETE])


def test_machines_that_were_taken_away_are_made_anew(run):
  found, said, calls = run(["|SUSPENDED|1", "|ACTIVE|0"])
  assert found == 0
  assert said == ["ended with 1", "starting again (1 of 10)", "taken away; making them anew", "ended with 0"]
  assert calls == [CREATE, *START, DELETE, CREATE, *START, DELETE]


def test_the_bound_is_kept(run):
  found, said, _ = run(["|ACTIVE|75"] * 9, TpuVm(name="gan", zone="us-east5-a", bucket="b", restarts=2))
  assert found == 75
  assert said[-2:] == ["ended with 75", "after 2 restarts"]
  assert said.count("ended with 75") == 3


def test_the_code_is_of_the_first_worker_to_end_badly(run):
  """gcloud returns that of the worker of lowest number: 77, of one that noticed."""
  assert run(["3:1 0:77 1:77|ACTIVE|77"])[0] == 1
  found, said, _ = run(["3:75 0:1|ACTIVE|1", "|ACTIVE|0"])
  assert (found, said[0]) == (0, "ended with 75")


def test_a_setup_that_fails_is_not_tried_again(run, in_directory):
  (in_directory / "prepares").write_text("1")
  assert run([]) == (1, ["ended with 1"], [CREATE, *START[:2], DELETE])


def test_no_machines(run, in_directory):
  (in_directory / "supply").write_text("FAILED\n")
  assert run([]) == (1, ["no machines: gcloud says FAILED"], [CREATE, DELETE])


def test_machines_that_are_there_are_taken_and_may_be_kept(run, in_directory):
  (in_directory / "now").write_text("ACTIVE\n")
  found, _, calls = run(["|ACTIVE|0"], TpuVm(name="gan", zone="us-east5-a", bucket="b", keep=True))
  assert (found, calls) == (0, START)


@pytest.mark.parametrize("asked", EVERY)
def test_the_script_is_sound(asked, checked):
  asked.check()
  checked(text(WORDS, asked))


@pytest.mark.parametrize(("asked", "purpose"), list(itertools.product(EVERY, commands(WORDS, ASKED))))
def test_gcloud_knows_each_flag(asked, purpose):
  words = shlex.split(commands(WORDS, asked)[purpose])
  assert words[:3] == ["gcloud", "compute", "tpus"]
  needed, known = FLAGS[" ".join(words[3:5])]
  given = [word.removeprefix("--").partition("=") for word in words if word.startswith("--")]
  names = [name for name, _, _ in given]
  assert needed <= set(names) <= needed | known | WIDE
  assert len(names) == len(set(names))
  assert all(bool(equals) == (name not in SWITCHES) for name, equals, _ in given)


if shutil.which("gcloud"):  # by its own parser, where it can be had

  @pytest.mark.slow
  def test_gcloud_itself_takes_the_commands(tmp_path, monkeypatch):
    lines = [line for each in EVERY for line in commands(WORDS, each).values()]
    # The linter rewrites what looks like flags inside a quoted value.
    plain = [re.sub(r"--command=.*", f"--command=true --zone={EVERY[0].zone}", line) for line in lines]
    asked = [{"command_string": line} for line in [*plain, plain[0] + " --nod"]]
    (tmp_path / "lines.json").write_text(json.dumps(asked))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "config"))
    command = ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={tmp_path / 'lines.json'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {each["command_string"]: each["error_message"] for each in json.loads(done.stdout)}
    wrong = {line: message for line, message in found.items() if message}
    assert len(found) == len(set(plain)) + 1
    assert list(wrong) == [plain[0] + " --nod"]


def test_a_worker_ends_what_a_lost_connection_left(in_directory):
  """The command that ssh runs, on this machine."""
  (in_directory / "flagship" / ".venv" / "bin").mkdir(parents=True)
  (in_directory / "flagship" / ".venv" / "bin" / "activate").write_text("export ACTIVE=yes\n")
  waits = ["bash", "-c", 'trap "echo saved; exit 75" TERM; echo ready; while :; do sleep 0.02; done']
  first = subprocess.Popen(["bash", "-c", started(waits)], stdout=subprocess.PIPE, text=True)
  assert first.stdout.readline() == "ready\n"
  then = started(["bash", "-c", 'echo "$ACTIVE $1"; exit 3', "x", "it's $5"])
  second = subprocess.Popen(["bash", "-c", then], stdout=subprocess.PIPE, text=True)
  assert first.communicate(timeout=10)[0] == "saved\n"
  assert second.communicate(timeout=10)[0] == "yes it's $5\n"
  assert (first.returncode, second.returncode) == (75, 3)


@pytest.mark.parametrize(
  ("asked", "said"),
  [
    (TpuVm(bucket="b"), "--zone is needed"),
    (TpuVm(zone="us-east5-a"), "--bucket is needed"),
    (TpuVm(zone="us-east5", bucket="b"), "--zone=us-east5 is no zone of Google Cloud's"),
    (TpuVm(zone="mars", bucket="b"), "which are written as us-east5-a"),
    (TpuVm(zone="us-east5-a", bucket="b", spot=True, reserved=True), "--spot and --reserved are both given"),
    (TpuVm(zone="us-east5-a", bucket="b", accelerator="v5litepod-12"), "there is no such slice; v5litepod-"),
    (TpuVm(zone="us-east5-a", bucket="b", accelerator="v4-9"), "there is no such slice; v4-8 is near"),
    (TpuVm(zone="us-east5-a", bucket="b", accelerator="v5e-16"), "(did you mean v5litepod-16?)"),
    (TpuVm(zone="us-east5-a", bucket="b", accelerator="v5lightpod-16"), "(did you mean v5litepod-16?)"),
    (TpuVm(zone="us-east5-a", bucket="b", accelerator="h100"), "--accelerator=h100 is no TPU's"),
  ],
)
def test_what_is_wrong_is_said(asked, said):
  with pytest.raises(UserError, match=re.escape(said)):
    asked.check()


def test_each_generation_has_its_image():
  found = {name: vm_type(name).runtime for name in ("v4-8", "v5litepod-256", "v5p-128", "v6e-4")}
  assert found == {
    "v4-8": "tpu-ubuntu2204-base",
    "v5litepod-256": "v2-alpha-tpuv5-lite",
    "v5p-128": "v2-alpha-tpuv5",
    "v6e-4": "v2-alpha-tpuv6e",
  }
  assert tpu_vm.ENGINE.tool == ("bash",)


@pytest.mark.parametrize("zone", ["us-central2-b", "northamerica-northeast1-c", "europe-west12-a", "us-south1-ai1b"])
def test_zones_as_they_are(zone):
  TpuVm(zone=zone, bucket="b").check()
