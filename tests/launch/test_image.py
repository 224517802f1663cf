"""The Dockerfile, read: no builder runs here."""

import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

from launch import gke
from launch.environment import PYTHON

ROOT = Path(__file__).parent.parent.parent
# One instruction a line, as the builder joins them.
LINES = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text("utf-8")).splitlines()
INSTRUCTIONS = [line.split(" ", 1) for line in LINES if line and not line.startswith("#")]
STAGES = [index for index, (word, _) in enumerate(INSTRUCTIONS) if word == "FROM"]
BUILD, LAST = INSTRUCTIONS[STAGES[0] : STAGES[1]], INSTRUCTIONS[STAGES[1] :]
SHELL = [rest for word, rest in BUILD if word == "RUN"]


def test_each_line_is_an_instruction():
  known = {"ARG", "FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER", "CMD"}
  assert {word for word, _ in INSTRUCTIONS} == known
  assert len(STAGES) == 2


def test_what_runs_is_not_root():
  """A number, which Kubernetes can tell from root's; nothing that is run later has another."""
  assert LAST[-2] == ["USER", f"{gke.USER}:{gke.USER}"]
  assert [word for word, _ in LAST].count("USER") == 1
  assert f"useradd --uid {gke.USER} " in " ".join(rest for _, rest in LAST)


def test_each_file_that_is_copied_is_there_and_is_sent():
  """The ignore file keeps all else from the builder."""
  ignored = (ROOT / ".dockerignore").read_text().splitlines()
  assert "*" in ignored
  sent = {line[1:] for line in ignored if line.startswith("!")}
  copied = {source for word, rest in BUILD if word == "COPY" for source in rest.split()[:-1]}
  assert copied == sent
  assert all((ROOT / source).exists() for source in copied)
  assert all(rest.startswith("--from=build ") for word, rest in LAST if word == "COPY")


def test_versions_are_pinned():
  [base] = [rest for word, rest in INSTRUCTIONS if word == "ARG" and rest.startswith("BASE=")]
  assert re.fullmatch(rf"BASE=python:{re.escape(PYTHON)}\.\d+-slim-\w+", base)
  installs = [line for line in SHELL if "pip install" in line]
  assert installs
  assert all("--constraint constraints.txt" in line for line in installs)
  pinned = {re.split(r"[=;]", line)[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
  assert {"jax", "jax-cuda13-plugin", "nvidia-cudnn-cu13", "libtpu"} <= pinned


@pytest.mark.parametrize(("accelerator", "extras"), [("cpu", "text"), ("cuda", "text,cuda"), ("tpu", "text,tpu")])
def test_the_argument_chooses_an_extra(accelerator, extras, tool, in_directory):
  tool("python", 'echo "$@" >> calls\n')
  [line] = [line for line in SHELL if "pip install" in line]
  subprocess.run(["sh", "-c", line], env={**os.environ, "ACCELERATOR": accelerator}, check=True)
  words = shlex.split((in_directory / "calls").read_text().splitlines()[0])
  assert words[-1] == f".[{extras}]"
  known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
  assert set(extras.split(",")) <= known.keys()


def test_another_argument_is_refused(tool, in_directory):
  tool("python", "exit 9\n")
  [line] = [line for line in SHELL if "pip install" in line]
  done = subprocess.run(
    ["sh", "-c", line], env={**os.environ, "ACCELERATOR": "gpu"}, capture_output=True, text=True
  )
  assert (done.returncode, done.stderr) == (2, "ACCELERATOR=gpu is none of cpu, cuda, tpu\n")


def test_the_kernels_are_compiled_before_the_compiler_goes():
  assert SHELL[-1].endswith("python -m research.kernels.native.build")
  assert any("g++" in line for line in SHELL)
  assert not any("apt-get" in rest for _, rest in LAST)
