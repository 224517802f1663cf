"""The Mosaic GPU kernels, interpreted on a CPU with races looked for, by the rule that the other forms go by; and how
rows are cut, and divided over devices.

Whatever a kernel does not write is NaN in the interpreter, so is shared memory before it is written to.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call  # no public door tells of races
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from research.errors import UserError
from research.kernels import choice, mosaic, tuning
from research.kernels.norm import mosaic_gpu, norm, shards, tiles, xla
from research.kernels.norm.how import How
from tests.research.kernels import oracle
from tests.research.kernels.test_norm import EPSILON, arrays, by, exactly


@pytest.fixture
def interpreted(monkeypatch):
  """Two blocks, steps of a kilobyte, two of them under way."""
  for op in (choice.OPS["norm"], choice.OPS["norm.gradients"]):
    monkeypatch.setitem(op.forms, "mosaic_gpu", dataclasses.replace(op.forms["mosaic_gpu"], platforms=()))
  sizes = {"kilobytes": 1, "stages": 2, "blocks": 2}
  with mosaic.interpreted(races=True), tuning.trying("norm", "mosaic_gpu", sizes):
    yield


CASES = {  # kind, shape, parts, dtype
  "four rows a tile": ("layer", (5, 4, 64), "everything", "float32"),
  "one row a tile": ("layer", (7, 128), "everything", "float32"),
  "bfloat16": ("layer", (3, 8, 192), "everything", "bfloat16"),
  "rms": ("rms", (24, 64), "scale", "bfloat16"),
  "rms, one row a tile": ("rms", (3, 256), "everything", "float32"),
  "bare": ("layer", (8, 64), "bare", "float32"),
  "no scale": ("layer", (1, 384), "bias and residual", "float32"),
  "four rows in pieces": ("layer", (8, 1344), "scale and bias", "bfloat16"),
  "one row in pieces": ("rms", (3, 4224), "scale", "float32"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_is_its_definition(interpreted, case):
  kind, shape, parts, dtype = case
  given, exact = arrays(shape, parts, dtype)
  values, slopes = exactly(exact, kind)
  (ours, our_slopes), (theirs, their_slopes) = (by(form, given, kind) for form in ("mosaic_gpu", "xla"))
  oracle.check(ours, theirs, values, dtype)
  oracle.check(our_slopes, their_slopes, slopes, dtype, gradient=True)
  assert {each.dtype for each in ours} == {jnp.dtype(dtype)}
  assert not mosaic.races_found()


def test_its_values_are_float32_from_bfloat16_if_asked(interpreted):
  given, exact = arrays((4, 64), "scale and bias", "bfloat16")
  given["to_y"] = given["to_y"].astype(jnp.float32)
  values, slopes = exactly(exact, "layer")
  (ours, our_slopes), (theirs, their_slopes) = (
    by(form, given, "layer", dtype="float32") for form in ("mosaic_gpu", "xla")
  )
  oracle.check(ours, theirs, values, "float32")
  oracle.check(our_slopes, their_slopes, slopes, "bfloat16", gradient=True)
  assert [each.dtype for each in (ours[0], our_slopes["x"])] == ["float32", "bfloat16"]


def test_under_vmap_each_has_sums_of_its_own(interpreted):
  given, _ = arrays((3, 4, 64), "everything", "float32")
  inputs = [given[name] for name in ("x", "residual", "scale_D", "bias_D")]

  def slopes(form, x, residual, scale_D, bias_D):
    def total(*inputs):
      y, both = norm(*inputs[:3], kind="layer", epsilon=EPSILON, residual=inputs[3], form=form)
      return jnp.sin(y).sum() + (both**3).sum()

    return jax.grad(total, argnums=(0, 1, 2, 3))(x, scale_D, bias_D, residual)

  near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  for axes in ((0, 0, None, None), (0, None, 0, None)):
    wide = [each if axis is None else jnp.stack([each, 2 * each]) for each, axis in zip(inputs, axes, strict=True)]
    ours, theirs = (
      jax.jit(jax.vmap(functools.partial(slopes, form), in_axes=axes))(*wide) for form in ("mosaic_gpu", "xla")
    )
    jax.tree.map(near, ours, theirs)


# The interpreter of jax 0.10 does not tell copies from other writes, and so misses the other barrier.
BARRIERS = ["barrier_wait"] + (["commit_smem"] if jax.__version_info__ >= (0, 11) else [])


@pytest.mark.parametrize("left_out", BARRIERS)
def test_without_its_barriers_it_races(interpreted, monkeypatch, left_out):
  monkeypatch.setattr(f"research.kernels.norm.blocks.plgpu.{left_out}", lambda *barrier: None)
  run = jax.jit(functools.partial(norm, kind="rms", epsilon=1e-5, form="mosaic_gpu"))
  told = ""
  try:
    jax.block_until_ready(run(jnp.ones((64, 64))))
  except Exception as error:  # of a callback
    told = str(error)
  assert "RACE DETECTED" in told or mosaic.races_found()
  interpret_pallas_call.reset_gpu_interpret_mode_state()


COUNTS = (1, 3, 4, 96, 1001, 4096, 16_384)
COLUMNS = (64, 192, 256, 768, 1024, 1344, 1600, 2048, 4096, 8192)
INPUTS = [((2,), 2), ((4, 4), 2), ((2, 2), 1), ((2, 4), 1), ((4, 4, 4), 1)]  # sizes of values, parameters


@pytest.mark.parametrize("width", COLUMNS)
def test_plans_fit_and_leave_nothing_out(width):
  for count, (sizes, parameters) in itertools.product(COUNTS, INPUTS):
    plan = tiles.plan(count, width, sizes, parameters=parameters, kilobytes=16, stages=4, blocks=264)
    if isinstance(plan, str):
      assert width % 128, plan
      assert count % 4, plan
      continue
    tile, lanes = plan.tile, 128 // plan.tile.rows
    assert plan.rows * plan.steps == count
    assert plan.rows % tile.rows == width % tile.piece == tile.piece % (lanes * tile.vector) == 0
    assert tile.piece // lanes <= 32  # values for each thread
    assert 1 <= plan.blocks <= plan.steps
    kept = parameters * width * 4 if plan.in_pieces else 0
    used = plan.stages * plan.rows * width * sum(sizes) + kept
    assert used + 3072 <= 227 * 1024 // (2 if plan.blocks > 132 else 1)


@pytest.mark.parametrize(
  ("shape", "reason"),
  [
    ((8, 100), "rows of 100 are no multiple of 64"),
    ((8, 16_384), "rows of 16384 are wider than 8192"),
    ((3, 192), "3 rows of 192 are no multiple of 4"),
    ((0, 256), "there are no rows"),
  ],
)
def test_what_it_cannot_do_is_said(interpreted, shape, reason):
  with pytest.raises(UserError, match=f"norm cannot run as mosaic_gpu: {reason}"):
    norm(jnp.zeros(shape), kind="layer", epsilon=1e-5, form="mosaic_gpu")


def test_only_wide_rows_on_cuda_go_to_it_by_themselves():
  def lowered(rows, width, platform):
    program = jax.jit(lambda x: jax.grad(lambda x: norm(x, kind="rms", epsilon=1e-5).sum())(x))
    traced = program.trace(jax.ShapeDtypeStruct((rows, width), jnp.float32))
    return traced.lower(lowering_platforms=(platform,)).as_text()

  assert lowered(64, 256, "cuda").count("mosaic_gpu_v2") == 2
  for rows, width, platform in ((64, 128, "cuda"), (1021, 256, "cuda"), (64, 256, "cpu"), (64, 256, "tpu")):
    assert "mosaic_gpu" not in lowered(rows, width, platform)


ROWS, NUMBERS, PARAMETERS = shards.ROWS, shards.NUMBERS, shards.PARAMETERS
HOW = How("layer", EPSILON, "float32", True, True, True)


def divided(x, residual, scale_D, bias_D, to_y, to_total):
  """Both passes with formulas in the kernels' place, which the interpreter cannot divide."""

  def run(formula, arrays, sorts, results):
    kernel = lambda *each: mosaic_gpu._by_formulas(formula, each, sorts, results, HOW)  # noqa: E731
    return shards.run(kernel, arrays, sorts, results)

  sorts, results = [ROWS, ROWS, PARAMETERS, PARAMETERS], [ROWS, ROWS, NUMBERS, NUMBERS]
  y, total, mean, inverse = run(xla.forward, (x, residual, scale_D, bias_D), sorts, results)
  sorts, results = [ROWS, NUMBERS, NUMBERS, PARAMETERS, ROWS, ROWS], [ROWS, PARAMETERS, PARAMETERS]
  return y, total, *run(xla.backward, (total, mean, inverse, scale_D, to_y, to_total), sorts, results)


def plainly(x, residual, scale_D, bias_D, to_y, to_total):
  y, total, mean, inverse = xla.forward(x, residual, scale_D, bias_D, how=HOW)
  return y, total, *xla.backward(total, mean, inverse, scale_D, to_y, to_total, how=HOW)


def six(shape):
  given, _ = arrays(shape, "everything", "float32")
  return [given[name] for name in ("x", "residual", "scale_D", "bias_D", "to_y", "to_total")]


near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", [("data",), (None, "length"), ("data", "length"), (("data", "length"),)], ids=str)
def test_rows_divided_over_devices_stay_where_they_are_and_sums_are_added_up(spec):
  inputs = six((8, 2, 8))
  mesh = Mesh(np.asarray(jax.devices()).reshape(4, 2), ("data", "length"))
  place = lambda each: NamedSharding(mesh, PartitionSpec(*spec) if each.ndim == 3 else PartitionSpec())  # noqa: E731
  compiled = jax.jit(divided).lower(*(jax.device_put(each, place(each)) for each in inputs)).compile()
  text = compiled.as_text()
  assert "all-reduce" in text
  assert not any(each in text for each in ("all-gather", "all-to-all", "collective-permute"))
  found = compiled(*(jax.device_put(each, place(each)) for each in inputs))
  assert [each.sharding.spec for each in found[:3]] == [PartitionSpec(*spec)] * 3
  jax.tree.map(near, found, plainly(*inputs))


@pytest.mark.parametrize("axes", [(0,) * 6, (0, 0, None, None, 0, 0), (None, 1, 0, None, 0, None)], ids=str)
def test_vmap_of_vmap_divides_no_parameters_that_are_shared(axes):
  inputs = six((2, 3, 8))
  inner = [each if axis is None else jnp.stack([each, 2 * each], axis) for each, axis in zip(inputs, axes, strict=True)]
  outer = (0, None, None, 0, 0, None)
  inner = [each if axis is None else jnp.stack([each, -each]) for each, axis in zip(inner, outer, strict=True)]
  ours, theirs = (jax.jit(jax.vmap(jax.vmap(each, axes), outer))(*inner) for each in (divided, plainly))
  jax.tree.map(near, ours, theirs)


def test_a_device_whose_own_rows_are_too_few_has_the_formulas():
  x = six((3, 64))[0]
  y, inverse = mosaic_gpu.forward(x, how=How("rms", EPSILON, "float32", False, False, False))
  jax.tree.map(near, [y, inverse], [*xla.forward(x, how=How("rms", EPSILON, "float32", False, False, False))])
