"""pictures/progress.webp: how the main samples changed over a run, as a short film that loops.

It is made from the PNG files under samples/ alone, and takes no more frames and bytes than can be sent around.
"""

import bisect
import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from research.report.atomic import cannot_write, write_atomically

if TYPE_CHECKING:
  from PIL import Image

PATH = Path("pictures", "progress.webp")
FEWEST, MOST = 3, 60  # frames
MOST_BYTES = 3_000_000
_SIDE = 540  # pixels: the longer side of a frame's picture is at most this
_STRIP = 30  # pixels under it, where the step is told
_SECONDS = 7.0  # from the first frame to the last, about
_FRAME, _LAST = (90, 700), 2500  # milliseconds: shortest and longest frame; how long the last one is held
_QUALITIES = ({"lossless": True, "quality": 50}, {"quality": 80}, {"quality": 60}, {"quality": 40})  # the best first


class CannotFilm(Exception):
  """This Pillow writes no WebP, or nothing small enough came of it; one line."""


def write(paths: Sequence[Path], path: Path) -> None:
  """Films the pictures among `paths`, which are in the order of their steps, in place of an older film.

  Fewer than three pictures make no film.

  Raises:
    ImportError: without Pillow.
    CannotFilm: with a Pillow that has no WebP.
    UserError: `path` cannot be written.
  """
  paths = chosen([each for each in paths if each.suffix == ".png"])
  try:
    path.unlink(missing_ok=True)
    frames = list(_frames(paths)) if len(paths) >= FEWEST else []
    if len(frames) < FEWEST:
      return
    path.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise cannot_write(path, error) from error
  write_atomically(path, encoded(frames))


def chosen(paths: Sequence[Path]) -> list[Path]:
  """At most MOST of the files, spread evenly over the steps, the first and the last among them."""
  if len(paths) <= MOST:
    return list(paths)
  steps = [int(path.stem) for path in paths]
  places = (_nearest(steps, wanted) for wanted in np.linspace(steps[0], steps[-1], MOST))
  return [paths[place] for place in sorted(set(places))]


def _nearest(steps: Sequence[int], wanted: float) -> int:
  after = min(bisect.bisect_left(steps, wanted), len(steps) - 1)
  before = max(0, after - 1)
  return before if wanted - steps[before] <= steps[after] - wanted else after


def _frames(paths: Sequence[Path]) -> "Iterator[Image.Image]":
  """A frame of each picture that can be read and has the newest one's size and colours."""
  found = {}
  for path in paths:
    with contextlib.suppress(OSError, SyntaxError):  # what Pillow raises for a damaged file
      image = pixels(path)
      found[path] = image.shape, enlargement(image)
  shape, _ = list(found.values())[-1] if found else ((), 1)
  fitting = {path: factor for path, (size, factor) in found.items() if size == shape}
  factor = math.gcd(*fitting.values())  # a picture of one colour alone may seem enlarged more than it was
  for path in fitting:
    yield frame(pixels(path)[::factor, ::factor], int(path.stem), int(paths[-1].stem))


def pixels(path: Path) -> np.ndarray:
  """A picture file as (H, W) if it is grey, else (H, W, 3). Raises OSError or SyntaxError where it is damaged."""
  from PIL import Image

  with Image.open(path) as picture:
    return np.asarray(picture if picture.mode == "L" else picture.convert("RGB"))


def enlargement(image: np.ndarray) -> int:
  """The greatest whole factor by which a picture (H, W) or (H, W, 3) can have been enlarged."""
  height, width = image.shape[:2]
  for factor in range(min(height, width), 1, -1):
    if height % factor == 0 and width % factor == 0:
      small = image[::factor, ::factor]
      if np.array_equal(image, small.repeat(factor, 0).repeat(factor, 1)):
        return factor
  return 1


def frame(image: np.ndarray, step: int, last: int) -> "Image.Image":
  """A picture of true pixels, (H, W) or (H, W, 3), at a size for a page, and under it how far the run is."""
  from PIL import Image, ImageDraw, ImageFont

  picture = Image.fromarray(image)
  factor = _SIDE // max(picture.size)
  if factor:
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
  else:
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
  width, height = picture.size
  whole = Image.new(picture.mode, (width, height + _STRIP), "white")
  whole.paste(picture, (0, 0))
  draw = ImageDraw.Draw(whole)
  draw.rectangle((0, height + 4, width - 1, height + 6), fill="#dddddd")
  draw.rectangle((0, height + 4, max(0, round(width * step / max(1, last)) - 1), height + 6), fill="#555555")
  draw.text((0, height + 9), f"step {step:,}", fill="#333333", font=ImageFont.load_default(17))
  return whole


def encoded(frames: "Sequence[Image.Image]") -> bytes:
  """The frames as one animated WebP file of at most MOST_BYTES, as well as they fit.

  Where the worst quality is too large, half of the frames are left out, and half of the rest.
  """
  from PIL import features

  if not features.check("webp"):
    raise CannotFilm("this Pillow writes no WebP")
  while len(frames) >= FEWEST:
    for setting in _QUALITIES:
      some = _thinned(frames, min(4, len(frames)))
      film = _webp(some, setting)
      if len(film) * len(frames) > MOST_BYTES * len(some):
        continue  # all of them would not fit; trying would cost seconds
      film = film if len(some) == len(frames) else _webp(frames, setting)
      if len(film) <= MOST_BYTES:
        return film
    frames = _thinned(frames, len(frames) // 2)
  raise CannotFilm(f"three pictures are more than {MOST_BYTES:,} bytes")


def _thinned(frames: "Sequence[Image.Image]", count: int) -> "list[Image.Image]":
  """`count` of the frames, the first and the last among them."""
  return [frames[place] for place in np.linspace(0, len(frames) - 1, count).round().astype(int)]


def _webp(frames: "Sequence[Image.Image]", setting: dict) -> bytes:
  shortest, longest = _FRAME
  each = int(min(longest, max(shortest, 1000 * _SECONDS / len(frames))))
  buffer = io.BytesIO()
  durations = [each] * (len(frames) - 1) + [_LAST]
  frames[0].save(
    buffer, "WEBP", save_all=True, append_images=frames[1:], duration=durations, loop=0, method=2, **setting
  )
  return buffer.getvalue()
