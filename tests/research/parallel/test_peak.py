"""A device's peak: the table's where it is in one, else measured once and kept."""

import json
import types

import jax
import pytest

from research.parallel import peak, roofline
from research.parallel.chips import Chip


@pytest.fixture
def measured(monkeypatch, tmp_path):
  """What was measured, of a processor that gives 4 TFLOP/s in float32 and 12 in bfloat16; nothing is kept yet."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  asked = []

  def measure(sharing):
    asked.append(sharing)
    return Chip("cpu", 12e12, 4e12, 1e9, 1e9, 1e9, "measured")

  monkeypatch.setattr(roofline, "measured", measure)
  return asked


def test_a_known_accelerator_is_looked_up(monkeypatch, measured):
  device = types.SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3", platform="gpu")
  monkeypatch.setattr(jax, "local_devices", lambda: [device])
  assert [peak.peak_flops(8, dtype) for dtype in ("bfloat16", "float32")] == [989e12, 494e12]
  assert not measured


def test_a_cpu_is_measured_once_and_shared_by_its_devices(measured):
  waited = []
  found = [peak.peak_flops(devices, dtype, lambda: waited.append(1)) for devices, dtype in
           ((1, "float32"), (8, "float32"), (1, "bfloat16"))]  # fmt: skip
  assert found == [4e12, 0.5e12, 12e12]
  assert len(measured) == len(waited) == 1
  ((name, rates),) = json.loads(peak.path().read_text()).items()
  assert f"jax {jax.__version__}" in name
  assert rates == {"float32": 4e12, "bfloat16": 12e12}


@pytest.mark.parametrize("content", ["{", "[]", '{"a": {"float32": 0, "bfloat16": 1}}', '{"a": {"float32": 1}}', "3"])
def test_a_damaged_file_is_measured_anew(measured, content):
  peak.path().parent.mkdir()
  peak.path().write_text(content)
  assert peak.peak_flops(1, "float32") == 4e12
  assert peak.peak_flops(1, "float32") == 4e12
  assert len(measured) == 1


def test_where_nothing_can_be_kept_the_figure_still_comes(measured, monkeypatch, tmp_path):
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  assert peak.peak_flops(1, "float32") == 4e12
