"""The word sample: the files it leaves, whose files it never touches, and one line for whatever is wrong."""

import dataclasses
import importlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import command, inputs
from experiments.mlp.__main__ import EXPERIMENT as MLP
from research.report import samples

COUNTS = []  # asked of the task, one a call


def pictures(state, key, count):
  """Noise of the key alone, in a square of 2 × 3 pixels, and a walk through it."""
  assert int(state.step) == 4
  COUNTS.append(count)
  images_NHWC = np.asarray(jax.random.uniform(key, (count, 2, 3, 1)))
  return {"noise": images_NHWC, "walk": images_NHWC[None, :5]}


def maker(sample, sampled="pictures"):
  """The MLP experiment with a task that makes samples."""

  def build(*arguments):
    return dataclasses.replace(MLP.build(*arguments), sample=sample, sampled=sampled)

  return dataclasses.replace(MLP, build=build, samples="pictures, as files")


MAKER = maker(pictures)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  path = tmp_path_factory.mktemp("trained") / "w"
  arguments = ["--config=iris", "--run.steps=4", "--run.eval_every=4", "--seed=3", f"--workdir={path}"]
  assert command.main(MAKER, arguments) == 0
  return path


@pytest.fixture
def run(trained, in_directory):
  """A trained run in the current directory, as w."""
  shutil.copytree(trained, in_directory / "w")
  COUNTS.clear()
  return Path("w")


def make(*arguments, definition=MAKER):
  return command.main(definition, ["sample", "--config=w", *arguments])


def refused(capsys, *arguments, definition=MAKER):
  capsys.readouterr()
  assert make(*arguments, definition=definition) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1, error
  return error


def pixels(path):
  with Image.open(path) as picture:
    return np.asarray(picture)


def files(folder):
  return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def contents(folder):
  return {path: (Path(folder) / path).read_bytes() for path in files(folder)}


def test_pictures_and_grids_are_written_and_the_run_is_left_alone(run, capsys):
  before = contents(run)
  assert make("--count=6") == 0
  singles = [f"images/0000{place}.png" for place in range(6)]
  assert files("w/generated") == ["generated.json", *singles, "samples.png", "walk.png"]
  images = samples.as_uint8(pictures(type("State", (), {"step": 4}), jax.random.key(3), 6)["noise"])
  for path, image_HWC in zip(singles, images, strict=True):
    np.testing.assert_array_equal(pixels(Path("w/generated") / path), image_HWC[..., 0])
  np.testing.assert_array_equal(pixels("w/generated/samples.png"), samples.sheet(images)[..., 0])
  np.testing.assert_array_equal(pixels("w/generated/walk.png"), samples.sheet(images[None, :5])[..., 0])
  shutil.move("w/generated", "elsewhere")
  assert contents(run) == before
  out = capsys.readouterr().out
  for said in ("w, step 4: 6 pictures", "w/generated/samples.png", "w/generated/images/00000.png … 00005.png"):
    assert said in out


def test_the_runs_own_seed_gives_the_pictures_of_the_training(run):
  assert make() == 0
  np.testing.assert_array_equal(pixels("w/generated/samples.png"), pixels("w/samples/000004.png"))
  assert COUNTS == [64]


def test_another_seed_gives_other_pictures_and_the_same_seed_the_same(run):
  for output, seed in (("own", []), ("three", ["--sample_seed=3"]), ("seven", ["--sample_seed", "7"])):
    assert make("--count=2", f"--output=new/{output}", *seed) == 0
  own, three, seven = ((Path("new") / name / "samples.png").read_bytes() for name in ("own", "three", "seven"))
  assert own == three != seven
  assert json.loads(Path("new/seven/generated.json").read_text())["sample_seed"] == 7
  assert not Path("w/generated").exists()


def test_fewer_pictures_replace_more_and_strangers_stay(run):
  assert make("--count=5") == 0
  Path("w/generated/notes.txt").write_text("mine")
  Path("w/generated/images/mine.png").write_text("mine")
  assert make("--count=2", "--sample_seed=1", definition=maker(lambda *a: pictures(*a)["noise"])) == 0
  expected = ["generated.json", "images/00000.png", "images/00001.png", "images/mine.png", "notes.txt", "samples.png"]
  assert files("w/generated") == expected


def test_many_are_made_a_thousand_at_a_time(run):
  assert make("--count=2300") == 0
  assert COUNTS == [1000, 1000, 300]
  paths = files("w/generated/images")
  assert (len(paths), paths[-1]) == (2300, "02299.png")
  some = [pixels(Path("w/generated/images") / paths[place]).tobytes() for place in range(0, 2300, 100)]
  assert len(set(some)) == len(some)
  assert pixels("w/generated/samples.png").shape == samples.sheet(np.zeros((256, 2, 3, 1), np.uint8)).shape[:2]


def test_texts_are_text_files(run, capsys):
  assert make("--count=3", definition=maker(lambda state, key, count: {"a": "to be\n" * count, "b": "or ö"})) == 0
  assert files("w/generated") == ["b.txt", "generated.json", "samples.txt"]
  assert Path("w/generated/samples.txt").read_text("utf-8") == "to be\n" * 3
  assert Path("w/generated/b.txt").read_text("utf-8") == "or ö"
  assert "w/generated/samples.txt" in capsys.readouterr().out


def test_a_second_kind_may_be_called_samples(run):
  both = maker(lambda state, key, count: {"originals": np.zeros((1, 1, 1, 1)), "samples": np.ones((1, 1, 1, 1))})
  assert make(definition=both) == 0
  assert not pixels("w/generated/originals.png").any()
  assert pixels("w/generated/samples.png").all()


@pytest.mark.parametrize("mark", [None, "[]", "{"])
def test_a_folder_of_other_files_is_refused_and_left_alone(run, capsys, mark):
  Path("thesis/images").mkdir(parents=True)
  Path("thesis/images/00000.png").write_text("mine")
  if mark:
    Path("thesis/generated.json").write_text(mark)
  before = contents("thesis")
  assert "thesis holds files that are not of this command; give another --output" in refused(capsys, "--output=thesis")
  assert contents("thesis") == before
  assert COUNTS == []


def test_a_mark_cannot_name_files_elsewhere(run):
  Path("mine.txt").write_text("mine")
  Path("out").mkdir()
  Path("out/generated.json").write_text('{"files": ["../mine.txt", 3, "/mine.txt"]}')
  assert make("--output=out") == 0
  assert Path("mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
  ("arguments", "complaint"),
  [
    (["--count=0"], "--count=0: expected a whole number from 1 to 100000"),
    (["--count=-1"], "from 1 to 100000"),
    (["--count=100001"], "from 1 to 100000"),
    (["--count=many"], "from 1 to 100000"),
    (["--count"], "--count needs a value"),
    (["--sample_seed=4294967296"], "--sample_seed=4294967296: expected a whole number"),
    (["--output=w/run.flags"], "w/run.flags is no folder"),
    (["--output=w/run.flags/new"], "cannot write w/run.flags/new: Not a directory"),
    (["--output=w"], "w holds files that are not of this command"),
    (["--counts=3"], "no flag --counts"),
  ],
)
def test_one_line_and_exit_code_2(run, capsys, arguments, complaint):
  before = contents(run)
  assert complaint in refused(capsys, *arguments)
  assert contents(run) == before


@pytest.mark.parametrize("word", [[], ["train"], ["eval"], ["preflight"]])
@pytest.mark.parametrize("flag", ["--count=3", "--output=x", "--sample_seed=3"])
def test_its_flags_belong_to_it_alone(in_directory, capsys, word, flag):
  assert command.main(MAKER, [*word, "--config=iris", flag]) == 2
  named = word[0] if word else "train"
  line = f"flags: {flag} belongs to the command sample, not to {named}: python -m experiments.mlp sample "
  assert capsys.readouterr().err.startswith(line)
  assert files(".") == []


def test_a_run_without_checkpoints(in_directory, capsys):
  assert command.main(MAKER, ["sample", "--config=iris"]) == 2
  assert "has no checkpoints; train it first" in capsys.readouterr().err
  assert files(".") == []


def test_points_are_counted_and_are_one_picture(run, capsys):
  def plane(state, key, count):
    COUNTS.append(count)
    return np.full((1, 3, 3, 1), 0.5)

  assert make("--count=9") == 0  # its single pictures must go
  COUNTS.clear()
  for count, said in ((9, "a picture of 9 points"), (2300, "a picture of 2,300 points"), (1, "a picture of 1 point\n")):
    assert make(f"--count={count}", definition=maker(plane, "points")) == 0
    assert said in capsys.readouterr().out
  assert COUNTS == [9, 2300, 1]
  assert files("w/generated") == ["generated.json", "samples.png"]


def test_a_task_that_has_no_more_is_asked_once(run, capsys):
  def three(state, key, count):
    COUNTS.append(count)
    return np.zeros((3, 2, 2, 1))

  assert make("--count=2300", definition=maker(three)) == 0
  assert "3 pictures" in capsys.readouterr().out
  assert len(COUNTS) == 1


@pytest.mark.parametrize("arguments", [[], ["--count=9"], ["--output=x"]])
def test_an_experiment_that_makes_none(in_directory, capsys, monkeypatch, arguments):
  monkeypatch.setattr(inputs, "open_data", lambda *_: pytest.fail("the data were opened"))
  assert command.main(MLP, ["sample", "--config=iris", *arguments]) == 2
  line = "sample: experiments.mlp makes no samples; use eval to see how good a run of it is\n"
  assert capsys.readouterr().err == line
  if arguments:
    assert command.main(MLP, ["--config=iris", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"flags: {arguments[0]} is of the command sample, and experiments.mlp ")


def test_data_that_nothing_is_made_of(run, capsys):
  assert "experiments.mlp makes no samples of sklearn:iris" in refused(capsys, definition=maker(None))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_run_that_diverged(run, capsys, value):
  assert "the run diverged" in refused(capsys, definition=maker(lambda *_: np.full((1, 2, 2, 1), value)))


def test_help_tells_of_it_where_there_are_samples(capsys):
  told = ("sample --config=RUN", "--count=64", "--output=", "--sample_seed=-1", "pictures, as files")
  for arguments in (["--help"], ["help"], ["sample", "--help", "--count=3"]):
    assert command.main(MAKER, arguments) == 0
    text = capsys.readouterr().out
    assert [each for each in told if each not in text] == []
    assert command.main(MLP, arguments) == 0
    text = capsys.readouterr().out
    assert [each for each in (*told, "word sample") if each in text] == []


@pytest.mark.parametrize(
  ("name", "gives"),
  [("gpt", "printed"), ("bert", "printed"), ("forecast", "CSV"), ("gan", "files"), ("autoencoder", "files")],
)
def test_help_says_what_sample_gives(capsys, name, gives):
  definition = importlib.import_module(f"experiments.{name}.__main__").EXPERIMENT
  assert command.main(definition, ["--help"]) == 0
  (line,) = [line for line in capsys.readouterr().out.splitlines() if f"{name} sample --config=RUN" in line]
  assert gives in line
