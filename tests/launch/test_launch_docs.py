"""Every command of docs/launch.md, by what it prints: the files in golden/.

When a launcher is meant to print something else, renew them and read the difference:

  python tests/launch/test_launch_docs.py && git diff tests/launch/golden
"""

import contextlib
import importlib
import io
import re
import shlex
from pathlib import Path

import pytest

from experiments import command as experiments_command
from launch import engine, local

DOCS = Path(__file__).parent.parent.parent / "docs" / "launch.md"
GOLDEN = Path(__file__).parent / "golden"
BLOCKS = re.findall(r"```sh\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines() if line.startswith("python -m launch.")]
COMMANDS = [shlex.split(line) for line in LINES if "ENGINE" not in line]
PRINTED = [words for words in COMMANDS if words[2] != "launch.local"]


def printed(words: list[str]) -> tuple[Path, str]:
  """A command's golden file, and what it prints now."""
  module = importlib.import_module(words[2])
  with contextlib.redirect_stdout(io.StringIO()) as out:
    assert engine.main(module.ENGINE, words[3:]) == 0
  resources, _ = engine.read(module.ENGINE.name, module.ENGINE.schema, words[3:], "")
  return GOLDEN / f"{module.ENGINE.name}-{resources.name}{module.ENGINE.suffix}", out.getvalue()


def test_each_engine_is_documented():
  engines = {path.stem for path in (DOCS.parent.parent / "launch").glob("*.py") if "ENGINE = " in path.read_text()}
  assert {words[2] for words in PRINTED} == {f"launch.{each}" for each in engines}
  assert len(engines) == 4


@pytest.mark.parametrize("words", PRINTED, ids=lambda words: " ".join(words[2:4]))
def test_a_documented_command_prints_its_golden_file(words):
  path, text = printed(words)
  assert text == path.read_text("utf-8")


def test_no_golden_file_is_left_over():
  assert {printed(words)[0] for words in PRINTED} == set(GOLDEN.iterdir())


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[2:4]))
def test_the_command_that_it_launches_is_one(words):
  _, inner = engine.split(words)
  assert inner[:2] == ("python", "-m")
  experiment = importlib.import_module(f"{inner[2]}.__main__").EXPERIMENT
  assert experiments_command.read(experiment, inner[3:]).word == "train"


def test_the_local_command_is_understood():
  [words] = [words for words in COMMANDS if words[2] == "launch.local"]
  asked, _ = engine.read("local", local.Local, words[3:], "")
  assert (asked.processes, asked.devices_per_process) == (2, 2)


if __name__ == "__main__":
  for file in GOLDEN.iterdir():
    file.unlink()
  for each in PRINTED:
    golden, shown = printed(each)
    golden.write_text(shown, "utf-8")
