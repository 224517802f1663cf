"""Encoded pictures (PNG, JPEG and what else Pillow reads) to arrays of uint8. Sizes are never changed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from research.errors import UserError


def shape(encoded: bytes | Path, where: str) -> tuple[int, int, int]:
  """(H, W, C) from the header alone: C is 1 for grey pictures and 3 for all others."""
  with _opened(encoded, where) as image:
    return image.height, image.width, 1 if image.mode in ("1", "L", "LA") else 3


def decoded(encoded: bytes | Path, expected: tuple[int, int, int], where: str, first: str) -> np.ndarray:
  """The picture as (H, W, C) uint8; transparency is dropped. Raises UserError naming `where` if it cannot be decoded,
  and also `first`, the picture of the expected shape, if the size differs."""
  with _opened(encoded, where) as image:
    if (image.height, image.width) != expected[:2]:
      raise UserError(
        f"data: images of mixed size: {first} is {expected[0]}x{expected[1]} and {where} is"
        f" {image.height}x{image.width} (height x width); resize them to one size first"
      )
    mode = "L" if expected[2] == 1 else "RGB"
    try:
      array_HW_ = np.asarray(image if image.mode == mode else image.convert(mode))
    except Exception as error:  # Pillow's decoders raise many kinds
      raise _broken(where, error) from error
  return array_HW_.reshape(expected)


def _opened(encoded: bytes | Path, where: str):
  from PIL import Image

  try:
    image = Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded)
  except Exception as error:
    raise _broken(where, error) from error
  if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
    image.close()
    raise UserError(f"data: {where} has pixels of mode {image.mode}; only pictures of 8 bits a channel are read")
  return image


def _broken(where: str, error: Exception) -> UserError:
  reason = (str(error) or type(error).__name__).splitlines()[0]
  return UserError(f"data: {where} is not a picture that can be decoded: {reason}")
