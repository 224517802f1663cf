"""Dropout's masks: those of the words that jax draws for a key, in every form, and what the backward pass keeps."""

import logging
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from research.errors import UserError
from research.kernels import choice
from research.kernels.dropout import cpu, dropout, reference

CASES = {
  "prime sizes": ((5, 7), 0.3),
  "images": ((4, 3, 5, 2), 0.5),
  "attention's weights": ((2, 1, 3, 5, 5), 0.1),
  "one value a row": ((9,), 0.5),
  "one word a row": ((3, 4), 0.9),
  "one row": ((1, 33), 0.2),
  "hardly any": ((6, 101), 0.004),
  "nearly all": ((6, 101), 0.999),
}


def bytes_of_words(x, key, rate):
  """What the layer drew before it was a kernel: every run's masks are this definition's."""
  dropped = min(round(rate * 256), 255)
  width = math.prod(x.shape[1:])
  words = jax.random.bits(key, (x.shape[0], -(-width // 4)), jnp.uint32)
  bytes_ = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(x.shape[0], -1)[:, :width].reshape(x.shape)
  return jnp.where(bytes_ >= dropped, x * jnp.asarray(256 / (256 - dropped), x.dtype), jnp.zeros_like(x))


def array(shape, dtype="float32", seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.mark.parametrize(
  ("case", "dtype"),
  [(case, "float32") for case in CASES.values()] + [(CASES["images"], "bfloat16")],
  ids=[*CASES, "images in bfloat16"],
)
def test_a_key_gives_the_mask_that_it_always_gave(case, dtype):
  shape, rate = case
  key, x, g = jax.random.fold_in(jax.random.key(2), 7), array(shape, dtype), array(shape, dtype, seed=1)

  @jax.jit
  def both(x, g, key):
    made = [jax.vjp(lambda x, form=form: dropout(x, key, rate, form=form), x) for form in ("cpu", "xla")]
    return [(y, slope(g)[0]) for y, slope in made], [bytes_of_words(each, key, rate) for each in (x, g)]

  found, expected = both(x, g, key)
  for values in found:
    jax.tree.map(np.testing.assert_array_equal, values, tuple(expected))
    assert [each.dtype for each in values] == [dtype, dtype]


def test_it_is_its_definition():
  x, key = array((5, 3, 7)), jax.random.key(1)
  words = np.asarray(jax.random.bits(key, (5, 6), jnp.uint32))
  found = jax.jit(lambda x, key: dropout(x, key, 0.25))(x, key)
  np.testing.assert_allclose(found, reference.dropout(x, words, 64), rtol=1e-6)


def test_threefry_gives_its_authors_numbers():
  """Random123's known answers for 20 rounds: nothing, all ones, and the digits of π."""
  pi = ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0))
  nothing, ones = (0, 0), (0xFFFFFFFF, 0xFFFFFFFF)
  for key, counter, expected in (
    (nothing, nothing, (0x6B200159, 0x99BA4EFE)), (ones, ones, (0x1CB996FC, 0xBB002BE7)), pi,
  ):  # fmt: skip
    high, low = (jnp.asarray([number], jnp.uint32) for number in counter)
    found = cpu.threefry(jnp.asarray(key, jnp.uint32), high, low)
    assert tuple(int(word[0]) for word in found) == expected


def test_values_are_independent_of_neighbours_rows_and_keys():
  draw = jax.jit(lambda key: dropout(jnp.ones((300, 403)), key, 0.25) > 0)
  kept, other = np.asarray(draw(jax.random.key(0))), np.asarray(draw(jax.random.key(1)))
  pairs = [(kept[1:], kept[:-1]), (kept, other), *((kept[:, n:], kept[:, :-n]) for n in (1, 2, 3, 4, 8))]
  for a, b in pairs:  # of 120,000 pairs a correlation of zero is found within 4 / √120,000
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.0116
  assert abs(kept.mean() - 0.75) < 0.005


def test_the_backward_pass_keeps_half_a_byte_for_four_values_in_a_byte():
  x = array((8, 30))
  kept = jax.tree.leaves(jax.vjp(lambda x: dropout(x, jax.random.key(0), 0.5), x)[1])
  assert [(leaf.shape, leaf.dtype) for leaf in kept] == [((8, 8), jnp.uint8)]


def test_it_differentiates_again():
  x, key = array((4, 9)), jax.random.key(5)
  scaled = bytes_of_words(jnp.ones_like(x), key, 0.4)
  slope = lambda x: jax.grad(lambda x: (dropout(x, key, 0.4) ** 3).sum())(x)  # noqa: E731
  found = jax.jit(jax.grad(lambda x: slope(x).sum()))(x)
  np.testing.assert_allclose(found, 6 * x * scaled**3, rtol=1e-5)


def test_the_words_are_drawn_once_for_both_directions():
  """XLA's fusions would draw them again for each value that they decide about, forward and backward."""
  x = array((16, 70))
  slopes = jax.jit(jax.value_and_grad(lambda x, key: (dropout(x, key, 0.5, form="cpu") ** 2).sum()))
  entry = slopes.lower(x, jax.random.key(0)).compile().as_text().partition("\nENTRY ")[2]
  assert 16 * 18 in [math.prod(map(int, shape.split(","))) for shape in re.findall(r"u8\[([\d,]+)\]", entry)]


def test_under_vmap_and_remat_it_is_the_same():
  x, keys = array((3, 4, 6)), jax.random.split(jax.random.key(0), 3)
  slopes = jax.grad(jax.checkpoint(lambda x, key: (dropout(x, key, 0.5) ** 2).sum()))
  found = jax.jit(jax.vmap(slopes))(x, keys)
  for each, one, key in zip(found, x, keys, strict=True):
    np.testing.assert_allclose(each, 2 * bytes_of_words(bytes_of_words(one, key, 0.5), key, 0.5), rtol=1e-6)


def test_a_sharded_batch_draws_its_own_rows(mesh):
  x, key = array((16, 40)), jax.random.key(3)
  rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
  slopes = jax.jit(jax.value_and_grad(lambda x: (dropout(x, key, 0.5) ** 2).sum()), out_shardings=(None, rows))
  program = slopes.lower(jax.device_put(x, rows)).compile()
  text = program.as_text()
  drawn = {math.prod(map(int, shape.split(","))) for shape in re.findall(r"u32\[([\d,]+)\]", text)}
  assert max(drawn) == 2 * 10 or max(drawn) == 10  # two rows of 16, or one after the other
  for move in ("all-gather", "all-to-all", "collective-permute"):
    assert move not in text
  found = program(jax.device_put(x, rows))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, slopes(x))


def test_what_the_cpus_form_does_not_draw_is_left_to_the_compiler(caplog):
  x, key = array((4, 12)), jax.random.key(0, impl="rbg")
  with caplog.at_level(logging.WARNING, logger=choice.__name__):
    np.testing.assert_array_equal(dropout(x, key, 0.5), bytes_of_words(x, key, 0.5))
  assert "the key is for rbg" in caplog.text
  with pytest.raises(UserError, match="dropout cannot run as cpu: it draws by threefry2x32"):
    dropout(x, key, 0.5, form="cpu")
  old = jax.random.key(4)
  with jax.threefry_partitionable(False):
    np.testing.assert_array_equal(dropout(x, old, 0.5), bytes_of_words(x, old, 0.5))


def test_only_a_cpu_draws_by_itself():
  program = jax.jit(lambda x, key: dropout(x, key, 0.5)).trace(array((4, 12)), jax.random.key(0))
  for platform, ours in (("cpu", True), ("tpu", False), ("cuda", False)):
    assert ("threefry2x32" not in program.lower(lowering_platforms=(platform,)).as_text()) == ours


def test_rates():
  x = array((3, 5))
  assert dropout(x, jax.random.key(0), 0.0) is x
  assert dropout(x, jax.random.key(0), 0.001) is x  # rounds to none
  for rate in (-0.1, 1.0):
    with pytest.raises(ValueError, match="outside"):
      dropout(x, jax.random.key(0), rate)
