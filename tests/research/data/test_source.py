"""Sources and views: numbering, shapes and fingerprints."""

import dataclasses

import numpy as np
import pytest

from research.data import ArraySource, Feature, Schema, View
from research.data import fingerprint as fingerprints


def _source(size: int = 6) -> ArraySource:
  arrays = {
    "image": np.arange(size * 4, dtype=np.uint8).reshape(size, 2, 2, 1),
    "label": np.arange(size, dtype=np.int32),
  }
  schema = Schema({"image": Feature((2, 2, 1), "uint8"), "label": Feature((), "int32")}, tuple("abcdef"))
  return ArraySource("six", schema, arrays, fingerprints.arrays(arrays))


def test_gather_follows_the_indices_shape_and_order():
  batch = _source().gather([[5, 0, 5], [1, 1, 2]])
  assert batch["image"].shape == (2, 3, 2, 2, 1)
  np.testing.assert_array_equal(batch["label"], [[5, 0, 5], [1, 1, 2]])
  np.testing.assert_array_equal(batch["image"][0, 0].ravel(), [20, 21, 22, 23])
  assert _source().gather([])["image"].shape == (0, 2, 2, 1)


@pytest.mark.parametrize("indices", [[-1], [6], [0, 99]])
def test_numbers_outside_are_refused_and_do_not_wrap(indices):
  for source in (_source(), View(_source(), range(6))):
    with pytest.raises(IndexError, match=r"outside 0\.\.5"):
      source.gather(indices)


def test_fractional_indices_are_refused():
  with pytest.raises(TypeError, match="integers"):
    _source().gather([0.0, 1.0])


def test_a_view_of_a_view_composes_and_stays_one_level_deep():
  view = View(View(_source(), [4, 2, 0]), [2, 0])
  np.testing.assert_array_equal(view.gather([0, 1])["label"], [0, 4])
  np.testing.assert_array_equal(view.column("label"), [0, 4])
  assert isinstance(view.source, ArraySource)
  assert view.size == 2


def test_a_view_differs_from_its_source_and_from_other_views():
  prints = {_source().fingerprint, *(View(_source(), i).fingerprint for i in ([0, 1], [1, 0], [0, 1, 1]))}
  assert len(prints) == 4
  assert View(_source(), np.array([0, 1], np.int32)).fingerprint == View(_source(), np.array([0, 1])).fingerprint


def test_arrays_that_contradict_the_schema_are_refused():
  source = _source()
  for arrays in (
    {**source.arrays, "label": source.arrays["label"].astype(np.int64)},
    {**source.arrays, "label": source.arrays["label"][:3]},
    {"image": source.arrays["image"]},
  ):
    with pytest.raises(ValueError, match="six"):
      dataclasses.replace(source, arrays=arrays)


def test_example_bytes_counts_every_entry():
  assert _source().schema.example_bytes == 2 * 2 * 1 + 4
