"""Channel statistics against float64 numpy, and their memory."""

import json

import numpy as np
import pytest

from research.data import ArraySource, Feature, Schema, View, channel_statistics, statistics


def _source(image_NHWC, name="print"):
  schema = Schema({"image": Feature(image_NHWC.shape[1:], "uint8"), "label": Feature((), "int32")}, ("a",))
  return ArraySource("pictures", schema, {"image": image_NHWC, "label": np.zeros(len(image_NHWC), np.int32)}, name)


def test_equal_to_float64_and_exact_over_chunks(tmp_path, monkeypatch):
  x_NHWC = np.random.default_rng(0).integers(0, 256, (50, 6, 7, 3), np.uint8)
  x_NHWC[..., 2] = 9
  whole = channel_statistics(_source(x_NHWC), str(tmp_path))
  np.testing.assert_allclose(whole.mean_C, x_NHWC.astype(np.float64).mean((0, 1, 2)), rtol=1e-13)
  np.testing.assert_allclose(whole.std_C[:2], x_NHWC[..., :2].astype(np.float64).std((0, 1, 2)), rtol=1e-12)
  assert (whole.mean_C[2], whole.std_C[2]) == (9, 1)  # constant: normalising gives 0, not NaN
  monkeypatch.setattr(statistics, "_CHUNK_BYTES", 300)
  assert channel_statistics(_source(x_NHWC), str(tmp_path)) == whole
  assert not list(tmp_path.iterdir())  # small: not worth a file


def test_only_the_examples_of_a_view_count(tmp_path):
  x_NHWC = np.zeros((3, 2, 2, 1), np.uint8)
  x_NHWC[1:] = 200
  assert channel_statistics(View(_source(x_NHWC), [0, 1]), str(tmp_path)).mean_C == (100,)


@pytest.mark.parametrize("damage", ["", "{}", '{"mean": [1], "std": [0]}', '{"mean": [1, 2], "std": [3, 4]}', "[1]"])
def test_remembered_by_fingerprint_and_made_again_when_damaged(tmp_path, monkeypatch, damage):
  monkeypatch.setattr(statistics, "_REMEMBER_BYTES", 0)
  x_NHWC = np.random.default_rng(0).integers(0, 256, (5, 2, 2, 1), np.uint8)
  first = channel_statistics(_source(x_NHWC), str(tmp_path))
  memo = tmp_path / "statistics" / "print.json"
  memo.write_text(json.dumps({"mean": [1.5], "std": [2.5]}))
  assert channel_statistics(_source(x_NHWC), str(tmp_path)).mean_C == (1.5,)
  memo.write_text(damage)
  assert channel_statistics(_source(x_NHWC), str(tmp_path)) == first
