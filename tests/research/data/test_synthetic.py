"""Made problems against their formulas."""

import numpy as np
import pytest

from research.data import open_splits, synthetic
from research.errors import UserError


def _all(uri):
  return open_splits(uri, test_fraction=0).train


def test_line_is_exactly_five_points():
  line = _all("synthetic:line?w=3&b=-0.5")
  x, y = line.column("features"), line.column("target")
  assert x.shape == (5, 1)
  np.testing.assert_array_equal(y, 3 * x[:, 0] - 0.5)


def test_noisy_line_has_the_stated_slope_and_noise():
  line = _all("synthetic:line_noisy")
  x, y = line.column("features")[:, 0].astype(np.float64), line.column("target").astype(np.float64)
  assert len(x) == 10_000
  slope, intercept = np.polyfit(x, y, 1)
  # The estimate's own standard errors: 0.5 / sqrt(N var(x)) = 0.0087 and 0.5 / sqrt(N) = 0.005.
  assert abs(slope - 2) < 4 * 0.0087
  assert abs(intercept - 1) < 4 * 0.005
  assert np.std(y - slope * x - intercept) == pytest.approx(0.5, rel=4 / np.sqrt(2 * 10_000))


def test_rings_lie_on_their_radii():
  rings = _all("synthetic:rings?classes=4&noise=0&size=40")
  radius = np.linalg.norm(rings.column("features"), axis=1)
  np.testing.assert_allclose(radius, (rings.column("label") + 1) / 4, rtol=1e-6)
  assert np.bincount(rings.column("label")).tolist() == [10] * 4
  assert rings.schema.class_names == ("0", "1", "2", "3")


def test_spiral_arms_are_rotations_of_one_curve():
  spirals = _all("synthetic:spirals?classes=3&noise=0&size=300&turns=1")
  points, label = spirals.column("features").astype(np.float64), spirals.column("label")
  along = (np.linalg.norm(points, axis=1) - 0.1) / 0.9
  angle = np.arctan2(points[:, 1], points[:, 0]) - 2 * np.pi * (along + label / 3)
  np.testing.assert_allclose(np.exp(1j * angle), 1, atol=1e-5)


def test_options_and_seed_decide_the_fingerprint():
  prints = [_all(f"synthetic:rings?{q}").fingerprint for q in ("", "seed=0", "seed=1", "noise=0.1")]
  assert prints[0] == prints[1]
  assert len(set(prints)) == 3


@pytest.mark.parametrize(
  ("query", "line"),
  [
    ("sise=3", r"no option 'sise' \(did you mean size\?\)"),
    ("size=3.5", "size='3.5' is not an integer"),
    ("size=0", "size=0 must be finite and at least 1"),
    ("noise=nan", "noise=nan must be"),
    ("noise=inf", "noise=inf must be"),
    ("seed=-1", "seed=-1 must be"),
  ],
)
def test_bad_options_are_one_line(query, line):
  with pytest.raises(UserError, match=line):
    open_splits(f"synthetic:rings?{query}")


SIX, NINE = "synthetic:ring?size=6000&modes=6&sigma=0.1", "synthetic:grid?size=9000&side=3"


@pytest.mark.parametrize(("source", "modes"), [(SIX, 6), (NINE, 9)])
def test_points_scatter_about_their_own_centre(source, modes):
  made, known = _all(source), synthetic.mixture(source)
  assert len(known.centers_MD) == modes
  away_N2 = made.column("features") - known.centers_MD[made.column("label")].astype(np.float32)
  np.testing.assert_allclose(away_N2.std(axis=0), known.sigma, rtol=0.05)
  np.testing.assert_allclose(away_N2.mean(axis=0), 0, atol=4 * known.sigma / np.sqrt(len(away_N2)))
  gaps_MM = np.linalg.norm(known.centers_MD[:, None] - known.centers_MD, axis=-1) + 1e9 * np.eye(modes)
  np.testing.assert_allclose(gaps_MM.min(axis=1), 2.0)  # a side of a hexagon of radius 2; the grid's spacing


def test_other_sources_are_no_mixture():
  assert synthetic.mixture("synthetic:spirals") is None
  assert synthetic.mixture("sklearn:digits") is None
