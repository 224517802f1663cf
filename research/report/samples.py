"""samples/: what a model makes, one file a moment, named by its step: 000500.png or 000500.txt.

Of several kinds the first is the main one; every other has a folder of its own: samples/interpolation/000500.png.
Pictures are arranged and, where they are small, enlarged by a whole factor, and nothing else about them is changed;
values outside their range are an error.
"""

import contextlib
import io
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from research.report.atomic import cannot_write, write_atomically

MAIN = ""  # the key of the main kind
_SIDE = 800  # pixels: the longer side of an enlarged grid is between half of this and this
_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)

Files = dict[str, list[Path]]  # kind → its files, in the order of their steps


class NotNumbers(ValueError):
  """Pictures that hold NaN or infinity: a model that diverged, not a mistake of who wrote it."""


def find(folder: Path) -> Files:
  """Every kind's sample files, the main kind first, the others by name. Links are none: they may point anywhere."""
  kinds = [path for path in folder.glob("*/") if _NAME.fullmatch(path.name) and not path.is_symlink()]
  found = {MAIN: _of_steps(folder), **{path.name: _of_steps(path) for path in sorted(kinds)}}
  return {kind: paths for kind, paths in found.items() if paths}


def _of_steps(folder: Path) -> list[Path]:
  paths = [path for path in folder.glob("*.*") if path.suffix in (".png", ".txt") and path.stem.isdecimal()]
  return sorted((path for path in paths if not path.is_symlink()), key=lambda path: int(path.stem))


def tag(kind: str) -> str:
  """What TensorBoard calls a kind: "samples", "samples/interpolation"."""
  return f"samples/{kind}" if kind else "samples"


def truncate_after(folder: Path, step: int) -> Files:
  """Deletes the samples of every kind after `step`, and folders that are empty then; returns the files that stay."""
  kept: Files = {}
  for kind, paths in find(folder).items():
    for path in paths:
      if int(path.stem) <= step:
        kept.setdefault(kind, []).append(path)
      else:
        path.unlink()
    if kind and kind not in kept:
      with contextlib.suppress(OSError):  # somebody else's files lie there too
        (folder / kind).rmdir()
  return kept


def write(folder: Path, step: int, sample: object) -> dict[str, Path]:
  """Writes a `task.Sample`, each kind as one file, over what there is of this step; returns kind → path.

  Raises ValueError for an array of another shape or range or a name that is no word, NotNumbers for NaN and infinity,
  UserError if the folder cannot be written, ImportError for pictures without Pillow.
  """
  written = {}
  files = {name: each if isinstance(each, str) else png(sheet(each), name) for name, each in named(sample).items()}
  for place, (name, content) in enumerate(files.items()):
    kind = name if place else MAIN
    path = folder / kind / f"{step:06}{'.txt' if isinstance(content, str) else '.png'}"
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      path.with_suffix(".png" if path.suffix == ".txt" else ".txt").unlink(missing_ok=True)
    except OSError as error:
      raise cannot_write(path.parent, error) from error
    write_atomically(path, content)
    written[kind] = path
  return written


def named(sample: object) -> dict[str, object]:
  """A `task.Sample` as {name: pictures or text}; one that has no name is called samples."""
  if not isinstance(sample, Mapping):
    return {"samples": sample}
  if not sample:
    raise ValueError("sample: a mapping of samples must hold at least one kind")
  for name in sample:
    if not _NAME.fullmatch(name):
      raise ValueError(f"sample: a kind's name must be letters, digits and underscores, got {name!r}")
  return dict(sample)


def title(path: Path) -> str:
  """The name that a picture was given; "samples" where there is none to be read."""
  if path.suffix == ".png":
    with contextlib.suppress(ImportError, OSError):
      from PIL import Image

      with Image.open(path) as picture:
        return picture.info.get("Title", "samples")
  return "samples"


def as_uint8(images: np.ndarray) -> np.ndarray:
  """images_NHWC or images_RKHWC: uint8 pictures as they are; floats in [0, 1] times 255."""
  images = np.asarray(images)
  if images.ndim not in (4, 5) or images.shape[-1] not in (1, 3) or not images.size:
    raise ValueError(f"sample: need images (N, H, W, 1 or 3) or (rows, columns, H, W, 1 or 3), got {images.shape}")
  if images.dtype == np.uint8:
    return images
  images = images.astype(np.float32)
  if not np.isfinite(images).all():
    raise NotNumbers("sample: the pictures hold NaN or infinity")
  if not ((images >= 0) & (images <= 1)).all():
    raise ValueError("sample: float images must lie in [0, 1]")
  return np.round(images * 255).astype(np.uint8)


def sheet(images: np.ndarray) -> np.ndarray:
  """All pictures on one: uint8 grid_HWC, large enough to see (8×8 pixels are not).

  The whole grid is enlarged, gaps and all, so that `grid_HWC[::factor, ::factor]` gives the true pixels back.
  """
  images = as_uint8(images)
  small_HWC = grid(images, gap=1)
  factor = _SIDE // max(small_HWC.shape[:2])
  return small_HWC.repeat(factor, 0).repeat(factor, 1) if factor > 1 else grid(images, gap=2)


def grid(images: np.ndarray, gap: int) -> np.ndarray:
  """uint8 pictures on white, `gap` pixels apart: images_RKHWC in their rows, images_NHWC near-square row by row."""
  if images.ndim == 5:
    columns, images = images.shape[1], images.reshape(-1, *images.shape[2:])
  else:
    columns = int(np.ceil(np.sqrt(len(images))))
  count, height, width, channels = images.shape
  lines = -(-count // columns)
  shape = (lines * (height + gap) - gap, columns * (width + gap) - gap, channels)
  grid_HWC = np.full(shape, 255, np.uint8)
  for place, image_HWC in enumerate(images):
    top, left = (place // columns) * (height + gap), (place % columns) * (width + gap)
    grid_HWC[top : top + height, left : left + width] = image_HWC
  return grid_HWC


def png(image_HWC: np.ndarray, title: str = "") -> bytes:
  """A PNG file of a uint8 picture with one or three channels, its title in its header."""
  from PIL import Image, PngImagePlugin

  words = PngImagePlugin.PngInfo()
  if title:
    words.add_text("Title", title)
  buffer = io.BytesIO()
  with contextlib.closing(Image.fromarray(image_HWC[..., 0] if image_HWC.shape[-1] == 1 else image_HWC)) as picture:
    picture.save(buffer, "PNG", pnginfo=words)
  return buffer.getvalue()
