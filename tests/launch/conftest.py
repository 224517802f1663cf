"""What the launchers' tests share: stand-ins for an engine's tools, and bash's and shellcheck's view of scripts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def tool(tmp_path, monkeypatch):
  """(name, script in bash) → that program, first on the PATH."""
  folder = tmp_path / "bin"
  folder.mkdir()
  monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

  def make(name, script):
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}")  # by its path: the tool may be bash
    path.chmod(0o755)

  return make


@pytest.fixture
def checked():
  """script → nothing; fails where bash cannot read it, or shellcheck finds a mistake."""

  def check(script):
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""
    shellcheck = Path(sys.executable).parent / "shellcheck"
    # SC2016: what stands in single quotes is meant for another shell.
    found = subprocess.run([shellcheck, "--exclude=SC2016", "-"], input=script, text=True, capture_output=True)
    assert found.stdout == ""

  return check
