"""Every command in the README works, shortened: two updates, and a small prepared set in place of a downloaded one."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL)
LINES = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines()]
COMMANDS = [line for line in LINES if line and not line.startswith("#")]
MODULES = [shlex.split(line) for line in COMMANDS if line.startswith("python -m ")]
SHORT = ("--run.steps=2", "--run.eval_every=2", "--data.batch_size=8")
HELP = ("--help", "--list")


def prepared(folder: Path, name: str, shape: tuple[int, ...], classes: int) -> None:
  """A TFDS set of 40 + 16 noise images, as `tfds build` leaves one."""
  import json

  import tensorflow_datasets as tfds
  from array_record.python.array_record_module import ArrayRecordWriter

  rng, where = np.random.default_rng(0), folder / name / "9.9.9"
  where.mkdir(parents=True)
  features = tfds.features.FeaturesDict(
    {"image": tfds.features.Image(shape=shape), "label": tfds.features.ClassLabel(num_classes=classes)}
  )
  features.save_config(str(where))
  splits = []
  for split, size in (("train", 40), ("test", 16)):
    writer = ArrayRecordWriter(str(where / f"{name}-{split}.array_record-00000-of-00001"), "group_size:1")
    for i in range(size):
      image = rng.integers(0, 256, shape, np.uint8)
      writer.write(features.serialize_example({"image": png(image), "label": i % classes}))
    writer.close()
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    splits.append({"filepathTemplate": template, "name": split, "numBytes": "1", "shardLengths": [str(size)]})
  info = {"fileFormat": "array_record", "name": name, "splits": splits, "version": "9.9.9"}
  (where / "dataset_info.json").write_text(json.dumps(info))


def png(array: np.ndarray) -> bytes:
  import io

  from PIL import Image

  stream = io.BytesIO()
  Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array).save(stream, "PNG")
  return stream.getvalue()


@pytest.fixture(scope="session")
def place(tmp_path_factory):
  """A directory with what the README's commands expect: prepared sets, tables, and some finished runs."""
  folder = tmp_path_factory.mktemp("readme")
  prepared(folder / "tfds", "cifar10", (32, 32, 3), 10)
  prepared(folder / "tfds", "fashion_mnist", (28, 28, 1), 10)
  rows = "\n".join(f"{i % 7},{i % 5}.5,{'red' if i % 2 else 'blue'},{'yes' if i % 3 else 'no'}" for i in range(60))
  (folder / "flowers.csv").write_text("a,b,colour,species\n" + rows + "\n")
  (folder / "demand.csv").write_text("time,demand\n" + "".join(f"{i:04},{i % 24}.{i % 7}\n" for i in range(400)))
  run(folder, ["python", "-m", "experiments.cnn", "--config=digits"])
  run(folder, ["python", "-m", "experiments.cnn", "--config=digits", "--optim.learning_rate=0.01"])
  run(folder, ["python", "-m", "experiments.gan", "--config=digits"])
  run(folder, ["python", "-m", "experiments.gpt", "--config=stdlib"])
  run(folder, ["python", "-m", "experiments.bert", "--config=docstrings"])
  run(folder, ["python", "-m", "experiments.forecast", "--config=seasonal_gru"])
  return folder


def run(folder: Path, words: list[str]) -> None:
  if words[2].startswith("experiments.") and not set(HELP) & set(words) and "--config=runs/" not in " ".join(words):
    workdir = [f"--workdir={each}" for each in [default_workdir(words)] if each]
    short = SHORT if "experiments.linear" not in words else SHORT[:2]  # five points are a batch
    if "experiments.gan" in words and "--config=digits" in words:  # judged by the shortened run that is there
      short = (*short, "--metrics.features=runs/cnn-digits", "--metrics.count=40")
    if "experiments.gpt" in words:  # less to evaluate on
      short = (*short, "--model.width=32", "--data.validation_fraction=0.002")
    words = [*words, *short, f"--data.dir={folder / 'tfds'}", *workdir]
  if words[2].startswith("benchmarks."):
    words = [*words[:3], "--help"]  # hours; their own commands are those above
  environment = {**os.environ, "XLA_FLAGS": "", "HOME": str(folder)}
  done = subprocess.run([sys.executable, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"


def default_workdir(words: list[str]) -> str:
  """Where the unshortened command would put its run, so that the README's later commands find it."""
  import importlib

  from experiments import command

  named = any(word.startswith(("--workdir", "--init_from")) for word in words)
  if {"preflight", "eval", "sample"} & set(words) or named:
    return ""
  return str(command.read(importlib.import_module(f"{words[2]}.__main__").EXPERIMENT, words[3:]).workdir)


def test_the_readme_has_commands():
  assert len(MODULES) >= 8
  assert COMMANDS[0] == "make train"


def test_make_targets_exist():
  makefile = (README.parent / "Makefile").read_text()
  for line in COMMANDS:
    if line.startswith("make "):
      assert re.search(rf"^{shlex.split(line)[1]}:", makefile, re.MULTILINE), line


@pytest.mark.readme
@pytest.mark.parametrize("words", MODULES, ids=lambda words: " ".join(words[2:]))
def test_a_command_of_the_readme_runs(place, words):
  run(place, words)
