"""What a judge is handed, and what labels a conditional generator is asked for."""

import numpy as np
import pytest

from experiments.gan import judging, looking
from research.data.registry import Options, open_dataset


class Judge:
  """Features are the first pixels; keeps what it saw."""

  def __init__(self):
    self.about, self.seen = {}, []

  def features(self, images_NHWC):
    self.seen.append(images_NHWC)
    return images_NHWC.reshape(len(images_NHWC), -1)[:, 18:22].astype(np.float64)

  def look(self, images_NHWC):
    return self.features(images_NHWC), np.zeros(len(images_NHWC), np.int64)


class Made:
  """A generator of one ramp from −1.1 to 1.1, beyond both ends of the range."""

  def __call__(self, state, key, count):
    ramps = np.linspace(-1.1, 1.1, 64) * np.linspace(0.5, 1, count)[:, None]
    return ramps.reshape(count, 8, 8, 1).astype(np.float32)

  def labels(self, count):
    return np.arange(count) % 2


@pytest.fixture(scope="module")
def digits():
  return open_dataset("sklearn:digits", Options()).parts["all"]


def test_a_judge_sees_bytes_and_examples_from_all_over(digits):
  judge = Judge()
  scores = judging.ImageScores(Made(), judge, digits, digits, 30, 40)
  reference, held_out = judge.seen
  np.testing.assert_array_equal(reference[[0, -1]], digits.gather(np.array([0, digits.size - 1]))["image"])
  assert len(reference) == 40
  assert len(held_out) == 30
  middle = digits.gather(np.array([(digits.size - 1) // 2]))["image"]
  assert judging._spread(digits, 3)["image"].tolist()[1] == middle.tolist()[0]

  found = scores(None, None)
  made = judge.seen[-1]
  assert made.dtype == np.uint8
  values = np.clip(Made()(None, None, 30), -1, 1).astype(np.float64)  # −1 is black, 1 is white
  np.testing.assert_allclose(made, (values + 1) * 127.5, atol=0.51)
  assert made.min() == 0
  assert made.max() == 255
  assert found["generated/class_accuracy"] == 0.5  # this judge says 0 to all


def test_classes_are_asked_for_as_often_as_training_has_them():
  class Labelled:
    def column(self, name):
      assert name == "label"
      return np.array([0] * 60 + [1] * 30 + [2] * 10)

  class Players:
    generate = staticmethod(lambda *_: None)

  label_N = looking.Maker(Players(), Labelled()).labels(4000)
  # Binomial: a standard deviation of at most 0.8 %.
  np.testing.assert_allclose(np.bincount(label_N) / 4000, [0.6, 0.3, 0.1], atol=0.03)
  np.testing.assert_array_equal(looking.Maker(Players(), Labelled()).labels(4000), label_N)
  assert looking.Maker(Players(), None).labels(5) is None
