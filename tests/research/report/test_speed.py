"""What a run costs, on its page and nowhere in the way of its curves."""

import json

import numpy as np
import pytest

from research import throughput
from research.report import Report, measures, page, pictures, run_directory

HOSTILE = "<b>mlp</b> dot_general, backward"
PROFILE = {
  "updates": [10, 15], "seconds": 0.5, "outside_device": 0.042, "devices": 1, "trace": "plugins/x",
  "operations": [
    {"name": HOSTILE, "program": "jit_update", "instruction": "fusion.7", "seconds": 0.05, "count": 20, "share": 0.31},
  ],
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
  """A run of three lines that tell everything."""
  measured = throughput.Update(16, 2, 1024, 1e9, 1e11).speeds(10, 1.0) | {"train/host_memory_peak_bytes": 3 * 2.0**30}
  with Report(tmp_path, header={}, total_steps=3, batch_size=16, quiet=True) as report:
    for step in (1, 2, 3):
      report.train(step, {"train/loss": 1 / step, **measured})
  return run_directory.open_run(tmp_path)


def test_the_page_tells_the_speed_once_and_folds_its_curves(run):
  text = page.render(run)
  assert "10,240 tokens a second, 160 examples a second, 5.00% of the devices&#x27; peak (MFU)" in text
  assert "at most 3.0 GiB of memory" in text
  curves, rest = text.split("<h2>Speed</h2>")
  assert "per second" not in curves
  assert "mfu over the steps" in rest.split("<details>")[1].split("</details>")[0]


def test_a_profile_is_a_table_of_the_costliest_operations(run):
  (run.path / "profile").mkdir()
  (run.path / "profile" / "summary.json").write_text(json.dumps(PROFILE))
  text = page.render(run_directory.open_run(run.path))
  assert "The 5 updates from step 10 on took 0.50 s; 4.2% of it lay outside the device" in text
  assert HOSTILE not in text
  assert "&lt;b&gt;mlp&lt;/b&gt; dot_general, backward" in text
  assert '<td class="number">10 ms</td><td class="number">31.0%</td><td class="number">4</td>' in text


def test_a_run_that_tells_none_of_it_has_no_such_part(make_run):
  assert "<h2>Speed</h2>" not in page.render(run_directory.open_run(make_run()))


def test_no_picture_has_a_speed(run, monkeypatch):
  drawn = []
  monkeypatch.setattr(pictures, "curves_figure", lambda panels: drawn.extend(panels))
  monkeypatch.setattr(pictures, "write", lambda path, draw, title="": draw())
  pictures.write_all(run, run.path / "pictures")
  assert [panel.name for panel in drawn] == ["loss"]


def test_how_they_are_said():
  found = {"train/mfu": 0.4567, "train/device_memory_bytes": 1.5 * 2**30, "train/tokens_per_second": 12345.6}
  said = {name: measures.say(name, value) for name, value in found.items()}
  assert list(said.values()) == ["45.67%", "1.5 GiB", "12,346"]
  assert all(measures.is_plain(name) for name in said)
  assert all(measures.best(name, [1, 2], np.array([1.0, 2.0])) is None for name in said)
