"""What all launchers do: print, submit, help, and say what is wrong in a line."""

import importlib
import shlex

import pytest

from launch import engine

WHOLE = {
  "slurm": "--nodes=2",
  "tpu_vm": "--zone=us-east5-a --bucket=b",
  "gke": "--image=i --topology=4x4 --bucket=b",
  "skypilot": "--bucket=gs://b",
}
TOOLS = {"slurm": "sbatch", "tpu_vm": "bash", "gke": "kubectl", "skypilot": "sky"}
COMMAND = ["--", "python", "-m", "experiments.gan", "--submit"]  # which is the command's


def of(name):
  return importlib.import_module(f"launch.{name}").ENGINE


@pytest.mark.parametrize("name", WHOLE)
def test_printing_is_the_default(name, capsys, tool):
  tool(TOOLS[name], "exit 9\n")
  assert engine.main(of(name), [*shlex.split(WHOLE[name]), *COMMAND]) == 0
  shown = capsys.readouterr()
  assert "experiments.gan" in shown.out
  assert shown.err == ""


@pytest.mark.parametrize("name", WHOLE)
def test_submit_hands_the_text_to_the_tool(name, capfd, tool, tmp_path):
  flags = [*shlex.split(WHOLE[name]), "--name=mine"]
  engine.main(of(name), [*flags, *COMMAND])
  printed, _ = capfd.readouterr()
  tool(TOOLS[name], f'echo "$@"; cat "${{@: -1}}" > {tmp_path}/taken; exit 7\n')
  assert engine.main(of(name), [*flags, "--submit", *COMMAND]) == 7  # the tool's own code
  *words, path = capfd.readouterr().out.split()
  assert (tmp_path / "taken").read_text() == printed
  assert words == list(of(name).tool[1:])
  assert path.endswith(f"/mine{of(name).suffix}")


@pytest.mark.parametrize("name", ["slurm", "gke", "skypilot"])
def test_a_missing_tool_is_one_line(name, capsys, monkeypatch, tmp_path):
  monkeypatch.setenv("PATH", str(tmp_path))
  assert engine.main(of(name), [*shlex.split(WHOLE[name]), "--submit", *COMMAND]) == 2
  said = capsys.readouterr()
  assert said.out == ""
  assert said.err.startswith(f"launch: --submit needs {TOOLS[name]}, which is not on the PATH")
  assert said.err.count("\n") == 1


@pytest.mark.parametrize("name", [*WHOLE, "local"])
@pytest.mark.parametrize(
  ("words", "said"),
  [
    ([], "there is no command; it stands after --"),
    (["--"], "there is no command; it stands after --"),
    (["python", "-m", "experiments.gan"], "there is no command; it stands after --"),
    (["--nme=x", *COMMAND], "flags: no flag --nme"),
    (["gan", *COMMAND], "'gan' is no flag"),
    (["--", "a\0b"], "a zero byte"),
    (["--", "python", "-m", "experiments.gam"], "experiments.gam does not exist (did you mean gan?); experiments: "),
    (["--", "/a/python3.12", "-u", "-m", "experiments.zzz", "eval"], "experiments.zzz does not exist; experiments: "),
    ([*COMMAND, "--config=digitz"], "experiments.gan has no preset 'digitz' (did you mean digits?); presets: "),
    ([*COMMAND, "--config", "digitz"], "has no preset 'digitz'"),
  ],
)
def test_a_command_line_that_is_wrong_is_one_line(name, words, said, capsys):
  module = importlib.import_module(f"launch.{name}")
  words = [*shlex.split(WHOLE.get(name, "")), *words]
  code = module.main(words) if name == "local" else engine.main(module.ENGINE, words)
  shown = capsys.readouterr()
  assert (code, shown.out, shown.err.count("\n")) == (2, "", 1)
  assert said in shown.err


@pytest.mark.parametrize(
  "command",
  [
    "python -m experiments.gan --config=digits",
    "python -m experiments.gan --config runs/there",  # a run that lies on the machines
    "python -m experiments.gan --config=mine.flags",
    "python -m mine.gam --config=digitz",
    "python train.py -m experiments.gam",
    "bash -c 'python -m experiments.gam'",
    "python -m",
  ],
)
def test_what_may_be_there_is_not_refused(command, capsys):
  assert engine.main(of("slurm"), ["--", *shlex.split(command)]) == 0
  assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["My-Job", "-a", "a-", "a_b", "1a", "a" * 41, "a b", ""])
def test_names_that_an_engine_would_refuse(name, capsys):
  assert engine.main(of("slurm"), [f"--name={name}", *COMMAND]) == 2
  assert "names no job" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*WHOLE, "local"])
def test_help_lists_the_flags(name, capsys):
  module = importlib.import_module(f"launch.{name}")
  assert (module.main(["--help"]) if name == "local" else engine.main(module.ENGINE, ["--help"])) == 0
  shown = capsys.readouterr().out
  assert f"python -m launch.{name}" in shown
  assert "--processes=2" in shown if name == "local" else "--restarts=10" in shown


@pytest.mark.parametrize("name", WHOLE)
def test_the_example_of_the_help_is_a_command(name, capsys):
  example = shlex.split(of(name).example)
  assert engine.main(of(name), [*example, *COMMAND]) == 0
  capsys.readouterr()
