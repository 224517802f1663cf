"""Where series come from: tables in time order, formulas with known answers, and one line for what is wrong."""

import math

import numpy as np
import pytest

from research.data.series_sources import read_series, seasonal, walk
from research.errors import UserError

ROWS = "time,load,wind,note,price\n2020-01-01 00:00,5,1,a,2\n2020-01-01 01:00,6,-1.5,b,3\n2020-01-01 02:00,4,0,c,7\n"


@pytest.fixture
def written(tmp_path):
  def write(text):
    (tmp_path / "a.csv").write_text(text)
    return f"csv:{tmp_path / 'a.csv'}"

  return write


def test_the_target_comes_first_and_the_rest_is_told(written):
  uri = written(ROWS)
  found = read_series(uri)
  assert found.columns == ("price",)
  assert found.values_TC.tolist() == [[2], [3], [7]]
  assert found.notes == (
    "the target is column 'price'",
    "not read: 'time', 'load', 'wind', 'note'; --series.covariates names columns of numbers that should be",
  )
  every = read_series(uri, target="load", covariates="*")
  assert every.columns == ("load", "wind", "price")
  assert every.values_TC.tolist() == [[5, 1, 2], [6, -1.5, 3], [4, 0, 7]]
  assert every.notes[1] == "read beside it up to a forecast's origin: 'wind', 'price'"
  assert read_series(uri, covariates="wind, load").columns == ("price", "wind", "load")
  assert every.fingerprint != found.fingerprint
  assert read_series(written(ROWS.replace("c,7", "c,8"))).fingerprint != found.fingerprint
  assert read_series(written(ROWS.replace("a,2", "x,2"))).fingerprint == found.fingerprint  # of what is read


@pytest.mark.parametrize(
  ("text", "options", "message"),
  [
    (ROWS, {"target": "prize"}, "--data.target has no column 'prize' (did you mean price?)"),
    (ROWS, {"target": "note"}, "line 2: 'a' in column 'note' is not a number; 0 of its 3 cells are"),
    (ROWS, {"covariates": "winds"}, "--series.covariates has no column 'winds' (did you mean wind?)"),
    (ROWS, {"covariates": "note"}, "line 2: 'a' in column 'note' is not a number"),
    (ROWS, {"covariates": "price"}, "'price' is the target, which is always read"),
    (ROWS, {"covariates": "wind,wind"}, "'wind' is named twice"),
    (ROWS.replace("c,7", "c,"), {}, "line 4: column 'price' is empty, in 1 of 3 rows; a series has a number in each"),
    (ROWS.replace("c,7", "c,NA"), {}, "line 4: column 'price' is empty"),
    (ROWS.replace("c,7", "c,nan"), {}, "line 4: column 'price' is nan"),
    (ROWS.replace("c,7", "c,inf"), {}, "line 4: column 'price' is inf"),
    (ROWS.replace("4,0,", "4,,"), {"covariates": "wind"}, "line 4: column 'wind' is empty"),
    (ROWS.replace("c,7", "c,7,8"), {}, "line 4 has 6 fields, the header has 5"),
    (ROWS.replace("c,7", "c,x"), {"target": "price"}, "line 4: 'x' in column 'price' is not a number; 2 of its 3"),
    ("a,b\nx,y\nz,w\n", {}, "has no column of numbers to forecast"),
    ("y\n", {}, "has a header but no rows"),
    ("1\n2\n", {}, "line 1 holds numbers; it must name the columns"),
    ("", {}, "is empty"),
    (
      "day,y\n2020-01-03,1\n2020-01-02,2\n2020-01-01,3\n",
      {},
      "line 3: column 'day' goes back in time to 2020-01-02 00:00:00; sort the rows",
    ),
  ],
)
def test_what_is_wrong_with_a_table_is_said_with_its_line(written, text, options, message):
  with pytest.raises(UserError) as caught:
    read_series(written(text), **options)
  assert message in str(caught.value)
  assert "\n" not in str(caught.value)


def test_clocks_that_are_put_back_are_no_mistake(written):
  """Local times repeat an hour where summer time ends; dates of another form are not read at all."""
  text = "time,y\n2020-10-25 02:00,1\n2020-10-25 02:30,2\n2020-10-25 02:00,3\n2020-10-25 02:30,4\n"
  assert len(read_series(written(text)).values_TC) == 4
  assert len(read_series(written("month,y\nMar 1949,1\nFeb 1949,2\n")).values_TC) == 2


@pytest.mark.parametrize(
  ("uri", "options", "message"),
  [
    ("sklearn:digits", {}, "'sklearn:digits' is no series; there are csv:FILE and synthetic:seasonal, synthetic:walk"),
    ("seasonal", {}, "is no series"),
    ("csv:", {}, "is no series"),
    ("synthetic:seasonl", {}, "no series 'synthetic:seasonl' (did you mean seasonal?)"),
    ("synthetic:seasonal?perod=3", {}, "no option 'perod' (did you mean period?)"),
    ("synthetic:seasonal?period=0", {}, "period=0 must be finite and at least 1"),
    ("synthetic:walk", {"target": "y"}, "--data.target and --series.covariates name columns of a csv file"),
    ("csv:a.csv?drop=b", {}, "a series has no options"),
    ("csv:missing.csv", {}, "there is no file missing.csv"),
  ],
)
def test_a_source_that_is_no_series_is_refused(uri, options, message):
  with pytest.raises(UserError) as caught:
    read_series(uri, **options)
  assert message in str(caught.value)


def test_a_seasonal_series_is_its_curve_under_noise():
  clean = seasonal(size=96, period=24, noise=0.0)
  np.testing.assert_allclose(clean[:72], clean[24:], atol=1e-12)
  values = seasonal(size=40_000, period=24, noise=0.3, seed=1)
  least = 0.3 * math.sqrt(2 / math.pi)  # E|N(0, 0.3²)|
  assert np.abs(values - np.resize(clean[:24], 40_000)).mean() == pytest.approx(least, rel=0.02)
  assert np.abs(values[24:] - values[:-24]).mean() == pytest.approx(math.sqrt(2) * least, rel=0.02)
  rising = seasonal(size=96, period=24, noise=0.0, trend=2.0)
  np.testing.assert_allclose(rising[24:] - rising[:-24], 2.0, atol=1e-12)


def test_a_walks_steps_are_the_noise():
  steps = np.diff(walk(size=40_000, noise=2.0, seed=3))
  assert steps.std() == pytest.approx(2.0, rel=0.02)
  assert abs(np.corrcoef(steps[1:], steps[:-1])[0, 1]) < 0.02
  assert walk(seed=1)[-1] != walk(seed=2)[-1]
