"""The SkyPilot task: its keys against SkyPilot's schema, and what a node does after each exit code."""

import re
import subprocess

import pytest
import yaml

from launch import skypilot
from launch.skypilot import SkyPilot, run, task, text
from research.errors import UserError

GPUS = SkyPilot(name="gan", accelerator="H100:8", nodes=2, spot=True, bucket="gs://my-runs")
TPU = SkyPilot(accelerator="tpu-v5litepod-16", infra="gcp/us-east5", bucket="gs://my-runs")
CPU = SkyPilot(accelerator="cpu", bucket="s3://my-runs", strategy="FAILOVER")
WORDS = ["python", "-m", "experiments.gan", "--note=it's $5"]
# sky/utils/schemas.py of SkyPilot 0.14.1, as far as a task of ours goes: the types of a mapping's keys.
SCHEMA = {
  "name": str,
  "workdir": str,
  "num_nodes": int,
  "resources": {
    "accelerators": str,
    "accelerator_args": {"runtime_version": str},
    "infra": str,
    "use_spot": bool,
    "job_recovery": {"strategy": str, "max_restarts_on_errors": int, "recover_on_exit_codes": list},
  },
  "file_mounts": dict,
  "setup": str,
  "run": str,
}


def fits(value, schema):
  if not isinstance(schema, dict):
    return type(value) is schema
  return value.keys() <= schema.keys() and all(fits(value[key], schema[key]) for key in value)


@pytest.mark.parametrize("sky", [GPUS, TPU, CPU])
def test_skypilot_knows_each_key(sky, checked):
  sky.check()
  made = yaml.safe_load(text(WORDS, sky))
  assert made == task(WORDS, sky)
  assert fits(made, SCHEMA)
  assert {"name", "resources", "run", "setup", "file_mounts", "num_nodes"} <= made.keys()
  assert made["file_mounts"] == {skypilot.MOUNT: {"source": sky.bucket, "mode": "MOUNT"}}
  for script in (made["run"], made["setup"]):
    checked("#!/usr/bin/env bash\n# shellcheck disable=SC1091\n" + script)


def test_the_schema_is_strict():
  assert not fits({**task(WORDS, GPUS), "node_count": 2}, SCHEMA)
  assert not fits({**task(WORDS, GPUS), "num_nodes": "2"}, SCHEMA)


def test_it_is_recovered_after_75_and_77_alone():
  recovery = task(WORDS, GPUS)["resources"]["job_recovery"]
  assert recovery == {"strategy": "EAGER_NEXT_REGION", "max_restarts_on_errors": 0, "recover_on_exit_codes": [75, 77]}
  assert task(WORDS, CPU)["resources"]["job_recovery"]["strategy"] == "FAILOVER"


@pytest.mark.parametrize(("sky", "extra"), [(GPUS, "[text,cuda]"), (TPU, "[text,tpu]"), (CPU, "[text]")])
def test_the_machines_get_what_they_need(sky, extra):
  assert f".{extra}'" in task(WORDS, sky)["setup"]


@pytest.fixture
def node(in_directory, monkeypatch):
  """(command, resources, rank) → (exit code, output) of a node's commands, in a home of its own."""
  (in_directory / "flagship-runs").mkdir()
  (in_directory / "code" / ".venv" / "bin").mkdir(parents=True)
  (in_directory / "code" / ".venv" / "bin" / "activate").write_text("")
  monkeypatch.setenv("HOME", str(in_directory))
  monkeypatch.setenv("SKYPILOT_TASK_ID", "sky-managed-2026/gan_3-0")
  monkeypatch.setenv("SKYPILOT_NODE_IPS", "10.0.0.1\n10.0.0.2")
  monkeypatch.setenv("SKYPILOT_NUM_NODES", "2")

  def go(command, sky=GPUS, rank=0):
    monkeypatch.setenv("SKYPILOT_NODE_RANK", str(rank))
    script = ["bash", "-c", run(command, sky)]
    done = subprocess.run(script, cwd=in_directory / "code", capture_output=True, text=True)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()

  return go


def test_nodes_are_told_who_they_are(node):
  shell = 'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS, $1"'
  assert node(["bash", "-c", shell, "x", "it's $5"], rank=1) == (0, [f"1 of 2 at 10.0.0.1:{skypilot.PORT}, it's $5"])


def test_a_tpus_hosts_are_left_to_jax():
  assert "JAX_" not in run(WORDS, TPU)


def test_a_tpu_has_its_own_image():
  assert task(WORDS, TPU)["resources"]["accelerator_args"] == {"runtime_version": "v2-alpha-tpuv5-lite"}


def test_runs_lie_in_the_bucket(node, in_directory):
  assert node(["touch", "runs/here"])[0] == 0
  assert (in_directory / "flagship-runs" / "here").exists()
  assert node(["touch", "runs/again"])[0] == 0  # the link is there already


@pytest.mark.parametrize("code", [0, 1, 2, 76])
def test_other_codes_are_what_they_are(node, code):
  assert node(["bash", "-c", f"exit {code}"]) == (code, [])


@pytest.mark.parametrize("code", [75, 77])
def test_restarts_are_bounded_by_each_node(node, code):
  sky = SkyPilot(nodes=2, bucket="gs://b", restarts=2)
  command = ["bash", "-c", f"exit {code}"]
  assert [node(command, sky)[0] for _ in range(4)] == [code, code, 1, 1]
  assert node(command, sky)[1] == [f"launch: ended with {code} after 2 restarts of 2"]
  assert node(command, sky, rank=1)[0] == code  # another node, another count


@pytest.mark.parametrize(
  ("sky", "said"),
  [
    (SkyPilot(), "--bucket is needed"),
    (SkyPilot(bucket="my-runs"), "--bucket=my-runs is no address; gs://NAME"),
    (SkyPilot(bucket="gs://b", accelerator="H10:8"), "no accelerator 'H10' (did you mean H100?)"),
    (SkyPilot(bucket="gs://b", accelerator="H100:x"), "expected a number from 1 to 16"),
    (SkyPilot(bucket="gs://b", accelerator="tpu-v5e-16"), "(did you mean v5litepod-16?)"),
    (SkyPilot(bucket="gs://b", accelerator="tpu-v6e-16", nodes=4), "a TPU slice is one node to SkyPilot"),
  ],
)
def test_what_is_wrong_is_said(sky, said):
  with pytest.raises(UserError, match=re.escape(said)):
    sky.check()
