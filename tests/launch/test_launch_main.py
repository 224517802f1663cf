"""`python -m launch` tells what there is, and refuses what there is not."""

import importlib.util

import pytest

from launch.__main__ import NAMES, main


def test_it_names_every_command(capsys):
  assert main([]) == 0
  shown = capsys.readouterr().out
  assert set(NAMES) == {"local", "slurm", "tpu_vm", "gke", "skypilot", "sweep", "scaling"}
  assert all(f"python -m launch.{name} " in shown for name in NAMES)
  assert all(importlib.util.find_spec(f"launch.{name}") for name in NAMES)


@pytest.mark.parametrize(
  ("words", "said"),
  [
    (["slrm", "--nodes=2"], "there is no 'slrm' (did you mean slurm?); there are launch.local, launch.slurm,"),
    (["foo"], "there is no 'foo'; there are launch.local, launch.slurm, launch.tpu_vm, launch.gke, launch.skypilot,"),
    (["--nodes=2"], "there is no '--nodes=2'"),
    (["local", "--processes=2"], "python -m launch.local"),
  ],
)
def test_a_word_is_one_line(words, said, capsys):
  assert main(words) == 2
  shown = capsys.readouterr()
  assert said in shown.err
  assert (shown.out, shown.err.count("\n")) == ("", 1)
