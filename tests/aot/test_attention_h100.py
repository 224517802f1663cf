"""Attention compiled for an H100 that is not here: which kernels the table takes, how many, and in how much memory."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from research import aot
from research.kernels.attention import attention

pytestmark = pytest.mark.aot

BATCH, HEADS = 2, 8
CASES = {
  # head width, queries and keys, key heads, whether there are segments, options, the kernels of either direction
  "causal": (128, 4096, 8, False, {"causal": True}, "cudnn"),
  "all see all, narrow": (64, 4096, 8, False, {}, "cudnn"),
  "a window": (64, 4096, 8, False, {"causal": True, "window": 1000}, "cudnn"),
  "a window to both sides": (128, 4096, 8, False, {"window": 1000}, "mosaic"),
  "documents": (128, 4096, 8, True, {"causal": True}, "mosaic"),
  "documents, narrow": (64, 4096, 8, True, {"causal": True}, "mosaic"),
  "a soft cap": (128, 4096, 8, False, {"causal": True, "softcap": 30.0}, "mosaic"),
  "heads that share keys": (128, 4096, 2, True, {"causal": True}, "mosaic"),
  "a length that nothing divides": (128, 4001, 8, True, {"causal": True}, "mosaic"),
  "everything": (64, 4001, 2, True, {"causal": True, "window": 900, "softcap": 30.0, "scale": 0.2}, "mosaic"),
}
FORWARD = {"cudnn": Counter({"__cudnn$fmhaSoftmax": 1}), "mosaic": Counter({"mosaic_gpu_v2": 1})}
BACKWARD = {"cudnn": Counter({"__cudnn$fmhaSoftmaxBackward": 1}), "mosaic": Counter({"mosaic_gpu_v2": 2})}


def compiled(function, *arrays):
  (device,) = aot.gpu("h100")
  place = SingleDeviceSharding(device)
  arrays = [jax.ShapeDtypeStruct(*array, sharding=place) for array in arrays]
  return jax.jit(function, compiler_options=aot.OPTIONS).trace(*arrays).lower(lowering_platforms=("cuda",)).compile()


def calls(program):
  """{custom call: how many of it} of a program."""
  return Counter(re.findall(r'custom_call_target="([^"]*)"', program.as_text()))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_table_takes_kernels_that_hold_no_scores(case):
  width, length, groups, has_segments, how, kind = case
  q, k = (((BATCH, length, each, width), jnp.bfloat16) for each in (HEADS, groups))
  segments = [((BATCH, length), jnp.int32)] if has_segments else []

  def run(q, k, v, *segments):
    return attention(q, k, v, **how, segment_ids=segments[0] if segments else None)

  def gradients(q, k, v, to_output, *segments):
    return jax.vjp(lambda *x: run(*x, *segments)[0], q, k, v)[1](to_output)

  forward = compiled(run, q, k, k, *segments)
  both = compiled(gradients, q, k, k, q, *segments)
  assert calls(forward) == FORWARD[kind]
  assert calls(both) == FORWARD[kind] + BACKWARD[kind]
  long = -(-length // 128) * 128  # as the kernels have it: then all arrays are there once more
  size = BATCH * HEADS * long * width * 2  # of the output
  terms = BATCH * HEADS * long * 4  # a float32 for each query
  few = {program: program.memory_analysis().temp_size_in_bytes for program in (forward, both)}
  assert few[forward] <= 4 * size * (long > length) + 4 * terms
  assert few[both] <= (1 + 6 * (long > length)) * size + 8 * terms < BATCH * HEADS * length * length * 4 / 8


def test_who_has_a_gradient_of_the_log_sum_exp_has_our_backward_kernels():
  q = ((BATCH, 4096, HEADS, 128), jnp.bfloat16)

  def gradients(q, k, v, to_output, to_sums):
    return jax.vjp(lambda *x: attention(*x, causal=True), q, k, v)[1]((to_output, to_sums))

  program = compiled(gradients, q, q, q, q, ((BATCH, 4096, HEADS), jnp.float32))
  assert calls(program) == FORWARD["cudnn"] + BACKWARD["mosaic"]


def test_under_shard_map_and_remat_each_device_has_its_rows():
  mesh, part = Mesh(np.asarray(aot.gpu("h100", 2)), ("data",)), PartitionSpec("data")
  rows = NamedSharding(mesh, part)
  x = jax.ShapeDtypeStruct((4, 1024, 2, 64), jnp.bfloat16, sharding=rows)
  ids = jax.ShapeDtypeStruct((4, 1024), jnp.int32, sharding=rows)

  def slopes(q, k, v, ids):
    run = jax.checkpoint(lambda *x: attention(*x, causal=True, segment_ids=ids)[0].astype(jnp.float32).sum())
    return jax.grad(run, argnums=(0, 1, 2))(q, k, v)

  run = jax.jit(jax.shard_map(slopes, mesh=mesh, in_specs=part, out_specs=part), compiler_options=aot.OPTIONS)
  program = run.trace(x, x, x, ids).lower(lowering_platforms=("cuda",)).compile()
  assert calls(program)["mosaic_gpu_v2"] == 3
  assert "bf16[2,1024,2,64]" in program.as_text()
  assert "all-gather" not in program.as_text()


def test_float32_is_left_to_what_keeps_a_block_of_scores():
  q = ((BATCH, 4096, HEADS, 64), jnp.float32)
  program = compiled(lambda q, k, v: attention(q, k, v, causal=True), q, q, q)
  assert not {"mosaic_gpu_v2", "__cudnn$fmhaSoftmax"} & calls(program).keys()
