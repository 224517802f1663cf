"""The kernels for TPUs, interpreted on a CPU: against the definition in float64 and XLA's form, and for races.

What was not written is NaN there, in results too. Blocks are of eight queries and eight keys, so that small arrays have
several.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter  # where races are told
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, PartitionSpec

from research.errors import UserError
from research.kernels import choice, tuning
from research.kernels.attention import attention, masks, reference
from research.kernels.attention import pallas_tpu_visits as of
from tests.research.kernels import oracle
from tests.research.kernels.test_attention_kernel import PLAIN, arrays, by

BLOCKS = {"queries": 8, "keys": 8}
CASES = {
  # batch, queries, keys, heads, key heads, head width, whether there are segments, what is masked and how
  "all see all": (1, 13, 13, 1, 1, 4, False, PLAIN),
  "causal": (2, 17, 17, 2, 1, 5, False, {**PLAIN, "causal": True}),
  "causal, more keys than queries": (1, 5, 19, 2, 2, 4, False, {**PLAIN, "causal": True}),
  "causal, rows before the first key": (1, 11, 4, 2, 1, 3, False, {**PLAIN, "causal": True}),
  "a window": (1, 23, 23, 2, 1, 4, False, {**PLAIN, "causal": True, "window": 6}),
  "a window to both sides": (1, 19, 19, 1, 1, 4, False, {**PLAIN, "window": 5}),
  "documents": (2, 16, 16, 1, 1, 4, True, {**PLAIN, "causal": True}),
  "documents seen from both sides": (2, 12, 12, 2, 1, 4, True, PLAIN),
  "everything": (1, 21, 21, 2, 1, 7, True, {"causal": True, "window": 9, "softcap": 3.0, "scale": 0.7}),
  "one token": (2, 1, 1, 2, 1, 3, False, {**PLAIN, "causal": True}),
}
NARROW = [CASES["everything"], pytest.param(CASES["causal"], marks=pytest.mark.slow)]  # in bfloat16 as well
near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
  """Small blocks, and the kernels may run; yields what is known of each that ran. None may have had a race."""
  watched = []

  class Races(interpreter.RaceDetectionState):
    def __init__(self, *args, **kwargs):
      super().__init__(*args, **kwargs)
      watched.append(self)

  monkeypatch.setattr(interpreter, "RaceDetectionState", Races)
  monkeypatch.setattr(choice, "platform", lambda: "tpu")
  interpret = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
  with pltpu.force_tpu_interpret_mode(interpret), tuning.trying("attention", "pallas_tpu", BLOCKS):
    yield watched
  pltpu.reset_tpu_interpret_mode_state()
  assert not [races for races in watched if races.races_found]


def check(kernels, case, dtype):
  given, exact, how = arrays(case, dtype)
  q, k, v, to_output, to_sum = exact
  output, sums, slopes = reference.attention(q, k, v, **how, to_output=to_output, to_sum=to_sum)
  (ours, our_slopes), (theirs, their_slopes) = (by(form, given, how) for form in ("pallas_tpu", "xla"))
  jax.block_until_ready(our_slopes)
  assert len(kernels) == 3  # forward, to the queries, to the keys
  blind = np.isneginf(sums)
  np.testing.assert_array_equal(np.isneginf(ours[1]), blind)
  assert not np.asarray(ours[0].astype(jnp.float32))[blind].any()
  seen = lambda values: (values[0], jnp.where(blind, 0.0, values[1]))  # noqa: E731
  oracle.check(seen(ours), seen(theirs), (output, np.where(blind, 0.0, sums)), dtype)
  oracle.check(our_slopes, their_slopes, slopes, dtype, gradient=True)
  assert [each.dtype for each in (ours[0], *our_slopes)] == [jnp.dtype(dtype)] * 4


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_is_its_definition_as_nearly_as_xla_is(kernels, case):
  check(kernels, case, "float32")


@pytest.mark.parametrize("case", NARROW, ids=["everything", "causal"])
def test_in_bfloat16_too(kernels, case):
  check(kernels, case, "bfloat16")


def check_steps(sizes, how, segments, found, by_key):
  """The list of steps against every pair of places. Returns how many there are."""
  (length, keys), (blocks_i, blocks_j), padded = sizes[:2], sizes.blocks, sizes.padded
  rows = len(segments[0]) if segments else 1
  seen = masks.seen(np.arange(length) + (keys - length), np.arange(keys), how, segments)
  whole = np.zeros((rows, *padded), bool)
  whole[:, :length, :keys] = True if seen is None else seen
  cut = lambda whole: whole.reshape(rows, blocks_i, sizes.query, blocks_j, sizes.key)  # noqa: E731
  met = cut(whole).any(axis=(2, 4))
  whole[:, length:] = not segments  # queries that fill a block up may see what they like, but they have no segment
  met, whole = (each.swapaxes(1, 2) if by_key else each for each in (met, cut(whole).all(axis=(2, 4)) & met))
  steps = int(found.steps)
  assert steps <= len(found.outer_T) <= of.most(sizes, how, rows)
  taken = np.stack([np.asarray(each)[:steps] for each in found[:4]], axis=1)
  place = 0
  for row, outer in np.ndindex(met.shape[:2]):
    expected = np.flatnonzero(met[row, outer]) if met[row, outer].any() else np.zeros(1, int)
    mine = taken[place : place + len(expected)]
    np.testing.assert_array_equal(mine[:, :3], [(row, outer, inner) for inner in expected])
    flags = whole[row, outer, expected] * of.WHOLE
    flags[0] |= of.FIRST
    flags[-1] |= of.LAST
    np.testing.assert_array_equal(mine[:, 3], flags)
    assert {*(flags & of.WHOLE > 0).tolist()} <= {*found.kinds}
    place += len(expected)
  assert place == steps
  return steps


def test_blocks_meet_once_where_something_is_seen_and_else_never():
  random = np.random.default_rng(0)
  draw = lambda: of.Sizes(*random.integers(1, 40, 2).tolist(), *random.integers(1, 12, 2).tolist())  # noqa: E731
  hows = [masks.How(causal, window, 0.0, 1.0) for causal in (False, True) for window in (0, 1, 7)]
  steps = 0
  for number in range(300):
    sizes, how, by_key = draw(), hows[number % 6], bool(number // 6 % 2)
    steps += check_steps(sizes, how, (), of.visits(sizes, how, by_key=by_key), by_key)
  for number, how in enumerate(hows):
    sizes, by_key = draw(), number % 2 == 0
    listed = jax.jit(lambda *filled, of_how=(sizes, how, by_key): of.visits(*of_how[:2], filled, by_key=of_how[2])[:5])
    for _ in range(20):  # documents in order, some of them nobody's
      ids = np.sort(random.integers(-1, 5, (2, 80)), axis=1).astype(np.int32)
      segments = tuple(ids[:, -size:] for size in sizes[:2])
      filled = [np.full((2, size), -1, np.int32) for size in sizes.padded]
      for each, whole in zip(segments, filled, strict=True):
        whole[:, : each.shape[1]] = each
      steps += check_steps(sizes, how, segments, of.Visits(*listed(*filled), (0, 1)), by_key)
  assert steps > 3000


def slopes_of(how):
  def slopes(q, k, v):
    return jax.grad(lambda *x: attention(*x, **how)[0].sum(), argnums=(0, 1, 2))(q, k, v)

  return slopes


def test_segments_in_any_order_are_seen_as_they_are():
  """Blocks are chosen by least and greatest segment: then some are visited in vain, and none is missed."""
  given, _, how = arrays(CASES["documents"], "float32")
  ids = jnp.asarray(np.random.default_rng(1).integers(-1, 3, (2, 16)), jnp.int32)
  ours, theirs = (by(form, given, {**how, "segment_ids": ids}) for form in ("pallas_tpu", "xla"))
  np.testing.assert_array_equal(np.isneginf(ours[0][1]), np.isneginf(theirs[0][1]))
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), ours, theirs)


def test_blocks_that_nobody_sees_are_not_computed():
  """NaN in them reaches nothing: a weight of zero would not keep it away."""
  q, k, v = (oracle.normal(seed, 1, 32, 1, 4)[0] for seed in range(3))
  bad = lambda x, *places: functools.reduce(lambda x, i: x.at[:, i : i + 8].set(jnp.nan), places, x)  # noqa: E731
  ids = jnp.repeat(jnp.arange(4, dtype=jnp.int32), 8)[None]
  for how, nan_keys, good in (
    ({"causal": True}, (8, 16, 24), slice(0, 8)),
    ({"causal": True, "window": 8}, (0,), slice(16, 32)),
    ({"segment_ids": ids}, (0, 16, 24), slice(8, 16)),
  ):

    def total(q, k, v, good=good, how=how):
      output, sums = attention(q, k, v, **how, form="pallas_tpu")
      return output[:, good].sum() + sums[:, good].sum()

    slopes = jax.jit(jax.value_and_grad(total))
    value, to_q = slopes(q, bad(k, *nan_keys), bad(v, *nan_keys))
    assert np.isfinite(value)
    assert np.isfinite(np.asarray(to_q[:, good])).all()
  # And queries, which the gradients to keys pass over.
  slopes = jax.jit(slopes_of({"segment_ids": ids, "form": "pallas_tpu"}))
  _, to_k, to_v = slopes(bad(q, 0, 16), k, v)
  for found in (to_k, to_v):
    np.testing.assert_array_equal(np.isfinite(np.asarray(found)).all(axis=(0, 2, 3)), ids[0] % 2 == 1)


def test_under_remat_and_vmap_it_is_the_same(monkeypatch):
  given, _, how = arrays((1, 9, 9, 2, 1, 4, True, CASES["everything"][7]), "float32")
  ours, theirs = (slopes_of({**how, "form": form}) for form in ("pallas_tpu", "xla"))
  q, k, v = given[:3]
  plain = jax.jit(theirs)(q, k, v)
  jax.tree.map(near, jax.jit(jax.checkpoint(ours))(q, k, v), plain)
  # The interpreter cannot batch a grid of which it is told what of it is parallel; compilation can.
  monkeypatch.setattr(pltpu, "CompilerParams", lambda **_: None)
  ids = jnp.stack([how["segment_ids"][0], jnp.zeros((1, 9), jnp.int32)])

  def both(q, ids):
    return slopes_of({**how, "segment_ids": ids, "form": "pallas_tpu"})(q, k, v)

  twice = jax.jit(jax.vmap(both, in_axes=(3, 0)))(jnp.stack([q, 2 * q], axis=3), ids)
  jax.tree.map(lambda a, b: near(a[0], b), twice, plain)
  without = slopes_of({**how, "segment_ids": None, "form": "xla"})(2 * q, k, v)
  jax.tree.map(lambda a, b: near(a[1], b), twice, without)


@pytest.mark.parametrize(("devices", "checked"), [((2, 1), True), pytest.param((2, 2), False, marks=pytest.mark.slow)])
def test_each_device_has_its_part_of_batch_and_heads(devices, checked):
  given, _, how = arrays((2, 9, 9, 4, 2, 4, False, CASES["causal"][7]), "float32")
  part = PartitionSpec("data", None, "model")
  mesh = Mesh(np.asarray(jax.devices()[: np.prod(devices)]).reshape(devices), ("data", "model"))
  slopes = slopes_of({**how, "form": "pallas_tpu"})
  apart = jax.shard_map(slopes, mesh=mesh, in_specs=part, out_specs=part, check_vma=checked)
  jax.tree.map(near, jax.jit(apart)(*given[:3]), jax.jit(slopes_of({**how, "form": "xla"}))(*given[:3]))


def test_two_cores_may_share_the_batch_and_the_heads():
  """As on chips of two cores: what is said to be parallel is divided between them."""
  given, _, how = arrays((2, 9, 9, 2, 1, 4, False, CASES["causal"][7]), "float32")
  ours, theirs = (slopes_of({**how, "form": form}) for form in ("pallas_tpu", "xla"))
  with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)):
    jax.tree.map(near, jax.jit(ours)(*given[:3]), jax.jit(theirs)(*given[:3]))


def refusal(*shapes, dtype="bfloat16", **options):
  """What the form says of queries and keys of these shapes."""
  arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in (shapes[0], shapes[1], shapes[1], *shapes[2:])]
  how = masks.How(True, 0, 0.0, 1.0)
  form = choice.OPS["attention"].forms["pallas_tpu"]
  return form.supports([x.shape for x in arrays], [x.dtype for x in arrays], "tpu", how=how)


def test_what_it_cannot_do_is_said_and_the_table_goes_on():
  x = jnp.zeros((1, 9, 1, 300))
  with pytest.raises(UserError, match="attention cannot run as pallas_tpu: heads of 300 are wider than 256"):
    attention(x, x, x, form="pallas_tpu")
  assert "float16" in refusal((1, 9, 1, 8), (1, 9, 1, 8), dtype="float16")
  assert "nothing" in refusal((1, 0, 1, 8), (1, 0, 1, 8))
  long = (64, 2**15, 1, 64)
  with tuning.trying("attention", "pallas_tpu", {"queries": 512, "keys": 512}):
    assert refusal(long, long) is None
    assert "133120 steps" in refusal(long, long, long[:2], long[:2])  # 64 rows of 65 · 64 / 2 blocks, each with its own
  mesh = Mesh(np.asarray(jax.devices()).reshape(4, 2), ("data", "model"))
  with jax.set_mesh(mesh):
    assert "over the mesh's data and model" in refusal((8, 9, 2, 8), (8, 9, 2, 8))


def test_the_table_takes_it_for_many_keys_alone_or_inside_shard_map(monkeypatch):
  op = choice.OPS["attention"]
  how = masks.How(True, 0, 0.0, 1.0)

  def chosen(length, keys, platform="tpu"):
    shapes = [(8, size, 2, 8) for size in (length, keys, keys)]
    return op.choose(shapes, [jnp.dtype("float32")] * 3, platform, how=how)

  assert [chosen(*each) for each in ((512, 512), (1, 4096), (256, 256))] == ["xla"] * 3  # eight devices are here
  inside = []
  mesh, part = Mesh(np.asarray(jax.devices()), ("data",)), PartitionSpec("data")
  note = lambda x: (inside.append(chosen(512, 512)), x)[1]  # noqa: E731
  jax.eval_shape(jax.shard_map(note, mesh=mesh, in_specs=part, out_specs=part), jnp.zeros(8))
  assert inside == ["pallas_tpu"]
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  assert [chosen(*each) for each in ((512, 512), (1, 4096), (256, 256))] == ["pallas_tpu", "xla", "xla"]
  monkeypatch.setattr(choice, "platform", lambda: "cpu")
  assert [chosen(512, 512, each) for each in choice.PLATFORMS] == ["native", "xla", "pallas_tpu"]
  with pytest.raises(UserError, match="attention cannot run as pallas_tpu: it runs on tpu, and this is cpu"):
    attention(*[jnp.zeros((1, 9, 1, 8))] * 3, form="pallas_tpu")
