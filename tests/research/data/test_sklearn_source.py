"""sklearn: sets against scikit-learn's own loaders."""

import numpy as np
import pytest
from sklearn import datasets
from sklearn.preprocessing import StandardScaler

from research.data import open_splits


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer", "diabetes"])
def test_tables_equal_the_loaders_standardised(name):
  raw = datasets.load_diabetes(scaled=False) if name == "diabetes" else getattr(datasets, f"load_{name}")()
  train = open_splits(f"sklearn:{name}", test_fraction=0).train
  np.testing.assert_allclose(train.column("features"), StandardScaler().fit_transform(raw.data), atol=2e-6)
  np.testing.assert_array_equal(train.column(train.schema.output), raw.target)
  assert train.schema.feature_names == tuple(raw.feature_names)
  assert train.schema.class_names == (() if name == "diabetes" else tuple(raw.target_names))


def test_digits_are_exact_pictures():
  raw = datasets.load_digits()
  train = open_splits("sklearn:digits", test_fraction=0).train
  assert train.schema.features["image"].shape == (8, 8, 1)
  assert train.column("image").dtype == np.uint8
  np.testing.assert_array_equal(train.column("image")[..., 0] / 15, raw.images)
  np.testing.assert_array_equal(train.column("label"), raw.target)


def test_standardising_looks_at_the_training_split_alone():
  parts = open_splits("sklearn:iris")
  x = parts.train.column("features").astype(np.float64)
  np.testing.assert_allclose(x.mean(0), 0, atol=1e-6)
  np.testing.assert_allclose(x.std(0), 1, atol=1e-6)
  assert np.abs(parts.test.column("features").mean(0)).max() > 1e-3
