"""The film: which pictures are in it, in which order, how long each is shown, and that it stays small."""

import io

import numpy as np
import pytest
from PIL import Image, features

from research.report import film, pictures, rebuild, record, samples


def sampled(folder, steps, side=8, channels=1, count=4):
  """A sample of each step: pictures as bright as the share of the run that is done."""
  for step in steps:
    shade = 40 + 200 * step // max(steps)
    samples.write(folder, step, np.full((count, side, side, channels), shade, np.uint8))
  return samples.find(folder)[samples.MAIN]


def shown(path):
  """[(brightness of the first picture, milliseconds)] of each frame, as Pillow reads them."""
  found = []
  with Image.open(path) as picture:
    for place in range(picture.n_frames):
      picture.seek(place)
      pixel = np.asarray(picture.convert("L"))[5, 5]
      found.append((int(pixel), picture.info["duration"]))
  return found


def test_the_film_goes_from_the_first_to_the_last_and_stays_there(tmp_path):
  paths = sampled(tmp_path / "samples", [10, 20, 30, 40])
  film.write(paths, tmp_path / "film.webp")
  frames = shown(tmp_path / "film.webp")
  assert [shade for shade, _ in frames] == [90, 140, 190, 240]
  durations = [duration for _, duration in frames]
  assert len(set(durations[:-1])) == 1
  assert durations[-1] >= 3 * durations[0]
  with Image.open(tmp_path / "film.webp") as picture:
    assert picture.info["loop"] == 0  # for ever
    assert 400 < picture.width <= 600


def test_of_many_pictures_a_few_are_shown_evenly_over_the_steps(tmp_path):
  steps = [*range(1, 101), *range(200, 1001, 100)]  # many at first, few later
  paths = [tmp_path / f"{step:06}.png" for step in steps]
  chosen = [int(path.stem) for path in film.chosen(paths)]
  assert chosen == sorted(set(chosen))
  assert (chosen[0], chosen[-1]) == (1, 1000)
  assert len(chosen) <= 60
  assert set(range(200, 1001, 100)) <= set(chosen)
  assert len(film.chosen(paths[:100])) == 60


def test_frames_of_another_size_or_damaged_are_left_out(tmp_path):
  folder = tmp_path / "samples"
  sampled(folder, [1, 2], count=9)
  paths = sampled(folder, [10, 20, 30, 40, 50])
  paths[3].write_bytes(paths[3].read_bytes()[:60])
  paths[5].write_bytes(b"")
  film.write(paths, tmp_path / "film.webp")
  assert [shade for shade, _ in shown(tmp_path / "film.webp")] == [80, 160, 240]


def test_a_picture_of_one_colour_keeps_its_size(tmp_path):
  """All white it looks as if it had been one pixel; its frame must still be as large as the others."""
  paths = sampled(tmp_path, [1, 2, 3])
  samples.write(tmp_path, 2, np.full((4, 8, 8, 1), 255, np.uint8))
  film.write(paths, tmp_path / "film.webp")
  with Image.open(paths[0]) as picture:
    assert film.enlargement(np.asarray(picture)) == picture.width // (8 + 1 + 8)
  assert [shade for shade, _ in shown(tmp_path / "film.webp")] == [106, 255, 240]
  with Image.open(tmp_path / "film.webp") as picture:
    assert picture.width == (540 // 17) * 17
    row = np.asarray(picture.convert("L"))[0]
  assert sorted(set(row.tolist())) == [106, 255]  # two pictures and the gap between them


def test_grey_pictures_lose_nothing(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (3, 4, 8, 8, 1), np.uint8)
  for step, images_NHWC in enumerate(images, 1):
    samples.write(tmp_path, step, images_NHWC)
  film.write(samples.find(tmp_path)[samples.MAIN], tmp_path / "film.webp")
  with Image.open(tmp_path / "film.webp") as picture:
    for place in range(3):
      picture.seek(place)
      grid = samples.grid(images[place], gap=1)[..., 0]
      factor = picture.width // grid.shape[1]
      whole = np.asarray(picture.convert("L"))[: factor * grid.shape[0]]
      np.testing.assert_array_equal(whole[::factor, ::factor], grid)


def test_fewer_than_three_pictures_make_no_film_and_take_an_old_one_away(tmp_path):
  path = tmp_path / "film.webp"
  paths = sampled(tmp_path / "samples", [1, 2, 3])
  film.write(paths, path)
  assert path.exists()
  samples.write(tmp_path / "samples", 4, "a text")
  film.write([*paths[:2], tmp_path / "samples" / "000004.txt"], path)
  assert not path.exists()


@pytest.mark.parametrize(("channels", "limit", "count"), [(1, 30_000, 12), (3, 60_000, 12), (1, 6_000, 3)])
def test_a_film_has_as_many_frames_as_fit(channels, limit, count, monkeypatch):
  """Noise does not compress: frames are given up, but never the first and the last."""
  images = np.random.default_rng(0).integers(0, 256, (12, 24, 24, channels), np.uint8)
  frames = [film.frame(image if channels == 3 else image[..., 0], step, 12) for step, image in enumerate(images, 1)]
  tried = []

  def watched(frames, setting, webp=film._webp):
    tried.append(frames)
    return webp(frames, setting)

  monkeypatch.setattr(film, "MOST_BYTES", limit)
  monkeypatch.setattr(film, "_webp", watched)
  assert len(film.encoded(frames)) <= limit
  assert len(tried[-1]) == count
  assert (tried[-1][0], tried[-1][-1]) == (frames[0], frames[-1])


def test_quality_is_given_up_before_frames(monkeypatch):
  """A photograph's many colours are large without loss."""
  rng = np.random.default_rng(0)
  slope = np.linspace(20, 200, 400)[:, None, None] + np.linspace(0, 30, 400)[:, None]
  images = (slope + rng.normal(0, 3, (4, 400, 400, 3))).astype(np.uint8)
  frames = [film.frame(image, step, 4) for step, image in enumerate(images, 1)]
  monkeypatch.setattr(film, "MOST_BYTES", 400_000)
  found = film.encoded(frames)
  assert len(found) <= 400_000 < len(film._webp(frames, film._QUALITIES[0]))
  with Image.open(io.BytesIO(found)) as picture:
    assert picture.n_frames == 4


def test_three_pictures_that_are_too_large_are_no_film(monkeypatch):
  monkeypatch.setattr(film, "MOST_BYTES", 100)
  with pytest.raises(film.CannotFilm, match="more than 100 bytes"):
    film.encoded([film.frame(np.zeros((9, 9), np.uint8), step, 3) for step in range(3)])


def test_a_run_is_finished_without_webp(tmp_path, monkeypatch):
  sampled(tmp_path / "samples", [1, 2, 3])
  writer = record.Writer(tmp_path / "metrics.jsonl")
  writer.append(3, {"train/loss": 1.0})
  writer.close()
  monkeypatch.setattr(pictures, "write_all", lambda run, folder: [])
  monkeypatch.setattr(features, "check", lambda name: False)
  notes = []
  page = rebuild(tmp_path, note=notes.append)
  assert notes == ["no film of the samples: this Pillow writes no WebP"]
  assert "image/webp" not in page.read_text()
  monkeypatch.undo()
