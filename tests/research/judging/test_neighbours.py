"""Precision, recall, density and coverage against loops over the definitions, and on sets where they are known."""

import math

import numpy as np
import pytest

from research.errors import UserError
from research.judging import neighbours
from research.judging.neighbours import Balls, Neighbours, compare


def judged(generated_ND, real_MD, nearest=neighbours.NEAREST):
  return compare(Balls.of(generated_ND, nearest), Balls.of(real_MD, nearest))


def by_definition(generated, real, k):
  """Naeem et al. 2020, equations 2 to 5, one pair at a time."""

  def radius(points, i):
    return sorted(math.dist(points[i], other) for j, other in enumerate(points) if j != i)[k - 1]

  real_balls = [(x, radius(real, i)) for i, x in enumerate(real)]
  our_balls = [(y, radius(generated, j)) for j, y in enumerate(generated)]
  holders = [sum(math.dist(x, y) <= r for x, r in real_balls) for y in generated]
  return Neighbours(
    precision=np.mean([count > 0 for count in holders]),
    recall=np.mean([any(math.dist(x, y) <= r for y, r in our_balls) for x in real]),
    density=sum(holders) / (k * len(generated)),
    coverage=np.mean([any(math.dist(x, y) <= r for y in generated) for x, r in real_balls]),
  )


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("chunk", [1 << 22, 100])
def test_the_definitions(monkeypatch, k, chunk):
  monkeypatch.setattr(neighbours, "_CHUNK", chunk)  # 100: a row or two at a time
  random = np.random.default_rng(k)
  generated_ND = random.normal(0.5, 1.2, (60, 4)).astype(np.float32)
  real_MD = random.normal(size=(45, 4)).astype(np.float32)
  expected = by_definition(generated_ND.tolist(), real_MD.tolist(), k)
  assert min(expected) > 0.05, "the example shows nothing"
  assert judged(generated_ND, real_MD, k) == pytest.approx(expected, rel=1e-12)


def test_equal_sets_and_sets_far_apart():
  x_ND, y_ND = np.random.default_rng(0).normal(size=(2, 300, 8))
  assert judged(x_ND, x_ND)[:2] == (1.0, 1.0)
  assert judged(x_ND, x_ND).coverage == 1.0
  assert judged(x_ND, y_ND + 100) == (0.0, 0.0, 0.0, 0.0)


def test_a_generator_of_half_the_modes_is_precise_and_recalls_half():
  random = np.random.default_rng(1)
  centers_MD = 50 * np.eye(4)
  real_ND = np.repeat(centers_MD, 250, axis=0) + random.normal(size=(1000, 4))
  generated_ND = np.repeat(centers_MD[:2], 500, axis=0) + random.normal(size=(1000, 4))
  found = judged(generated_ND, real_ND)
  # Even a perfect generator leaves the balls of 250 examples now and then.
  assert 0.85 < found.precision <= 1
  assert 0.42 < found.recall <= 0.5
  assert judged(real_ND[:500], real_ND)[:2] == (1.0, 0.5)


def test_a_collapsed_generator_is_precise_and_recalls_nothing():
  real_ND = np.random.default_rng(2).normal(size=(200, 16)).astype(np.float32)
  found = judged(np.repeat(real_ND[:1], 200, axis=0), real_ND)
  assert found.precision == 1.0
  assert found.recall == 1 / 200  # its balls have radius 0 and hold the one example that it repeats


def test_repeated_examples_lie_in_each_others_balls_of_radius_0():
  """Rounding must decide neither their radius nor their distance, which come from products of other shapes."""
  random = np.random.default_rng(6)
  real_ND = np.repeat(random.normal(size=(50, 128)).astype(np.float32), 4, axis=0)
  assert not Balls.of(real_ND).square_radius_N.any()
  generated_ND = np.concatenate([random.permutation(real_ND)[:120], 10 + random.normal(size=(40, 128))])
  found = judged(generated_ND, real_ND)
  assert found.precision == 120 / 160
  assert found.density == pytest.approx(120 * 4 / (3 * 160))


def test_a_perfect_generators_density_and_coverage():
  """1 and 1 − 2⁻³ (Naeem et al. 2020, lemma 2); the deviation of coverage at 1,500 examples is about 0.01."""
  x_ND, y_ND = np.random.default_rng(3).normal(size=(2, 1500, 2))
  found = judged(x_ND, y_ND)
  assert found.density == pytest.approx(1, abs=0.1)
  assert found.coverage == pytest.approx(1 - 2**-3, abs=0.04)


def test_shift_turn_and_unit_change_nothing():
  random = np.random.default_rng(4)
  x_ND, y_MD = random.normal(size=(80, 6)), 1.3 * random.normal(size=(90, 6))
  turn_DD = np.linalg.qr(random.normal(size=(6, 6)))[0]
  expected = judged(x_ND, y_MD)
  for change in (lambda z: z @ turn_DD, lambda z: 1e-9 * z, lambda z: z + 1e6, lambda z: z[::-1]):
    assert judged(change(x_ND), change(y_MD)) == expected


def test_generated_and_real_change_places():
  x_ND, y_MD = np.random.default_rng(5).normal(size=(2, 70, 3))
  assert judged(x_ND, 2 * y_MD)[:2] == judged(2 * y_MD, x_ND)[1::-1]


@pytest.mark.parametrize("count", [1, 3])
def test_too_few_examples_are_refused(count):
  with pytest.raises(UserError, match=f"takes 4 examples or more, and there are {count}"):
    Balls.of(np.zeros((count, 2)))


def test_other_dimensions_are_refused():
  with pytest.raises(UserError, match="5 dimensions cannot be compared with points of 2"):
    judged(np.zeros((6, 5)), np.zeros((6, 2)))
