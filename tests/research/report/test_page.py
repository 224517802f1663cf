"""report.html is one file that fetches nothing, lets no text act as markup, and says the run's numbers."""

import html.parser
import json
import re
import sys

import numpy as np
import pytest

from research.errors import UserError
from research.report import rebuild

HOSTILE = "<script>alert('$x')</script>"
VOID = {"meta", "img", "br"}


class Reader(html.parser.HTMLParser):
  """Collects the texts and attributes, and fails on tags that do not pair."""

  def __init__(self):
    super().__init__()
    self.open, self.tags, self.attributes, self.texts = [], [], [], []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.texts.append(data)


def parse(path):
  reader = Reader()
  reader.feed((path / "report.html").read_text())
  reader.close()
  assert not reader.open
  return reader


def test_the_page_fetches_nothing_and_runs_nothing(make_run, classified):
  path = make_run(**classified)
  reader = parse(path)
  content = (path / "report.html").read_text()
  assert not re.search(r"https?:|//[a-z]|url\(|@import", content.replace("</", ""))
  assert not {"script", "link", "iframe", "object", "base"} & set(reader.tags)
  assert not [name for name, _ in reader.attributes if name.startswith("on") or name == "href"]
  sources = [value for name, value in reader.attributes if name == "src"]
  assert len(sources) == 3 + 1  # worst mistakes and a grid of samples
  assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_hostile_names_are_text(make_run, classified):
  reader = parse(make_run("<b>run", **classified))
  assert HOSTILE in "".join(reader.texts)
  assert "<b>run" in reader.texts
  assert "a=b <i>" in reader.texts  # a flag's value, with its own equals sign
  assert not {"b", "script"} & set(reader.tags)


def test_the_page_says_the_numbers(make_run, classified):
  text = " ".join(parse(make_run(**classified)).texts)
  for wanted in (
    "62.50%", "test accuracy", "1,234,567", "3 of them classified wrongly", "75.00% 2", "0.667", "98.0% · #105",
    "python -m experiments.mlp --config=x",
  ):  # fmt: skip
    assert wanted in text


def test_a_best_has_columns_only_where_there_is_one(make_run, monkeypatch):
  path = make_run()
  assert {"best", "at step", "A ring marks the best."} <= set(parse(path).texts)
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  lines = (path / "metrics.jsonl").read_text().splitlines()
  kept = [line for line in lines if json.loads(line)["step"] <= 2]
  (path / "metrics.jsonl").write_text("\n".join(kept) + "\n")
  rebuild(path, note=lambda _text: None)
  texts = parse(path).texts
  assert "last" in texts
  assert not {"best", "at step"} & set(texts)
  assert "A ring marks the best." not in texts


def test_flags_that_differ_from_their_defaults_come_first(make_run):
  text = " ".join(parse(make_run(learning_rate="0.3")).texts)
  flags = text[text.index("Flags") :]
  assert flags.index("--optim.learning_rate") < flags.index("the other") < flags.index("--seed")
  assert "0.3 default 0.1" in flags


def test_a_regression_has_its_scatter(make_run):
  target = np.linspace(0, 1, 7, dtype=np.float32)
  rows = {"target": target, "prediction": target + 1, "loss": np.ones(7, np.float32)}
  reader = parse(make_run(rows=rows))
  points = [value for name, value in reader.attributes if name == "class" and value.startswith("point")]
  assert len(points) == 7
  assert "mean absolute error" in reader.texts


def test_without_matplotlib_and_pillow_there_is_still_a_page(make_run, classified, monkeypatch):
  path = make_run(**classified)
  wanted = parse(path).texts
  for name in [name for name in sys.modules if name.split(".")[0] in ("matplotlib", "PIL")]:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  notes = []
  rebuild(path, note=notes.append)
  assert parse(path).texts == wanted
  monkeypatch.setitem(sys.modules, "PIL", None)
  rebuild(path, note=notes.append)
  assert "#105" in parse(path).texts  # a table in the pictures' place
  assert len(notes) == 2
  assert "matplotlib" in notes[0]


def test_a_run_that_is_not_finished_has_a_page(make_run, monkeypatch):
  path = make_run()
  (path / "result.json").unlink()
  with open(path / "metrics.jsonl", "ab") as file:
    file.write(b'{"step": 5, "time": 1.0, "train/loss": "NaN"}\n{"step": 6')
  monkeypatch.setitem(sys.modules, "matplotlib", None)  # its pictures are tested elsewhere, and slow
  rebuild(path)
  text = " ".join(parse(path).texts)
  assert "unfinished at step 5" in text
  assert "NaN" in text


def test_alarms_are_in_a_box_at_the_top(make_run, monkeypatch):
  path = make_run()
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  rebuild(path, note=lambda _text: None)
  assert "Alarms" not in parse(path).texts
  with open(path / "metrics.jsonl", "a") as file:
    for step, distance in ((1000, 9), (2000, 3), (3000, 4), (4000, 8), (5000, 7)):
      file.write(f'{{"step": {step}, "time": 1.0, "<i>/frechet_distance": {distance}}}\n')
  rebuild(path, note=lambda _text: None)
  texts = parse(path).texts
  box = texts[texts.index("Alarms") :]
  assert box[1] == "step 5,000"
  assert box[2].startswith("<i>/frechet_distance worsens: 7 at step 5,000, best was 3 at step 2,000")
  assert texts.index("Alarms") < texts.index("Curves")


def test_a_floor_stands_beside_its_metric_and_is_no_result_of_its_own(make_run, monkeypatch):
  path = make_run()
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  with open(path / "metrics.jsonl", "a") as file:
    file.write('{"step": 4, "time": 1.0, "generated/recall": 0.5, "floor/recall": 0.75}\n')
  result = json.loads((path / "result.json").read_text())
  metrics = {"generated/recall": 0.5, "floor/recall": 0.75}
  (path / "result.json").write_text(json.dumps({**result, "metrics": metrics}))
  rebuild(path, note=lambda _text: None)
  content = (path / "report.html").read_text()
  tiles = content[content.index("tiles") : content.index("Curves")]
  assert "generated recall" in tiles
  assert "real data 75.00%" in tiles
  assert "floor recall" not in tiles


def test_a_class_that_matplotlib_cannot_say_is_no_matter(make_run):
  rows = {"label": np.arange(2), "prediction": np.arange(2), "loss": np.zeros(2)}
  path = make_run(draw=True, rows=rows, class_names=("$\\frac{1}{$", "漢字"))
  assert (path / "pictures" / "confusion.png").exists()


@pytest.mark.parametrize("name", ["run.json", "result.json"])
def test_damaged_files_are_one_line_for_the_user(make_run, name):
  path = make_run()
  (path / name).write_text('{"step": ')
  with pytest.raises(UserError, match=f"{name} is damaged"):
    rebuild(path)
