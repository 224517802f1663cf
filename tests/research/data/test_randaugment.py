"""RandAugment's operations are Pillow's, to a level of brightness; each image draws its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from research.data.randaugment import FILL, OPERATIONS, randaugment


def image(channels=3, seed=0, side=12):
  random = np.random.default_rng(seed)
  smooth = random.integers(20, 200, (4, 4, channels)).repeat(side // 4, 0).repeat(side // 4, 1)
  return (smooth + random.integers(0, 20, (side, side, channels))).astype(np.uint8)


def ours(name, pixels, sign, level):
  return np.asarray(OPERATIONS[name](jnp.asarray(pixels, jnp.float32), jnp.float32(sign), level=level))


def pillow(name, pixels, sign, level):
  picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
  enhance = {
    "color": ImageEnhance.Color, "contrast": ImageEnhance.Contrast, "brightness": ImageEnhance.Brightness,
    "sharpness": ImageEnhance.Sharpness,
  }  # fmt: skip
  if name in enhance:
    made = enhance[name](picture).enhance(1 + sign * 0.9 * level)
  else:
    made = {
      "identity": lambda: picture,
      "autocontrast": lambda: ImageOps.autocontrast(picture),
      "equalize": lambda: ImageOps.equalize(picture),
      "solarize": lambda: ImageOps.solarize(picture, int(256 * (1 - level))),
      "posterize": lambda: ImageOps.posterize(picture, 8 - int(4 * level)),
    }[name]()
  return np.asarray(made, np.float32).reshape(pixels.shape)


VALUES = [name for name in OPERATIONS if name != "rotate" and not name.startswith(("shear", "translate"))]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", VALUES)
def test_values_are_pillows(name, channels):
  if name == "color" and channels == 1:
    np.testing.assert_array_equal(ours(name, image(1), 1, 0.5), image(1))
    return
  for sign in (1, -1):
    for level in (0.25, 0.5, 1.0):
      pixels = image(channels, seed=int(10 * level))
      difference = np.abs(ours(name, pixels, sign, level) - pillow(name, pixels, sign, level))
      assert difference.max() <= 1, (sign, level, difference.max())


@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
def test_one_flat_colour_stays_as_it_is(name):
  pixels = np.full((8, 8, 3), 77, np.uint8)
  np.testing.assert_array_equal(ours(name, pixels, 1, 1.0), pixels)


def test_moves_by_hand():
  pixels = image(1)
  moved = ours("translate_x", pixels, 1, 3 * 331 / 100 / 12)  # three pixels
  np.testing.assert_array_equal(moved[:, :9], pixels[:, 3:])
  assert (moved[:, 9:] == FILL).all()
  moved = ours("translate_y", pixels, -1, 2 * 331 / 100 / 12)
  np.testing.assert_array_equal(moved[2:], pixels[:-2])
  np.testing.assert_array_equal(ours("rotate", pixels, 1, 3.0), np.rot90(pixels, 1))  # three times 30 degrees
  sheared = ours("shear_x", pixels, 1, 1 / 0.3 / 5.5)  # by one pixel at the edge rows
  np.testing.assert_array_equal(sheared[-1, :-1], pixels[-1, 1:])
  np.testing.assert_array_equal(sheared[0, 1:], pixels[0, :-1])
  np.testing.assert_array_equal(ours("shear_y", pixels, 1, 1 / 0.3 / 5.5)[:-1, -1], pixels[1:, -1])


def test_each_image_draws_its_own_and_the_key_decides():
  batch = {"image": jnp.asarray(np.stack([image()] * 40)), "label": jnp.arange(40)}
  augment = jax.jit(randaugment(2, 9.0))
  made = augment(batch, jax.random.key(0))
  assert made["image"].dtype == jnp.uint8
  np.testing.assert_array_equal(made["label"], batch["label"])
  assert len({np.asarray(x).tobytes() for x in made["image"]}) > 25
  np.testing.assert_array_equal(augment(batch, jax.random.key(0))["image"], made["image"])
  assert (np.asarray(augment(batch, jax.random.key(1))["image"]) != made["image"]).any()
  np.testing.assert_array_equal(randaugment(0, 9.0)(batch, jax.random.key(0))["image"], batch["image"])
