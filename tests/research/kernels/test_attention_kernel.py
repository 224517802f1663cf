"""Attention by blocks against the definition in float64 and XLA's form; and what memory it takes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from research.errors import UserError
from research.kernels import choice, native, tuning
from research.kernels.attention import attention, reference
from tests.research.kernels import oracle

PLAIN = {"causal": False, "window": 0, "softcap": 0.0, "scale": None}
CASES = {
  # batch, queries, keys, heads, key heads, head width, whether there are segments, what is masked and how
  "all see all": (2, 13, 13, 2, 2, 4, False, PLAIN),
  "causal": (2, 17, 17, 3, 1, 5, False, {**PLAIN, "causal": True}),
  "causal, more keys than queries": (1, 5, 19, 2, 2, 4, False, {**PLAIN, "causal": True}),
  "causal, rows before the first key": (1, 11, 4, 2, 1, 3, False, {**PLAIN, "causal": True}),
  "a window": (2, 23, 23, 4, 2, 4, False, {**PLAIN, "causal": True, "window": 6}),
  "a window of one": (1, 9, 9, 1, 1, 4, False, {**PLAIN, "causal": True, "window": 1}),
  "a window to both sides": (2, 19, 19, 2, 1, 4, False, {**PLAIN, "window": 5}),
  "documents": (3, 16, 16, 4, 4, 4, True, {**PLAIN, "causal": True}),
  "documents seen from both sides": (3, 12, 12, 2, 1, 4, True, PLAIN),
  "everything": (2, 21, 21, 6, 3, 7, True, {"causal": True, "window": 9, "softcap": 3.0, "scale": 0.7}),
  "one token": (2, 1, 1, 2, 1, 3, False, {**PLAIN, "causal": True}),
}
LONG = {  # several of the blocks that the form in C++ has
  "long": (1, 300, 300, 2, 1, 40, False, {**PLAIN, "causal": True}),
  "long, documents": (2, 290, 290, 2, 2, 33, True, {**PLAIN, "window": 70, "softcap": 5.0}),
  "nobody is seen by many": (1, 150, 20, 1, 1, 4, False, {**PLAIN, "causal": True}),
  "many are seen by nobody": (1, 5, 600, 1, 1, 4, False, {**PLAIN, "causal": True, "window": 8}),
  "long, a window": (1, 400, 401, 1, 1, 16, False, {**PLAIN, "causal": True, "window": 30}),
}


@pytest.fixture(autouse=True)
def small_blocks():
  with tuning.trying("attention", "chunked", {"queries": 4, "keys": 3}):
    yield


def arrays(case, dtype):
  """(q, k, v, cotangents), the same in float64, and what says how; some rows see nothing."""
  batch, length, keys, heads, groups, width, has_segments, how = case
  shapes = [(batch, length, heads, width), *[(batch, keys, groups, width)] * 2, (batch, length, heads, width)]
  pairs = [oracle.normal(seed, *shape, dtype=dtype) for seed, shape in enumerate(shapes)]
  pairs.append(oracle.normal(9, batch, length, heads))
  segments = None
  if has_segments:
    random = np.random.default_rng(5)
    ids = np.sort(random.integers(0, 4, (batch, keys)), axis=1)
    ids[0, -3:] = -1
    segments = (ids.astype(np.int32),) * 2
  ours, exact = zip(*pairs, strict=True)
  return ours, exact, {**how, "segment_ids": None if segments is None else tuple(map(jnp.asarray, segments))}


def by(form, given, how):
  """(output, log-sum-exp) and the gradients of both against the cotangents; rows that see nothing count for nothing."""
  q, k, v, to_output, to_sum = given

  def total(q, k, v):
    output, sums = attention(q, k, v, **how, form=form)
    counted = jnp.where(jnp.isfinite(sums), sums, 0.0) * to_sum
    return (output.astype(jnp.float32) * to_output.astype(jnp.float32)).sum() + counted.sum(), (output, sums)

  (_, values), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)
  return values, gradients


NARROW = ("causal", "a window", "documents seen from both sides", "everything")  # in bfloat16 as well


@pytest.mark.parametrize(
  ("form", "dtype", "name"),
  [
    *(("chunked", "float32", name) for name in CASES),
    *(("chunked", "bfloat16", name) for name in NARROW),
    *(("native", "float32", name) for name in CASES | LONG),
  ],
)
def test_it_is_its_definition_as_nearly_as_xla_is(form, dtype, name):
  given, exact, how = arrays((CASES | LONG)[name], dtype)
  q, k, v, to_output, to_sum = exact
  output, sums, slopes = reference.attention(q, k, v, **how, to_output=to_output, to_sum=to_sum)
  (ours, our_slopes), (theirs, their_slopes) = (by(each, given, how) for each in (form, "xla"))
  blind = np.isneginf(sums)
  for values in (ours, theirs):
    np.testing.assert_array_equal(np.isneginf(values[1]), blind)
    assert not np.asarray(values[0].astype(jnp.float32))[blind].any()
  seen = lambda values: (values[0], jnp.where(blind, 0.0, values[1]))  # noqa: E731
  oracle.check(seen(ours), seen(theirs), (output, np.where(blind, 0.0, sums)), dtype)
  oracle.check(our_slopes, their_slopes, slopes, dtype, gradient=True)
  assert [each.dtype for each in (ours[0], *our_slopes)] == [jnp.dtype(dtype)] * 4


def test_forward_and_backward_choose_apart_and_small_ones_are_left_to_the_compiler(monkeypatch):
  given, _, how = arrays(CASES["causal"], "float32")
  run = lambda: jax.eval_shape(lambda *given: by(None, given, how), *given)  # noqa: E731
  with choice.recording() as found:
    run()
  assert found == {"attention": "xla", "attention.gradients": "xla"}
  with choice.recording() as found, choice.use(**{"attention.gradients": "chunked"}):
    run()
  assert found == {"attention": "xla", "attention.gradients": "chunked"}
  with choice.use(**{"attention.gradients": "chunked"}):
    mixed = by(None, given, how)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), mixed, by("xla", given, how))
  long = jax.ShapeDtypeStruct((2, 4096, 2, 8), jnp.float32)
  with choice.recording() as found:
    jax.eval_shape(lambda x: attention(x, x, x, causal=True), long)
  assert found == {"attention": "chunked"}
  monkeypatch.setattr(native, "whole", lambda: True)  # as on one device
  with choice.recording() as found:
    run()
  assert found == {"attention": "native", "attention.gradients": "native"}


def test_in_cpp_it_takes_float32_alone():
  x = jnp.ones((1, 4, 2, 8), jnp.bfloat16)
  with pytest.raises(UserError, match="attention cannot run as native: it takes float32, not bfloat16"):
    attention(x, x, x, form="native")
  with pytest.raises(UserError, match="an operand is empty"):
    attention(*[jnp.ones((1, 0, 2, 8))] * 3, form="native")


@pytest.mark.parametrize("form", ["native", "xla"])
def test_derivatives_of_derivatives(form):
  (q, k, v, *_), _, how = arrays((1, 5, 6, 4, 2, 3, False, {**PLAIN, "causal": True, "softcap": 2.0}), "float32")
  run = lambda *x: [jnp.sin(each) for each in attention(*x, **how, form=form)]  # noqa: E731
  check_grads(jax.jit(run), (q, k, v), order=2, modes=["rev"], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("form", ["chunked", "native", "xla"])
def test_segments_of_any_integers_and_a_window_of_any_size(form):
  q, k, v = (oracle.normal(seed, 2, 9, 2, 4)[0] for seed in range(3))
  ids = jnp.asarray([[0, 0, 1, 1, 1, 2, 2, 2, 2]] * 2)
  run = functools.partial(attention, q, k, v, form=form)
  expected = run(segment_ids=ids.astype(jnp.int32))
  for dtype in (jnp.uint8, jnp.int16):
    jax.tree.map(np.testing.assert_array_equal, run(segment_ids=ids.astype(dtype)), expected)
  jax.tree.map(np.testing.assert_array_equal, run(window=2**31 - 1), run(window=0))


def test_large_scores_are_as_near_by_cpp_as_by_blocks():
  """Scores of a thousand: what is lost in float32's sum is lost in every form that makes the weights again."""
  case = (1, 24, 24, 2, 2, 8, False, {**PLAIN, "scale": 100.0})
  given, exact, how = arrays(case, "float32")
  slopes = reference.attention(*exact[:3], **how, to_output=exact[3], to_sum=exact[4])[2]
  (_, ours), (_, theirs) = (by(form, given, how) for form in ("native", "chunked"))
  for a, b, true in zip(ours, theirs, slopes, strict=True):
    error, allowed = (float(np.abs(np.asarray(each, np.float64) - true).max()) for each in (a, b))
    assert error <= 2 * allowed + 1e-5 * float(np.abs(true).max())


def test_every_value_of_a_far_query_is_right():
  """Scores far apart: weights below the smallest number are zeros, and a softmax is still a softmax."""
  q, k, v = (oracle.normal(seed, 1, 40, 1, 8, scale=scale)[0] for seed, scale in ((1, 30.0), (2, 30.0), (3, 1.0)))
  found, expected = (jax.jit(functools.partial(attention, form=form))(q, k, v) for form in ("native", "xla"))
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, expected)


def test_what_is_no_number_is_told_and_not_hidden():
  q, k, v = (oracle.normal(seed, 2, 9, 2, 4)[0] for seed in range(3))
  output, sums = attention(q.at[1, 3, 1, 2].set(jnp.nan), k, v, form="native")
  assert np.isnan(output[1, 3, 1]).all()
  assert np.isnan(sums[1, 3, 1])
  assert np.isnan(np.asarray(output)).sum() == 4


def test_where_the_platform_decides_the_gradients_are_the_same():
  """For a TPU these have another form; XLA's, among others, does not keep the softmax's weights."""
  arrays = [oracle.normal(seed, 1, 512, 1, 4)[0] for seed in range(3)]

  def slopes(form):
    total = lambda *x: jnp.square(attention(*x, causal=True, form=form)[0]).sum()  # noqa: E731
    return jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*arrays)

  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), slopes(None), slopes("xla"))


@pytest.mark.parametrize("form", ["chunked", "native"])
def test_under_vmap_and_remat_it_is_the_same(form):
  given, _, how = arrays(CASES["everything"], "float32")
  how = {**how, "form": form}

  def slopes(q, k, v):
    return jax.grad(jax.checkpoint(lambda *x: attention(*x, **how)[0].sum()), argnums=(0, 1, 2))(q, k, v)

  q, k, v = given[:3]
  plain = jax.jit(jax.grad(lambda *x: attention(*x, **how)[0].sum(), argnums=(0, 1, 2)))(q, k, v)
  near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  jax.tree.map(near, jax.jit(slopes)(q, k, v), plain)
  twice = jax.jit(jax.vmap(slopes, in_axes=(3, None, None)))(jnp.stack([q, 2 * q], axis=3), k, v)
  jax.tree.map(lambda a, b: near(a[0], b), twice, plain)


def test_a_batch_divided_over_devices_stays_where_it_is():
  case = (8, *CASES["causal"][1:])
  given, _, how = arrays(case, "float32")
  mesh = Mesh(np.asarray(jax.devices()), ("data",))
  rows = NamedSharding(mesh, PartitionSpec("data"))
  q, k, v = (jax.device_put(each, rows) for each in given[:3])
  slopes = jax.grad(lambda *x: attention(*x, **how, form="chunked")[0].sum(), argnums=(0, 1, 2))
  compiled = jax.jit(slopes, out_shardings=rows).lower(q, k, v).compile()
  assert "all-gather" not in compiled.as_text()
  near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  found, alone = compiled(q, k, v), jax.jit(slopes)(*given[:3])
  jax.tree.map(near, found, alone)
  part = PartitionSpec("data")
  apart = jax.jit(jax.shard_map(slopes, mesh=mesh, in_specs=part, out_specs=part))(q, k, v)
  jax.tree.map(near, apart, alone)


def test_the_scores_are_never_all_there():
  x = jax.ShapeDtypeStruct((1, 4096, 2, 16), jnp.float32)

  def temporaries(form):
    slopes = jax.grad(lambda *x: attention(*x, causal=True, form=form)[0].sum(), argnums=(0, 1, 2))
    with tuning.trying("attention", "chunked", {"queries": 128, "keys": 128}):
      return jax.jit(slopes).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

  scores = 2 * 4096 * 4096 * 4
  assert temporaries("xla") > scores
  assert temporaries("chunked") < 0.05 * scores
  assert temporaries("native") < 0.05 * scores


def test_blocks_that_nobody_sees_are_not_computed():
  """Their keys are not even read: NaN in them reaches nothing."""
  q, k, v = (oracle.normal(seed, 1, 32, 1, 4)[0] for seed in range(3))
  with tuning.trying("attention", "chunked", {"queries": 8, "keys": 8}):
    output, _ = attention(q, k, v.at[:, 8:].set(jnp.nan), causal=True, form="chunked")
    assert np.isfinite(np.asarray(output[:, :8])).all()
    output, _ = attention(q, k, v.at[:, :8].set(jnp.nan), causal=True, window=8, form="chunked")
    assert np.isfinite(np.asarray(output[:, 16:])).all()


@pytest.mark.parametrize(
  ("k", "v", "more"),
  [
    ((2, 4, 3, 8), (2, 4, 3, 8), {}),
    ((2, 4, 2, 8), (2, 5, 2, 8), {}),
    ((2, 4, 2, 8), (2, 4, 2, 8), {"segment_ids": jnp.zeros((2, 4), jnp.int32)}),
    ((2, 5, 2, 8), (2, 5, 2, 8), {"window": -1}),
    ((2, 5, 2, 8), (2, 5, 2, 8), {"softcap": -1.0}),
    ((2, 5, 2, 8), (2, 5, 2, 8), {"segment_ids": jnp.zeros((2, 5))}),
    ((2, 5, 0, 8), (2, 5, 0, 8), {}),
  ],
)
def test_what_does_not_belong_together_is_said(k, v, more):
  with pytest.raises(ValueError, match="attention: "):
    attention(jnp.zeros((2, 5, 4, 8)), jnp.zeros(k), jnp.zeros(v), **more)
