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


class _Device:
  def __init__(self, number, process_index):
    self.id, self.process_index, self.platform = number, process_index, "cpu"


@pytest.fixture
def of_three_processes(monkeypatch):
  """Two devices each; their order is not that of the processes."""
  devices = [_Device(number, number % 3) for number in range(6)]
  monkeypatch.setattr(jax, "devices", lambda: devices)


@pytest.mark.parametrize(
  ("text", "rows", "ids"),
  [("", 6, [0, 3, 1, 4, 2, 5]), ("", 9, [0, 1, 2]), ("data:3", 0, [0, 1, 2]), ("data:6", 0, [0, 3, 1, 4, 2, 5])],
)
def test_every_process_has_an_equal_part(of_three_processes, text, rows, ids):
  assert [device.id for device in make_mesh(text, rows).devices.ravel()] == ids


@pytest.mark.parametrize(
  ("text", "rows", "complaint"),
  [("", 4, "4 examples do not divide over 3 processes"), ("data:2", 0, "processes share"), ("data:4", 0, "evenly")],
)
def test_a_mesh_without_a_process_is_refused(of_three_processes, text, rows, complaint):
  with pytest.raises(UserError, match="parallel: ") as error:
    make_mesh(text, rows)
  assert complaint in str(error.value)
