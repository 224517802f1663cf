"""Attention's kernels for NVIDIA's GPUs: interpreted on the CPU against the definition in float64; who is chosen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.kernels import choice, mosaic, tuning
from research.kernels.attention import attention, cudnn, mosaic_gpu, ranges, reference
from research.kernels.attention.masks import How, seen
from tests.research.kernels import oracle
from tests.research.kernels.test_attention_kernel import PLAIN, arrays, by

ALL = {"causal": True, "window": 50, "softcap": 3.0, "scale": 0.4}
CAUSAL = {**PLAIN, "causal": True}
CASES = {
  # as in test_attention_kernel.py; every tile of 128 queries, or keys, of a head is interpreted after the others
  "everything": (1, 100, 120, 2, 1, 64, True, ALL),
}
MORE = {
  "all see all": (1, 128, 192, 1, 1, 64, False, PLAIN),
  "causal, wide, two tiles": (1, 256, 256, 2, 1, 128, False, CAUSAL),
  "causal, more keys than queries, odd": (1, 67, 201, 1, 1, 64, False, CAUSAL),
  "causal, rows before the first key": (1, 200, 133, 2, 2, 64, False, CAUSAL),
  "a window": (1, 300, 300, 1, 1, 64, False, {**CAUSAL, "window": 70}),
  "a window to both sides": (1, 256, 331, 1, 1, 64, False, {**PLAIN, "window": 70}),
  "documents seen from both sides": (2, 150, 150, 2, 1, 64, True, PLAIN),
  "a soft cap, wide": (1, 128, 128, 2, 2, 128, False, {**CAUSAL, "softcap": 5.0}),
  "a head width between two": (1, 130, 130, 3, 1, 40, True, ALL),
  "one token": (1, 1, 1, 2, 1, 64, False, CAUSAL),
}


@pytest.fixture
def as_on_a_gpu(monkeypatch):
  """Kernels that are asked for are interpreted, and this machine is taken for one with a Hopper."""
  monkeypatch.setattr(choice, "platform", lambda: "cuda")
  with mosaic.interpreted(), tuning.trying("attention", "mosaic_gpu", {"keys": 64}):
    yield


def check(case, dtype="bfloat16"):
  given, exact, how = arrays(case, dtype)
  segments = how["segment_ids"]
  if segments is not None and case[1] < case[2]:  # the queries are the last of the tokens
    how["segment_ids"] = (segments[0][:, -case[1] :], segments[1])
  output, sums, slopes = reference.attention(*exact[:3], **how, to_output=exact[3], to_sum=exact[4])
  (ours, our_slopes), (theirs, their_slopes) = (by(form, given, how) for form in ("mosaic_gpu", "xla"))
  blind = np.isneginf(sums)
  np.testing.assert_array_equal(np.isneginf(ours[1]), blind)
  assert not np.asarray(ours[0].astype(jnp.float32))[blind].any()
  seen_only = lambda values: (values[0], jnp.where(blind, 0.0, values[1]))  # noqa: E731
  oracle.check(seen_only(ours), seen_only(theirs), (output, np.where(blind, 0.0, sums)), "bfloat16")
  oracle.check(our_slopes, their_slopes, slopes, "bfloat16", gradient=True)
  assert [each.dtype for each in (ours[0], *our_slopes)] == [jnp.dtype(dtype)] * 4
  return blind


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_is_its_definition_as_nearly_as_xla_is(case, as_on_a_gpu):
  assert check(case).any(), "no row was blind"


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE.values(), ids=MORE)
def test_it_is_its_definition_with_other_shapes_and_masks(case, as_on_a_gpu):
  check(case)


@pytest.mark.slow
def test_it_is_its_definition_in_float16_and_with_other_blocks(as_on_a_gpu):
  blocks = {"keys": 128, "buffers": 3, "turns": 0, "dq_keys": 128, "dq_buffers": 2, "dkv_buffers": 2}
  with tuning.trying("attention", "mosaic_gpu", blocks):
    check((1, 200, 300, 1, 1, 64, True, ALL), "float16")


RACING = {  # of one tile: the interpreter forgets what ran before another
  "forward": lambda q, k, v, how: mosaic_gpu.forward(q, k, v, how=how)[0],
  "backward": lambda q, k, v, how: mosaic_gpu.backward(
    q, k, v, how=how, made=(q, q[..., 0].astype(jnp.float32), None), gradients=(q, q[..., 0].astype(jnp.float32))
  )[0],
}


@pytest.mark.parametrize("direction", ["forward", pytest.param("backward", marks=pytest.mark.slow)])
def test_no_two_accesses_race(direction):
  q, k = (oracle.normal(seed, 1, 128, 1, 64, dtype="bfloat16")[0] for seed in range(2))
  keys = jnp.concatenate([k, k], axis=1) if direction == "forward" else k  # more blocks than there are buffers
  how = How(True, 0, 0.0, 0.1)
  with mosaic.interpreted(races=True), tuning.trying("attention", "mosaic_gpu", {"keys": 64}):
    found = jax.jit(functools.partial(RACING[direction], how=how))(q, keys, keys)
  assert np.isfinite(np.asarray(found.astype(jnp.float32))).all()
  assert not mosaic.races_found()


@pytest.mark.slow
def test_blocks_that_nobody_sees_are_not_read(as_on_a_gpu):
  """NaN in their keys, or queries, reaches nothing."""
  q, k, v = (oracle.normal(seed, 1, 256, 1, 64, dtype="bfloat16")[0] for seed in range(3))
  last = slice(128, 256)
  segments = jnp.asarray(np.repeat([[0, 1]], [128, 128], axis=1), jnp.int32)
  for how, bad in (({"causal": True, "window": 60}, slice(0, 64)), ({"segment_ids": segments}, slice(0, 128))):

    def loss(q, k, v, how=how):
      return attention(q, k, v, **how, form="mosaic_gpu")[0][:, last].astype(jnp.float32).sum()

    gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    value, slopes = gradients(q.at[:, bad].set(jnp.nan), k.at[:, bad].set(jnp.nan), v.at[:, bad].set(jnp.nan))
    assert np.isfinite(value)
    assert all(np.isfinite(np.asarray(each[:, last].astype(jnp.float32))).all() for each in slopes)


@pytest.mark.slow
def test_under_vmap_it_is_the_same(as_on_a_gpu):
  """The interpreter's ordered effects take no remat and no second device: those are compiled in tests/aot."""
  q, k, v = (oracle.normal(seed, 1, 64, 1, 64, dtype="bfloat16")[0] for seed in range(3))
  slopes = jax.grad(lambda *x: attention(*x, causal=True, form="mosaic_gpu")[0].astype(jnp.float32).sum(), (0, 1, 2))
  plain = jax.jit(slopes)(q, k, v)
  twice = jax.jit(jax.vmap(slopes, in_axes=(3, None, None)))(jnp.stack([-q, q], axis=3), k, v)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a[1]), np.asarray(b)), twice, plain)


HOWS = [How(causal, window, 0.0, 1.0) for causal in (False, True) for window in (0, 1, 5, 40)]


@pytest.mark.parametrize("how", HOWS, ids=str)
@pytest.mark.parametrize(("length", "keys"), [(24, 24), (19, 37), (37, 18), (1, 1), (40, 9)])
def test_ranges_hold_every_block_that_is_seen_and_call_full_what_is(how, length, keys):
  tile, block, offset = 8, 4, keys - length
  mask = seen(jnp.arange(length) + offset, jnp.arange(keys), how)
  mask = np.ones((length, keys), bool) if mask is None else np.asarray(mask[0])
  before, after = ranges.reach(how)
  sides = ((mask, offset, before, after, keys), (mask.T, -offset, after, before, length))
  for matrix, shift, behind, ahead, count in sides:
    tiles = np.arange(0, len(matrix), tile)
    first = jnp.asarray(tiles + shift, jnp.int32)
    found = [np.asarray(each) for each in ranges.blocks(first, first + tile - 1, behind, ahead, count, block)]
    for t, (low, full_low, full_high, high) in zip(tiles, zip(*found, strict=True), strict=True):
      assert 0 <= low <= full_low <= full_high <= high <= -(-count // block)
      assert low < high
      blocks = [matrix[t : t + tile, b * block : (b + 1) * block] for b in range(-(-count // block))]
      for b, each in enumerate(blocks):
        assert not each.any() or low <= b < high
        assert (each.shape[1] == block and each.all()) or not full_low <= b < full_high
      if any(each.any() for each in blocks) and t + tile <= len(matrix):
        assert blocks[low].any()
        assert blocks[high - 1].any()


def test_ranges_of_documents_hold_every_pair_of_a_document_whatever_their_order():
  random, tile, block = np.random.default_rng(0), 8, 4
  sorted_ids = np.sort(random.integers(-1, 5, (3, 40)), axis=1)
  apart = np.tile(np.repeat([0, 0, 1, 0, 0], 8), (3, 1))  # a tile's segment lies on both sides of another
  for ids in (sorted_ids, random.integers(-1, 3, (3, 40)), apart):
    tiles, blocks = (jnp.asarray(ids, jnp.int32).reshape(3, -1, size) for size in (tile, block))
    whole = ranges.Range(*(jnp.full(5, each, jnp.int32) for each in (0, 0, 10, 10)))
    found = [np.asarray(each) for each in ranges.with_segments(whole, tiles, blocks)]
    skipped = 0
    for row, t in np.ndindex(3, 5):
      low, full_low, full_high, high = (each[row, t] for each in found)
      assert 0 <= low <= full_low <= full_high <= high
      for b in range(10):
        pairs = np.asarray(tiles)[row, t][:, None], np.asarray(blocks)[row, b][None]
        same = (pairs[0] == pairs[1]) & (pairs[1] >= 0)
        assert not same.any() or low <= b < high
        assert same.all() or not full_low <= b < full_high
        skipped += not low <= b < high
    assert skipped > 20 or ids is not sorted_ids


Q = ((2, 512, 8, 128), (2, 512, 2, 128), (2, 512, 2, 128))
SEGMENTS = ((2, 512), (2, 512))


@pytest.mark.parametrize(
  ("shapes", "dtype", "how", "forward", "backward"),
  [
    (Q, "bfloat16", How(True, 0, 0.0, 0.1), "cudnn", "mosaic_gpu"),
    (Q, "bfloat16", How(True, 0, 0.0, 0.1, sums=False), "cudnn", "cudnn"),
    (Q, "bfloat16", How(True, 100, 0.0, 0.1, sums=False), "cudnn", "cudnn"),
    (Q, "bfloat16", How(False, 100, 0.0, 0.1, sums=False), "mosaic_gpu", "mosaic_gpu"),
    (Q, "bfloat16", How(True, 0, 30.0, 0.1, sums=False), "mosaic_gpu", "mosaic_gpu"),
    ((*Q, *SEGMENTS), "bfloat16", How(True, 0, 0.0, 0.1, sums=False), "mosaic_gpu", "mosaic_gpu"),
    (((2, 512, 8, 256), *[(2, 512, 2, 256)] * 2), "bfloat16", How(True, 0, 30.0, 0.1), "xla", "xla"),
    (((2, 8, 8, 64), *[(2, 8, 2, 64)] * 2), "bfloat16", How(True, 0, 30.0, 0.1), "xla", "xla"),
    (Q, "float32", How(True, 0, 0.0, 0.1), "xla", "xla"),
    (((8, 4096, 8, 128), *[(8, 4096, 2, 128)] * 2), "float32", How(True, 0, 0.0, 0.1), "chunked", "chunked"),
  ],
)
def test_the_table_takes_the_library_before_our_kernels_before_xla(shapes, dtype, how, forward, backward):
  dtypes = (jnp.dtype(dtype),) * 3 + (jnp.dtype("int32"),) * (len(shapes) - 3)
  choose = lambda op, **more: choice.OPS[op].choose(shapes, dtypes, "cuda", how=how, **more)  # noqa: E731
  assert choose("attention") == forward
  assert choose("attention.gradients", made=None, gradients=None) == backward


@pytest.mark.parametrize(("sums", "backward"), [(0.0, "cudnn"), (1.0, "mosaic_gpu")])
def test_the_library_goes_backward_where_the_log_sum_exp_is_not_used(sums, backward, monkeypatch):
  """Also in a scan over layers that are made again, as a transformer has them."""
  monkeypatch.setattr(choice, "platform", lambda: "cuda")

  @jax.checkpoint
  def layer(x, _):
    output, log_sum_exp = attention(x, x, x, causal=True)
    return output + (sums * log_sum_exp[..., None]).astype(x.dtype) if sums else output, None

  loss = lambda x: jax.lax.scan(layer, x, None, length=2)[0].astype(jnp.float32).sum()  # noqa: E731
  with choice.recording() as found:
    jax.eval_shape(jax.grad(loss), jax.ShapeDtypeStruct((1, 256, 2, 64), jnp.bfloat16))
  assert found == {"attention": "cudnn", "attention.gradients": backward}


@pytest.mark.parametrize(
  ("form", "how", "reason"),
  [
    ("cudnn", {"segment_ids": jnp.zeros((1, 8), jnp.int32)}, "it has no segments"),
    ("cudnn", {"softcap": 5.0}, "it has no soft cap"),
    ("cudnn", {"window": 5}, "only before a token"),
    ("mosaic_gpu", {"scale": -1.0}, "it takes a positive scale, and this is -1.0"),
  ],
)
def test_who_is_asked_for_and_cannot_says_why(form, how, reason, monkeypatch):
  monkeypatch.setattr(choice, "platform", lambda: "cuda")
  x = jnp.zeros((1, 8, 2, 64), jnp.bfloat16)
  with pytest.raises(UserError, match=f"attention cannot run as {form}: .*{reason}"):
    attention(x, x, x, **how, form=form)


def test_other_devices_and_other_doors_are_a_reason_and_no_crash(monkeypatch):
  how, dtypes = How(True, 0, 0.0, 0.1), (jnp.dtype("bfloat16"),) * 3
  limits = lambda module: module.limits(Q, dtypes, "cuda", how=how)  # noqa: E731
  for module in (cudnn, mosaic_gpu):
    assert limits(module) is None
    monkeypatch.setattr(module, "capability", lambda: "7.5")
    assert "7.5" in limits(module)
    monkeypatch.undo()
  cudnn._missing.cache_clear()
  monkeypatch.setattr(cudnn, "_names", lambda function: {"something", "else"})
  assert "another door" in limits(cudnn)
  monkeypatch.undo()
  cudnn._missing.cache_clear()
  assert limits(cudnn) is None


def test_what_was_measured_of_a_case_is_what_the_kernel_asks_for(monkeypatch):
  how, one = How(True, 0, 0.0, 0.1), {"forward, 128, causal": {"keys": 64}, "backward, 64, all": {"dq_buffers": 7}}
  assert one.keys() <= mosaic_gpu.BLOCKS.cases.keys()
  measured = {"mosaic_gpu": {tuning.this_kind(): {jax.__version__: one}}}
  monkeypatch.setattr(tuning, "tuned", lambda op: measured)
  assert mosaic_gpu._parameters("forward", 100, how)["keys"] == 64
  assert mosaic_gpu._parameters("forward", 64, how)["keys"] == mosaic_gpu.BLOCKS.default["keys"]
  assert mosaic_gpu._parameters("backward", 64, how._replace(causal=False))["dq_buffers"] == 7
