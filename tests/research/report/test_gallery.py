"""What the page shows of samples: the newest of each kind, the film, the way there, and no more than fits."""

import re

import numpy as np
import pytest

from research.report import Report, gallery, pictures, run_directory


@pytest.fixture
def make_samples(tmp_path, monkeypatch):
  """A run's samples at every tenth step, as `sample(step)` gives them; returns its page."""

  def make(sample, moments=9):
    monkeypatch.setattr(pictures, "write_all", lambda run, folder: [])
    with Report(tmp_path, header={}, total_steps=99, batch_size=1, quiet=True) as report:
      for step in range(10, 10 * moments + 1, 10):
        report.train(step, {"train/loss": 1.0})
        report.sample(step, sample(step))
      return report.finish({"step": 10 * moments, "metrics": {}}).read_text()

  return make


def figures(page):
  """[(kind of picture or "text", caption)] in the page's order."""
  found = re.findall(r"<figure>(.*?)<figcaption>(.*?)</figcaption>", page)
  return [(re.search("data:image/(.*?);|$", body)[1] or "text", re.sub("<.*?>", "", text)) for body, text in found]


def grey(step):
  return np.full((4, 8, 8, 1), step, np.uint8)


def test_the_newest_the_film_every_kind_and_the_way_there(make_samples):
  page = make_samples(lambda step: {"samples": grey(step), "walk_in_latents": grey(step)[None], "words": f"<b>{step}"})
  assert figures(page) == [
    ("png", "step 90 the newest"), ("webp", "step 10 to 90 the way there"), ("png", "step 90"), ("text", "step 90"),
    *(("png", f"step {step}") for step in (80, 70, 50, 40, 20, 10)),
  ]  # fmt: skip
  headings = re.findall(r"<h[23][^>]*>(.*?)</h", page)
  assert headings[:4] == ["Samples", "Walk in latents", "Words", "Earlier"]
  assert "<pre>&lt;b&gt;90</pre>" in page


def test_the_main_kind_has_its_own_name(make_samples):
  page = make_samples(lambda step: {"reconstructions": grey(step), "samples": grey(step)})
  assert re.findall(r"<h[23][^>]*>(.*?)</h", page)[:2] == ["Reconstructions", "Samples"]


def widest(page):
  """The most pixels that each picture of the page may take; "" where it may take all that there is."""
  return re.findall(r'<img src="data:image/png[^>]*?max-width:(\d+)px', page)


def test_a_grid_takes_the_pages_width_and_a_small_one_does_not(make_samples):
  page = make_samples(lambda step: np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), np.uint8), moments=1)
  assert int(widest(page)[0]) >= 1024
  page = make_samples(lambda step: np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8), moments=1)
  assert 4 * 8 * 2 <= int(widest(page)[0]) <= 400
  assert "smooth" not in page[page.index("<body") :]


def test_what_was_not_enlarged_is_smoothed_and_hardly_stretched(make_samples):
  page = make_samples(lambda step: np.random.default_rng(0).integers(0, 256, (1, 500, 500, 1), np.uint8), moments=1)
  assert 500 <= int(widest(page)[0]) <= 650
  assert '<img src="data:image/png' in page
  assert 'class="smooth"' in page


def test_two_moments_stand_side_by_side(make_samples):
  page = make_samples(lambda step: {"samples": grey(step), "walk": grey(step)}, moments=2)
  assert figures(page) == [("png", "step 20 the newest"), ("png", "step 10 the first"), ("png", "step 20")]
  assert "Earlier" not in page


def test_one_moment_stands_beside_its_other_kinds(make_samples):
  page = make_samples(lambda step: {"digits": grey(step), "classes": grey(step), "walk": grey(step)}, moments=1)
  assert figures(page) == [("png", "step 10")] * 3
  assert re.findall(r"<h[23][^>]*>(.*?)</h", page)[:4] == ["Digits", "Digits", "Classes", "Walk"]
  assert '<div class="kinds three">' in page


def test_texts_have_no_film(make_samples):
  page = make_samples(lambda step: f"text {step}", moments=4)
  assert figures(page) == [("text", "step 40 the newest"), *(("text", f"step {step}") for step in (30, 20, 10))]


def test_a_run_without_samples_says_nothing_of_them(make_samples, tmp_path):
  make_samples(lambda step: "text", moments=2)
  for path in (tmp_path / "samples").iterdir():
    path.unlink()
  assert gallery.section(run_directory.open_run(tmp_path)) == ""


def test_what_has_no_room_is_named_or_left_out(make_samples, tmp_path, monkeypatch):
  make_samples(lambda step: {"samples": "s" * 100, "other": "o" * 100}, moments=4)
  run = run_directory.open_run(tmp_path)
  monkeypatch.setattr(gallery, "_MOST_BYTES", 350)
  section = gallery.section(run)
  assert section.count("s" * 100) == 2  # the newest and one before; the other kind comes first
  assert section.count("o" * 100) == 1
  assert "too large" not in section
  monkeypatch.setattr(gallery, "_MOST_BYTES", 150)
  section = gallery.section(run)
  assert "samples/other/000040.txt is too large for this page" in section
