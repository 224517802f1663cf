"""A device's peak: the table's where it is in one, else measured once and kept."""

import json
import types

import jax
import pytest

from research.parallel import peak, roofline


@pytest.fixture
def measured(monkeypatch, tmp_path):
  """(dtype, times) of what was measured, of a processor at 4 TFLOP/s in float32 and 12 in bfloat16; nothing is kept
  yet."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  asked = []

  def measure(device, dtype, times):
    asked.append((dtype, times))
    return {"float32": 4e12, "bfloat16": 12e12}[dtype]

  monkeypatch.setattr(roofline, "product_flops", measure)
  return asked


def test_a_known_accelerator_is_looked_up(monkeypatch, measured):
  device = types.SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3", platform="gpu")
  monkeypatch.setattr(jax, "local_devices", lambda: [device])
  assert [peak.peak_flops(8, dtype) for dtype in ("bfloat16", "float32")] == [989e12, 494e12]
  assert not measured


def test_a_cpu_is_measured_and_shared_by_its_devices(measured):
  waited = []
  asked = ((1, "float32"), (8, "float32"), (1, "bfloat16"))
  found = [peak.peak_flops(devices, dtype, lambda: waited.append(1)) for devices, dtype in asked]
  assert found == [4e12, 0.5e12, 12e12]
  assert measured == [("float32", peak.FIRST), ("float32", peak.AGAIN), ("bfloat16", peak.FIRST)]
  assert len(waited) == 3
  kept = json.loads(peak.path().read_text())
  assert sorted(kept.values()) == [4e12, 12e12]
  assert all(name.endswith(f", jax {jax.__version__}") for name in kept)


def test_the_greatest_figure_of_all_starts_is_kept(measured, monkeypatch):
  def told(rate):
    monkeypatch.setattr(roofline, "product_flops", lambda *_: rate)
    return peak.peak_flops(1, "float32")

  assert [told(rate) for rate in (1e12, 3e12, 2e12)] == [1e12, 3e12, 3e12]


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 0}', '{"a": "1"}', '{"a": {"float32": 1}}', "3", '{"a": NaN}'])
def test_a_damaged_file_is_measured_anew(measured, content):
  peak.path().parent.mkdir()
  peak.path().write_text(content)
  assert peak.peak_flops(1, "float32") == 4e12
  assert json.loads(peak.path().read_text()).keys().isdisjoint({"a"})
  assert measured == [("float32", peak.FIRST)]


def test_where_nothing_can_be_kept_the_figure_still_comes(measured, monkeypatch, tmp_path):
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  assert peak.peak_flops(1, "float32") == 4e12
