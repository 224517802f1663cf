"""The tiles fill their rows at every width, whatever their number, and the first is the number that matters."""

import json
import re
import sys

import pytest

from research.report import rebuild, tiles
from research.report.style import CSS


def spans(section):
  """The tiles' classes, and the columns with and without the large tile, and its rows."""
  numbers = [int(re.search(rf"--{name}:(\d+)", section)[1]) for name in ("all", "columns", "rows")]
  return re.findall(r'<div class="(tile[^"]*)">', section), *numbers


def places(classes, span):
  """How many places each tile but the large one takes, by its class that counts there."""
  return [2 if span in each.split() else 1 for each in classes if "main" not in each]


@pytest.mark.parametrize("main", [True, False])
@pytest.mark.parametrize("count", range(3, 13))
def test_no_tile_is_alone_in_a_row(count, main):
  if not main and count > 3:
    return  # without a metric there are steps, time and parameters
  named = [(f"test/m{place}", "1", []) for place in range(count)]
  classes, everything, columns, rows = spans(tiles.arranged(named, main))
  assert len(classes) == count
  assert [("main" in each) for each in classes] == [main] + [False] * (count - 1)
  assert everything == columns + 2 * main
  assert everything <= 6
  assert sum(places(classes, "wide")) == columns * rows  # beside the large tile, and under it
  assert sum(places(classes, "odd")) % 2 == 0  # two in a row


def test_the_style_uses_what_the_tiles_say():
  for rule in ("repeat(var(--all)", "repeat(var(--columns)", "span var(--rows)", ".tile.wide", ".tile.odd"):
    assert rule in CSS


def shown(path):
  content = (path / "report.html").read_text()
  section = re.search(r'<section class="tiles.*?</section>', content)[0]
  found = re.findall(r'class="name">(.*?)</div><div class="value">(.*?)</div><div class="more">(.*?)</div>', section)
  return {name: (value, more) for name, value, more in found}


def test_a_run_without_held_out_data_shows_the_loss_of_training(make_run, monkeypatch):
  path = make_run()
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
  kept = [line for line in lines if "train/loss" in line]
  (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
  (path / "result.json").write_text(json.dumps({"step": 4, "metrics": {}}))
  rebuild(path, note=lambda _text: None)
  assert next(iter(shown(path).items())) == ("train loss", ("0.2500", ""))


def test_a_tile_tells_a_best_that_is_not_its_own_number(make_run, monkeypatch):
  path = make_run()
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  metrics = {"validation/accuracy": 0.5, "validation/loss": 0.5}
  (path / "result.json").write_text(json.dumps({"step": 4, "metrics": metrics}))
  rebuild(path, note=lambda _text: None)
  found = shown(path)
  assert found["validation accuracy"] == ("50.00%", "best 75.00% · step 2")
  assert found["validation loss"] == ("0.5000", "")  # 2 / 4, the last, which is the best
