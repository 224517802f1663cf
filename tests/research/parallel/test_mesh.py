"""Meshes from their written form."""

import jax
import pytest

from research.errors import UserError
from research.parallel.mesh import make_mesh


@pytest.mark.parametrize(
  ("text", "rows", "size"),
  [("", 0, 8), ("", 64, 8), ("", 5, 5), ("", 12, 6), ("", 7, 7), ("", 1, 1), ("data:4", 0, 4), ("data:3", 64, 3)],
)
def test_sizes(text, rows, size):
  mesh = make_mesh(text, rows)
  assert dict(mesh.shape) == {"data": size}
  assert list(mesh.devices.ravel()) == jax.devices()[:size]


@pytest.mark.parametrize(
  ("text", "complaint"),
  [
    ("data:9", "wants 9 devices and there are 8"),
    ("data", "is not axis:size"),
    ("data:0", "is not axis:size"),
    ("data:x", "is not axis:size"),
    ("rows:2", "no axis 'rows'"),
    ("data:2,data:2", "names an axis twice"),
  ],
)
def test_refusals(text, complaint):
  with pytest.raises(UserError, match="parallel: ") as error:
    make_mesh(text)
  assert complaint in str(error.value)
