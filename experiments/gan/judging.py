"""What a generator is worth: scores of what it makes beside those of held-out real examples, the floor.

Both are compared with the same training examples, and there are as many of one as of the other, since a Fréchet
distance and a recall depend on the numbers compared.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.gan.looking import Maker
from experiments.gan.networks import classes_of, make_players
from experiments.judge import open_judge
from research.data.source import Source
from research.data.synthetic import Mixture, mixture
from research.judging.mixtures import mixture_scores
from research.judging.scores import Reference, score
from research.task import Key, State

if TYPE_CHECKING:
  from experiments.job import Job

Scores = dict[str, float]
Space = Callable[[np.ndarray], np.ndarray]  # examples → features_ND


def make_judge(job: "Job", workdir: Path, say: Callable[[str], None]):
  """(state, key) → {"generated/…", "floor/…"}, with `about` for run.json; None for images without a judge.

  Images are judged by the features of the classifier that --metrics.features names, points by their own coordinates,
  and points of a known mixture by its modes.
  """
  config, splits = job.config, job.data.splits
  schema = splits.train.schema
  labelled = splits.train if classes_of(config.model, schema) else None
  made = Maker(make_players(config.model, config.data.source, schema), labelled)
  held_out = splits.test or splits.validation
  count = min(config.metrics.count, held_out.size if held_out else splits.train.size)
  if "image" in schema.features:
    if not config.metrics.features:
      say("no --metrics.features: samples are shown and not scored; cnn:digits would train a judge")
      return None
    judge = open_judge(
      config.metrics.features, workdir=workdir, data=config.data, image_shape=schema.features["image"].shape, say=say
    )
    return ImageScores(made, judge, splits.train, held_out, count, config.metrics.count)
  if known := mixture(config.data.source):
    return MixtureScores(made, known, held_out, count)
  return PointScores(made, splits.train, held_out, count, config.metrics.count)


class ImageScores:
  """Fréchet and kernel distance, precision and recall in a judge's features; of a conditional generator also how often
  the judge sees the class that was asked for."""

  headline = "generated/frechet_distance"

  def __init__(self, made: Maker, judge, train: Source, held_out: Source | None, count: int, reference_count: int):
    self._made, self._judge, self._count = made, judge, count
    self._reference = Reference(judge.features(_spread(train, reference_count)["image"]))
    self.about = judge.about
    self._floor = {}
    if held_out is not None:
      real = _spread(held_out, count)
      features_ND, label_N = judge.look(real["image"])
      self._floor = self._score(features_ND, label_N, real.get("label"), "floor")

  def __call__(self, state: State, key: Key) -> Scores:
    images_NHWC = np.clip(self._made(state, key, self._count), -1, 1)
    features_ND, label_N = self._judge.look(np.round((images_NHWC + 1) * 127.5).astype(np.uint8))
    return {**self._score(features_ND, label_N, self._made.labels(self._count), "generated"), **self._floor}

  def _score(self, features_ND: np.ndarray, label_N: np.ndarray, asked_N: np.ndarray | None, split: str) -> Scores:
    found = score(features_ND, self._reference)
    if asked_N is not None and self._made.labels(1) is not None:
      accuracy = float((label_N == asked_N).mean())
      found = {"frechet_distance": found["frechet_distance"], "class_accuracy": accuracy, **found}
    return {f"{split}/{name}": value for name, value in found.items()}


class MixtureScores:
  """Modes found and the share of good points, for a mixture whose centres are known."""

  headline = "generated/high_quality"

  def __init__(self, made: Maker, known: Mixture, held_out: Source | None, count: int):
    self._made, self._known, self._count = made, known, count
    self.about = {"mixture": f"{len(known.centers_MD)} Gaussians, standard deviation {known.sigma:g}"}
    self._floor = {} if held_out is None else self._score(_spread(held_out, count)["features"], "floor")

  def __call__(self, state: State, key: Key) -> Scores:
    return {**self._score(self._made(state, key, self._count), "generated"), **self._floor}

  def _score(self, points_ND: np.ndarray, split: str) -> Scores:
    found = mixture_scores(points_ND, self._known.centers_MD, self._known.sigma)
    return {f"{split}/modes": float(found.modes), f"{split}/high_quality": found.high_quality}


class PointScores:
  """The same distances as for images, between points as they are."""

  headline = "generated/frechet_distance"

  def __init__(self, made: Maker, train: Source, held_out: Source | None, count: int, reference_count: int):
    self._made, self._count = made, count
    self.about = {"space": "the points' own coordinates"}
    self._reference = Reference(_spread(train, reference_count)["features"])
    self._floor = {} if held_out is None else self._score(_spread(held_out, count)["features"], "floor")

  def __call__(self, state: State, key: Key) -> Scores:
    return {**self._score(self._made(state, key, self._count), "generated"), **self._floor}

  def _score(self, points_ND: np.ndarray, split: str) -> Scores:
    return {f"{split}/{name}": value for name, value in score(points_ND, self._reference).items()}


def _spread(source: Source, count: int) -> dict[str, np.ndarray]:
  """At most `count` examples, evenly from all over the source."""
  return source.gather(np.linspace(0, source.size - 1, min(count, source.size)).astype(np.int64))
