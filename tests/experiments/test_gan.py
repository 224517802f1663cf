"""experiments.gan from the command line: what a run leaves, who judged it, and every wrong flag in one line."""

import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import command
from experiments.cnn.__main__ import EXPERIMENT as CNN
from experiments.gan import looking
from experiments.gan.__main__ import EXPERIMENT as GAN
from experiments.gan.networks import Model, make_players
from research.data.registry import open_dataset
from research.data.source import Options

SMALL = [
  "--data.source=sklearn:digits", "--data.batch_size=16", "--model.width=4", "--model.discriminator_width=4",
  "--model.latent=4", "--model.conditional", "--run.steps=6", "--run.eval_every=3", "--run.log_every=1",
  "--metrics.count=50",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """(a judge's run, a small conditional GAN's run that it judged)."""
  runs = tmp_path_factory.mktemp("runs")
  small = ["--data.source=sklearn:digits", "--model.widths=4", "--run.steps=40", "--run.eval_every=40"]
  assert command.main(CNN, [*small, f"--workdir={runs / 'judge'}"]) == 0
  assert command.main(GAN, [*SMALL, f"--metrics.features={runs / 'judge'}", f"--workdir={runs / 'gan'}"]) == 0
  return runs / "judge", runs / "gan"


def records(run):
  return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def size(path):
  with Image.open(path) as image:
    return image.size


def test_scores_stand_beside_the_floor(trained):
  names = ("frechet_distance", "kernel_distance", "kernel_distance_error", "precision", "recall", "class_accuracy")
  metrics = json.loads((trained[1] / "result.json").read_text())["metrics"]
  assert {f"{split}/{name}" for split in ("generated", "floor") for name in names} <= set(metrics)
  # Held-out digits against training digits are far nearer than what six updates make.
  assert metrics["floor/frechet_distance"] < 0.2 * metrics["generated/frechet_distance"]
  assert next(iter(metrics)) == "generated/frechet_distance"  # the first tile of the report
  evaluated = [record for record in records(trained[1]) if "generated/frechet_distance" in record]
  assert [record["step"] for record in evaluated] == [3, 6]


def test_the_report_says_who_judged(trained):
  judge, gan = trained
  about = json.loads((gan / "run.json").read_text())["judge"]
  assert about["run"] == str(judge)
  assert about["test_accuracy"] == json.loads((judge / "result.json").read_text())["metrics"]["test/accuracy"]
  assert about["fingerprint"] in (gan / "report.html").read_text()


def test_pictures_of_each_kind(trained):
  for folder in ("samples", "samples/classes", "samples/interpolation"):
    for step in (3, 6):
      assert size(trained[1] / folder / f"{step:06}.png")[0] > 100
  assert "samples/classes" not in (trained[1] / "report.html").read_text()  # it is inside, not linked
  assert (trained[1] / "report.html").read_text().count("data:image/png") >= 3


def test_another_judge_is_refused_on_resume(trained, tmp_path, capsys):
  judge, gan = trained
  record = json.loads((gan / "run.json").read_text())
  original = (gan / "run.json").read_text()
  record["judge"]["fingerprint"] = "0" * 16
  (gan / "run.json").write_text(json.dumps(record))
  try:
    assert command.main(GAN, ["eval", f"--config={gan}"]) == 2
    assert f"{judge} is not the judge that {gan} was started with" in capsys.readouterr().err
  finally:
    (gan / "run.json").write_text(original)


def test_eval_repeats_the_runs_scores(trained, capsys):
  assert command.main(GAN, ["eval", f"--config={trained[1]}"]) == 0
  output = capsys.readouterr().out
  metrics = json.loads((trained[1] / "result.json").read_text())["metrics"]
  assert re.search(rf"generated/frechet_distance\s+{metrics['generated/frechet_distance']:.6g}\b", output)


def test_sample_writes_pictures_of_the_datas_size(trained, tmp_path):
  assert command.main(GAN, ["sample", f"--config={trained[1]}", "--count=12", f"--output={tmp_path / 'out'}"]) == 0
  singles = sorted((tmp_path / "out" / "images").glob("*.png"))
  assert len(singles) == 12
  assert {size(path) for path in singles} == {(8, 8)}
  assert len({path.read_bytes() for path in singles}) == 12  # no two alike


def test_a_one_channel_run_on_three_channel_data_is_one_line(trained, tmp_path, capsys):
  for name in "ab":
    (tmp_path / "images" / name).mkdir(parents=True)
    for number in range(40):
      pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)
      Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
  source = f"--data.source=folder:{tmp_path / 'images'}"
  assert command.main(GAN, ["sample", f"--config={trained[1]}", source]) == 2
  message = capsys.readouterr().err
  assert message.count("\n") == 1
  assert "Traceback" not in message


@pytest.mark.parametrize(
  ("flags", "complaint"),
  [
    (["--gan.loss=hing"], "hinge"),
    (["--gan.loss=wasserstein"], "--gan.loss=wasserstein needs a discriminator of bounded slope"),
    (["--gan.critic_steps=3"], "does not divide into --gan.critic_steps=3 parts; 18 would"),
    (["--gan.critic_steps=2", "--gan.updates=simultaneous"], "--gan.critic_steps must be 1"),
    (["--gan.gradient_penalty=10", "--model.discriminator_norm=batch"], "of each example alone"),
    (["--gan.r1=0.1", "--model.discriminator_norm=batch"], "--gan.r1 is of each example alone"),
    (["--optim.micro_batches=2"], "divided by --gan.critic_steps"),
    (["--data.mixup=0.2"], "softens labels"),
    (["--model.name=mlp"], "has images, which --model.name=mlp cannot make; dcgan or resnet would do"),
    (["--data.source=synthetic:ring"], "has no images, which --model.name=dcgan cannot make; mlp would do"),
    (["--data.source=synthetic:line_noisy", "--model.name=mlp"], "--model.conditional needs class labels"),
    (["--metrics.features=cnn:digit"], "did you mean digits?"),
    (["--metrics.features=mlp:iris"], "sees no images"),
    (["--metrics.features=linear:line"], "is no classifier"),
    (["--metrics.features=gan:digits"], "is no classifier"),
    (["--metrics.features=pixels"], "takes a run's directory, or EXPERIMENT:PRESET"),
    (["--metrics.features=runs/nothing"], "there is no run 'runs/nothing'"),
    (["--metrics.count=1"], "at least 2"),
  ],
)
def test_one_line_and_exit_code_2(capsys, in_directory, flags, complaint):
  assert command.main(GAN, [*SMALL, *flags, "--workdir=run"]) == 2
  message = capsys.readouterr().err
  assert complaint in message
  assert message.count("\n") == 1
  assert not (in_directory / "run" / "metrics.jsonl").exists()
  assert command.main(GAN, ["preflight", *SMALL, *flags, "--workdir=run"]) == 2
  assert capsys.readouterr().err == message


def test_images_that_no_network_here_makes(capsys, in_directory):
  (in_directory / "images" / "a").mkdir(parents=True)
  for number in range(40):
    Image.fromarray(np.zeros((30, 30), np.uint8)).save(in_directory / "images" / "a" / f"{number}.png")
  assert command.main(GAN, [*SMALL, "--data.source=folder:images", "--model.conditional=false"]) == 2
  assert "a GAN cannot make images of 30x30" in capsys.readouterr().err


def test_points_are_judged_by_their_modes_and_sample_counts_them(in_directory, capsys, monkeypatch):
  drawn, scatter = [], looking.scatter
  monkeypatch.setattr(looking, "scatter", lambda *args: drawn.append(len(args[1])) or scatter(*args))
  flags = ["--data.source=synthetic:grid?size=500", "--model.name=mlp", "--model.widths=8", "--run.steps=4",
           "--data.batch_size=16", "--run.eval_every=4", "--workdir=run"]  # fmt: skip
  assert command.main(GAN, flags) == 0
  metrics = json.loads((in_directory / "run" / "result.json").read_text())["metrics"]
  assert metrics["floor/modes"] == 25
  assert metrics["floor/high_quality"] > 0.95
  assert metrics["generated/modes"] < 25
  assert (in_directory / "run" / "samples" / "000004.png").exists()
  capsys.readouterr()
  assert command.main(GAN, ["sample", "--config=run", "--count=9"]) == 0
  assert "step 4: a picture of 9 points" in capsys.readouterr().out
  assert drawn == [1000, 9]


def test_a_won_game_is_told_in_the_log_and_the_report(in_directory, capsys):
  """A generator that hardly moves against a discriminator that learns fast."""
  flags = ["--data.source=sklearn:digits", "--data.batch_size=16", "--model.width=4", "--model.discriminator_width=8",
           "--gan.loss=hinge", "--optim.learning_rate=1e-7", "--gan.discriminator_learning_rate=0.01",
           "--run.steps=120", "--run.eval_every=60", "--run.log_every=5", "--workdir=run"]  # fmt: skip
  assert command.main(GAN, flags) == 0
  assert "alarm: the discriminator has won" in capsys.readouterr().out
  assert "the discriminator has won" in (in_directory / "run" / "report.html").read_text()


def test_a_walk_stays_on_the_sphere_and_starts_and_ends_at_its_ends():
  random = np.random.default_rng(0)
  start_WZ, end_WZ = random.normal(size=(2, 5, 40)).astype(np.float32)
  walk_WSZ = looking.great_circles(start_WZ, end_WZ, 7)
  np.testing.assert_allclose(walk_WSZ[:, 0], start_WZ, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(walk_WSZ[:, -1], end_WZ, rtol=1e-4, atol=1e-5)
  norms = np.linalg.norm(walk_WSZ, axis=-1)
  assert norms.min() > 0.8 * np.linalg.norm(start_WZ, axis=-1).min()  # a straight line would dip to 0.7


def test_any_number_of_examples_is_one_program_and_one_beginning():
  schema = open_dataset("synthetic:ring?size=50", Options()).parts["all"].schema
  players = make_players(Model(name="mlp", widths=(4,), latent=3), "synthetic:ring", schema)
  maker = looking.Maker(players, None)
  key = jax.random.key(0)
  long, short = maker.noise(key, 600), maker.noise(key, 10)
  np.testing.assert_array_equal(long[:10], short)
  assert len(np.unique(long, axis=0)) == 600
