"""What a task sees of a byte, by its experiment's `pixels`."""

import jax
import numpy as np
import pytest

from experiments.inputs import make_transforms, open_data
from experiments.schema import Data


@pytest.mark.parametrize(
  ("pixels", "expected"),
  [
    ("unit", lambda x: x / 255),
    ("signed", lambda x: x / 127.5 - 1),
    ("standardised", lambda x: (x - x.mean()) / x.std()),
  ],
)
def test_pixels(pixels, expected):
  splits = open_data(Data())
  image_NHWC = np.asarray(splits.train.column("image"))
  for transform in make_transforms(Data(), splits, pixels):
    seen = transform({"image": jax.numpy.asarray(image_NHWC)}, jax.random.key(0))["image"]
    np.testing.assert_allclose(seen, expected(image_NHWC.astype(np.float64)), rtol=1e-4, atol=1e-5)
