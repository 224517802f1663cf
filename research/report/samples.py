"""samples/: what a model makes, one file a moment, named by its step: 000500.png or 000500.txt.

It arranges pictures in a grid and changes nothing else about them; values outside their range are an error.
"""

import contextlib
import io
from pathlib import Path

import numpy as np

from research.report.atomic import cannot_write, write_atomically

_GAP = 2  # pixels between two pictures


def find(folder: Path) -> list[Path]:
  """The sample files in the order of their steps."""
  paths = [path for path in folder.glob("*.*") if path.suffix in (".png", ".txt") and path.stem.isdecimal()]
  return sorted(paths, key=lambda path: int(path.stem))


def truncate_after(folder: Path, step: int) -> list[Path]:
  """Deletes the samples after `step`; returns those that stay."""
  kept = []
  for path in find(folder):
    if int(path.stem) <= step:
      kept.append(path)
    else:
      path.unlink()
  return kept


def write(folder: Path, step: int, sample: np.ndarray | str) -> Path:
  """Writes a text, or images_NHWC (uint8, or floats in [0, 1]; C is 1 or 3) as one grid; returns the path.

  Raises ValueError for an array of another shape or range, UserError if the folder cannot be written.
  """
  try:
    folder.mkdir(exist_ok=True)
  except OSError as error:
    raise cannot_write(folder, error) from error
  path = folder / f"{step:06}{'.txt' if isinstance(sample, str) else '.png'}"
  write_atomically(path, sample if isinstance(sample, str) else png(grid(as_uint8(sample))))
  return path


def as_uint8(images_NHWC: np.ndarray) -> np.ndarray:
  """uint8 pictures as they are; floats in [0, 1] times 255."""
  images_NHWC = np.asarray(images_NHWC)
  if images_NHWC.ndim != 4 or images_NHWC.shape[-1] not in (1, 3):
    raise ValueError(f"sample: need images (N, H, W, 1 or 3), got {images_NHWC.shape}")
  if images_NHWC.dtype == np.uint8:
    return images_NHWC
  images_NHWC = images_NHWC.astype(np.float32)
  if not ((images_NHWC >= 0) & (images_NHWC <= 1)).all():
    raise ValueError("sample: float images must lie in [0, 1]")
  return np.round(images_NHWC * 255).astype(np.uint8)


def grid(images_NHWC: np.ndarray) -> np.ndarray:
  """The pictures, row by row in a near-square grid on white: uint8 grid_HWC."""
  count, height, width, channels = images_NHWC.shape
  columns = max(1, int(np.ceil(np.sqrt(count))))
  lines = -(-count // columns)
  shape = (lines * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, channels)
  grid_HWC = np.full(shape, 255, np.uint8)
  for place, image_HWC in enumerate(images_NHWC):
    top, left = (place // columns) * (height + _GAP), (place % columns) * (width + _GAP)
    grid_HWC[top : top + height, left : left + width] = image_HWC
  return grid_HWC


def png(image_HWC: np.ndarray) -> bytes:
  """A PNG file of a uint8 picture with one or three channels."""
  from PIL import Image

  buffer = io.BytesIO()
  with contextlib.closing(Image.fromarray(image_HWC[..., 0] if image_HWC.shape[-1] == 1 else image_HWC)) as picture:
    picture.save(buffer, "PNG")
  return buffer.getvalue()
