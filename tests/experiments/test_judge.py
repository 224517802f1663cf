"""The judge of another run's images: found or trained, the classifier that it names, and refused if it is none."""

import dataclasses
import json
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import candidate, command, inputs, judge, work
from experiments.cnn.__main__ import EXPERIMENT as CNN
from experiments.cnn.__main__ import make_network
from experiments.schema import Data, flag
from research.data.statistics import channel_statistics
from research.errors import UserError
from research.signals import StopRequest

TINY = """# A second of training
--data.source=sklearn:digits
--data.eval_batch_size=48
--model.widths=4
--model.head_widths=12
--model.norm=batch
--optim.learning_rate=0.03
--run.steps=40
--parallel.mesh=data:2
--run.eval_every=20
--run.checkpoint_every=5
"""
SHAPE = (8, 8, 1)
IMAGES_NHWC = inputs.open_data(Data()).test.gather(np.arange(100))["image"]  # of sklearn:digits
real_definition = candidate._definition


@pytest.fixture(scope="module", autouse=True)
def presets(tmp_path_factory):
  """Every experiment has these presets and no others."""
  folder = tmp_path_factory.mktemp("presets")
  (folder / "tiny.flags").write_text(TINY)
  (folder / "wild.flags").write_text(TINY + "--optim.name=sgd\n--optim.learning_rate=1e30\n")
  (folder / "numbers.flags").write_text("# A regression\n--data.source=synthetic:line\n--data.batch_size=4\n")
  (folder / "table.flags").write_text("# No images\n--data.source=sklearn:iris\n")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(candidate, "_definition", lambda name: dataclasses.replace(real_definition(name), directory=folder))
    yield folder


def opened(value, workdir, **named):
  return judge.open_judge(value, **{"workdir": workdir, "data": Data(), "image_shape": SHAPE, **named})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """(the runs' folder, a judge trained in it, what was said)."""
  runs, said = tmp_path_factory.mktemp("runs"), []
  return runs, opened("cnn:tiny", runs / "gan-digits", say=said.append), said


def contents(folder):
  return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in sorted(folder.rglob("*"))}


class Soon(StopRequest):
  """A stop request to which a real signal comes, at the eighth question."""

  asked = 0

  def __call__(self):
    Soon.asked += 1
    if Soon.asked == 8:
      signal.raise_signal(signal.SIGTERM)
    return super().__call__()


@pytest.fixture
def signal_comes(monkeypatch):
  monkeypatch.setattr(work, "StopRequest", Soon)
  monkeypatch.setattr(Soon, "asked", 0)
  yield
  assert Soon.asked >= 8, "the signal never came"


def test_a_preset_is_trained_beside_the_asking_run(trained):
  runs, found, said = trained
  home = runs / "cnn-tiny"
  assert said == [f"judge: training cnn --config=tiny in {home}, whose features judge this run"]
  result = json.loads((home / "result.json").read_text())
  assert found.about == {
    "run": str(home),
    "step": 40,
    "test_accuracy": result["metrics"]["test/accuracy"],
    "fingerprint": found.about["fingerprint"],
  }
  assert len(found.about["fingerprint"]) == 16
  assert f"--workdir={home}" in json.loads((home / "run.json").read_text())["command"]


@pytest.mark.parametrize("by_path", [False, True])
def test_a_finished_run_is_found_again_and_left_alone(trained, by_path):
  runs, first, _ = trained
  before = contents(runs)
  again = opened(str(runs / "cnn-tiny") if by_path else "cnn:tiny", runs / "gan-other", say=pytest.fail)
  assert contents(runs) == before
  assert again.about == first.about
  np.testing.assert_array_equal(again.features(IMAGES_NHWC), first.features(IMAGES_NHWC))


def test_features_are_what_the_head_sees(trained):
  """The network, applied here to images normalised here, has the logits features · kernel + bias.

  Sums of 12 products in float32, in another order and with normalisation by a product instead of a quotient: 1e-5 of
  the largest logit is a hundred roundings.
  """
  runs, found, _ = trained
  request = command.read(CNN, [f"--config={runs / 'cnn-tiny'}"])
  job, state, _ = work.load(CNN, request)
  statistics = channel_statistics(inputs.open_data(request.config.data).train)
  x_BHWC = ((IMAGES_NHWC - np.array(statistics.mean_C)) / np.array(statistics.std_C)).astype(np.float32)
  variables = jax.device_get({"params": state.params, "batch_stats": state.extra["batch_stats"]})
  network = make_network(job.config.model, 10)
  logits_BC = np.asarray(jax.jit(lambda v, x: network.apply(v, x, train=False))(variables, x_BHWC))

  features_BD, label_B = found.look(IMAGES_NHWC)
  assert features_BD.shape == (100, 12)
  assert (features_BD.dtype, label_B.dtype) == (np.float32, np.int32)
  head = variables["params"]["head"]
  np.testing.assert_allclose(
    features_BD @ head["kernel"] + head["bias"], logits_BC, rtol=0, atol=1e-5 * np.abs(logits_BC).max()
  )
  np.testing.assert_array_equal(label_B, logits_BC.argmax(1))
  assert len(set(label_B)) > 3, "a constant classifier shows nothing"
  np.testing.assert_array_equal(found.features(IMAGES_NHWC), features_BD)
  np.testing.assert_array_equal(found.labels(IMAGES_NHWC), label_B)


def test_labels_of_the_test_images_give_the_runs_accuracy(trained):
  runs, found, _ = trained
  test = inputs.open_data(command.read(CNN, [f"--config={runs / 'cnn-tiny'}"]).config.data).test
  right_N = found.labels(test.column("image")) == test.column("label")
  assert right_N.mean() == pytest.approx(found.about["test_accuracy"], abs=1e-9)
  assert found.class_names == tuple("0123456789")


@pytest.mark.parametrize("count", [1, 48, 49, 100])
def test_neither_filling_up_nor_the_other_images_alter_a_result(trained, count):
  _, found, _ = trained
  whole_ND, whole_N = found.look(IMAGES_NHWC)
  part_ND, part_N = found.look(IMAGES_NHWC[:count])
  np.testing.assert_array_equal(part_ND, whole_ND[:count])
  np.testing.assert_array_equal(part_N, whole_N[:count])
  assert found._see._cache_size() == 1


def test_other_arrays_are_refused(trained):
  _, found, _ = trained
  for images in (IMAGES_NHWC / 16, IMAGES_NHWC[:, :4], IMAGES_NHWC[:0]):
    with pytest.raises(ValueError, match="looks at"):
      found.look(images)


def test_an_interrupted_judge_stops_the_asking_run_and_is_continued(trained, tmp_path, signal_comes):
  with pytest.raises(KeyboardInterrupt):
    opened("cnn:tiny", tmp_path / "gan")
  assert not (tmp_path / "cnn-tiny" / "result.json").exists()

  unfinished = opened(str(tmp_path / "cnn-tiny"), tmp_path / "gan")
  assert 0 < unfinished.about["step"] < 40
  assert unfinished.about["test_accuracy"] is None
  assert unfinished.about["fingerprint"] != trained[1].about["fingerprint"]

  finished = opened("cnn:tiny", tmp_path / "gan")
  starts = json.loads((tmp_path / "cnn-tiny" / "run.json").read_text())["starts"]
  assert len(starts) == 2
  assert finished.about["fingerprint"] == trained[1].about["fingerprint"]  # as if it had never been stopped


def test_the_asking_command_ends_with_75(in_directory, capsys, signal_comes):
  """Its `build` opens the judge inside work.train, where the asking run waits for signals as well."""

  def build(config, splits, total_steps):
    opened("cnn:tiny", Path("runs/asking"))
    return CNN.build(config, splits, total_steps)

  before = signal.getsignal(signal.SIGTERM)
  asking = dataclasses.replace(CNN, build=build)
  assert command.main(asking, ["--config=digits", "--workdir=runs/asking"]) == command.STOPPED
  assert capsys.readouterr().err == "stopped\n"
  assert [path.name for path in Path("runs").iterdir()] == ["cnn-tiny"]
  assert signal.getsignal(signal.SIGTERM) is before


def test_bad_numbers_are_told(tmp_path):
  with pytest.raises(UserError, match=r"training cnn:wild in .* ended with exit code 76; name another judge"):
    opened("cnn:wild", tmp_path / "gan")


def test_a_preset_takes_the_asking_runs_places(tmp_path):
  data = Data(dir=str(tmp_path / "sets"), cache_dir=str(tmp_path / "decoded"), batch_size=7)
  found = candidate.find("cnn:tiny", workdir=tmp_path / "runs" / "gan", data=data)
  assert (found.request.config.data.dir, found.request.config.data.cache_dir) == (data.dir, data.cache_dir)
  assert found.request.config.data.batch_size == Data().batch_size
  assert found.request.workdir == tmp_path / "runs" / "cnn-tiny"


@pytest.mark.parametrize(
  ("value", "complaint"),
  [
    ("cnn:tidy", r"names no preset of experiments\.cnn \(did you mean tiny\?\)"),
    ("cn:tiny", r"names no experiment \(did you mean cnn\?\)"),
    ("cnn", "there is no run 'cnn'; .* or EXPERIMENT:PRESET such as cnn:digits"),
    ("", "--metrics.features= is no run's directory"),
    ("{runs}/cnn-tidy", r"there is no run .*cnn-tidy' \(did you mean cnn-tiny\?\)"),
    ("{runs}", "is no run's directory"),
    ("x" * 5000, "there is no run 'xxx"),
    ("linear:numbers", "is no classifier; synthetic:line has targets instead of classes"),
    ("mlp:table", "sees no images; sklearn:iris has features, label"),
  ],
  ids=lambda text: text[:20],
)
def test_what_is_no_judge_is_refused_before_anything_is_written(trained, tmp_path, value, complaint):
  with pytest.raises(UserError, match=complaint) as error:
    opened(value.format(runs=trained[0]), tmp_path / "runs" / "gan", say=pytest.fail)
  assert "\n" not in str(error.value)
  assert len(str(error.value)) < 1000
  assert not list(tmp_path.iterdir())


def test_images_of_another_shape_are_refused_before_training(trained, tmp_path):
  for value in ("cnn:tiny", str(trained[0] / "cnn-tiny")):
    with pytest.raises(UserError, match="sees images of 8×8×1, and those to be judged have 28×28×1"):
      opened(value, tmp_path / "gan", image_shape=(28, 28, 1), say=pytest.fail)
  assert not list(tmp_path.iterdir())


def test_another_run_in_the_presets_place_is_refused(trained, tmp_path):
  shutil.copytree(trained[0] / "cnn-tiny", tmp_path / "cnn-tiny")
  path = tmp_path / "cnn-tiny" / "run.flags"
  path.write_text(path.read_text().replace("--seed=0", "--seed=1"))
  with pytest.raises(UserError, match=r"is not cnn:tiny: it has --seed=1; --metrics\.features=.* takes it as it is"):
    opened("cnn:tiny", tmp_path / "gan", say=pytest.fail)
  path.write_text(path.read_text().replace("experiment: cnn", "experiment: mlp"))
  with pytest.raises(UserError, match=r"is a run of experiments\.mlp"):
    opened("cnn:tiny", tmp_path / "gan", say=pytest.fail)


def test_a_run_without_checkpoints_is_refused(trained, tmp_path):
  shutil.copytree(trained[0] / "cnn-tiny", tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
  with pytest.raises(UserError, match="has no checkpoints"):
    opened(str(tmp_path / "run"), tmp_path / "gan")


@dataclasses.dataclass(frozen=True)
class Metrics:
  """Whose features judge"""

  features: str = flag("", "the judge")


@dataclasses.dataclass(frozen=True)
class Judged(CNN.schema):
  """The flags of an experiment that has a judge."""

  metrics: Metrics = dataclasses.field(default_factory=Metrics)


def test_a_judged_run_and_a_task_without_features_are_no_judges(monkeypatch, presets, tmp_path):
  def without_features(*arguments):
    return dataclasses.replace(CNN.build(*arguments), features=None)

  for changed, why in (({"schema": Judged}, "is judged itself"), ({"build": without_features}, "tells neither")):
    definition = dataclasses.replace(CNN, directory=presets, **changed)
    monkeypatch.setattr(candidate, "_definition", lambda name, definition=definition: definition)
    with pytest.raises(UserError, match=f"cnn:tiny is no classifier; .*{why}"):
      opened("cnn:tiny", tmp_path / "gan", say=pytest.fail)
  assert not list(tmp_path.iterdir())
