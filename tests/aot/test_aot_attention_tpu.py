"""Attention compiled for TPUs that are not here: its kernels are in the program, and what memory they take."""

import contextlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from research import aot, losses
from research.kernels import choice, tuning
from research.kernels.attention import attention, pallas_tpu
from research.models.language_model import LanguageModel
from research.models.transformer_config import Config

pytestmark = pytest.mark.aot

CAUSAL = {"causal": True}
CASES = {
  # batch, queries, keys, heads, key heads, head width, dtype, whether there are segments, what is masked and how
  "causal": (4, 4096, 4096, 16, 16, 64, "bfloat16", False, CAUSAL),
  "all see all": (4, 4096, 4096, 16, 16, 64, "float32", False, {}),
  "shared key heads": (4, 4096, 4096, 16, 4, 128, "bfloat16", False, CAUSAL),
  "wide heads": (4, 4096, 4096, 8, 2, 256, "bfloat16", False, CAUSAL),
  "wide heads, float32": (2, 4096, 4096, 8, 2, 256, "float32", True, CAUSAL),
  "documents": (4, 4096, 4096, 16, 16, 64, "bfloat16", True, CAUSAL),
  "documents, no full block": (4, 4001, 4001, 8, 8, 128, "bfloat16", True, CAUSAL),
  "a window": (4, 4096, 4096, 16, 16, 64, "bfloat16", False, {**CAUSAL, "window": 1000}),
  "a soft cap": (4, 4001, 4001, 8, 8, 128, "bfloat16", False, {**CAUSAL, "softcap": 30.0}),
  "everything": (4, 1999, 4001, 16, 2, 64, "float32", True, {**CAUSAL, "window": 1000, "softcap": 30.0, "scale": 0.1}),
  "heads of no power of two": (4, 4096, 4096, 8, 8, 80, "bfloat16", False, CAUSAL),
}


def value_of(how):
  """A function of (q, k, v, *segments) whose gradient reads both results."""

  def value(q, k, v, *segments):
    output, sums = attention(q, k, v, segment_ids=segments or None, **how)
    return jnp.square(output.astype(jnp.float32)).sum() + sums.sum()

  return value


def arrays(case, sharding):
  """(q, k, v and segments), none of which is anywhere; `sharding` of their number of axes."""
  batch, length, keys, heads, groups, width, dtype, has_segments, _ = case
  shapes = [(batch, length, heads, width), *[(batch, keys, groups, width)] * 2]
  given = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding(4)) for shape in shapes]
  sizes = (length, keys) if has_segments else ()
  return given + [jax.ShapeDtypeStruct((batch, size), jnp.int32, sharding=sharding(2)) for size in sizes]


def calls(compiled):
  return compiled.as_text().count('custom_call_target="tpu_custom_call"')


def most_temporaries(case, count):
  """Bytes of so many arrays of q's shape and as many of k's as a TPU lays them out, and a twentieth more."""
  batch, length, keys, heads, groups, width, dtype, *_ = case
  whole = lambda size, unit: unit * math.ceil(size / unit)  # noqa: E731  blocks of 512 places, registers of 128 columns
  places = heads * whole(length, 512) + groups * whole(keys, 512)
  return 1.05 * count * batch * places * whole(width, 128) * jnp.dtype(dtype).itemsize


@pytest.mark.parametrize("chip", ["v5e:2x2", "v6e:2x2"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_table_takes_the_kernels_and_they_fit(chip, case):
  """Bytes of q, k, v and the output; with gradients, also of the output's and those to q, k and v. Never the scores."""
  one = SingleDeviceSharding(aot.tpu(chip)[0])
  given = arrays(case, lambda axes: one)
  value = value_of(case[8])
  batch, length, keys, heads, *_ = case
  for function, kernels, count in ((value, 1, 2), (jax.grad(value, argnums=(0, 1, 2)), 3, 4)):
    compiled = jax.jit(function).lower(*given).compile()
    assert calls(compiled) == kernels
    temporaries, bound = compiled.memory_analysis().temp_size_in_bytes, most_temporaries(case, count)
    assert temporaries <= bound
    assert bound < 0.35 * (4 * batch * heads * length * keys)


@pytest.mark.parametrize("chip", ["v5e:2x2", "v6e:2x2"])
@pytest.mark.parametrize("name", ["shared key heads", "documents, no full block"])
def test_under_shard_map_each_of_four_chips_has_its_part(chip, name):
  case = CASES[name]
  mesh = Mesh(np.asarray(aot.tpu(chip)).reshape(2, 2), ("data", "model"))
  part = lambda axes: PartitionSpec("data", None, "model") if axes == 4 else PartitionSpec("data")  # noqa: E731
  given = arrays(case, lambda axes: NamedSharding(mesh, part(axes)))
  specs = tuple(part(len(each.shape)) for each in given)
  slopes = jax.grad(value_of(case[8]), argnums=(0, 1, 2))
  compiled = jax.jit(jax.shard_map(slopes, mesh=mesh, in_specs=specs, out_specs=specs[:3])).lower(*given).compile()
  text = compiled.as_text()
  assert calls(compiled) == 3
  assert not [name for name in ("all-gather", "all-to-all", "all-reduce", "collective-permute") if name in text]
  assert compiled.memory_analysis().temp_size_in_bytes <= most_temporaries(case, 4) / 4


def test_jit_alone_does_not_divide_the_kernels_and_other_forms_it_does():
  """What the module says of it; where the mesh is known, the table knows it too."""
  case = CASES["causal"]
  mesh = Mesh(np.asarray(aot.tpu("v5e:2x2")), ("data",))
  given = arrays(case, lambda axes: NamedSharding(mesh, PartitionSpec("data")))
  with pytest.raises(NotImplementedError, match="cannot be automatically partitioned"):
    jax.jit(value_of(CAUSAL)).lower(*given)
  with jax.set_mesh(mesh):
    assert calls(jax.jit(value_of(CAUSAL)).lower(*given).compile()) == 0
  with choice.use(attention="chunked"):
    assert calls(jax.jit(value_of(CAUSAL)).lower(*given).compile()) == 0


def test_blocks_that_a_core_has_no_room_for_are_refused_when_compiled():
  """So the tuner passes over them; the default has room in the widest case above."""
  one = SingleDeviceSharding(aot.tpu("v5e:2x2")[0])
  given = arrays(CASES["wide heads, float32"], lambda axes: one)
  with (
    tuning.trying("attention", "pallas_tpu", {"queries": 2048, "keys": 2048}),
    pytest.raises(jax.errors.JaxRuntimeError, match="vmem"),
  ):
    jax.jit(value_of(CAUSAL)).lower(*given).compile()


@pytest.mark.parametrize("kernel", pallas_tpu.KERNELS)
def test_what_the_tuner_times_is_one_kernel(kernel):
  run, given = pallas_tpu.BLOCKS.cases[f"{kernel}, bfloat16, 64"]()
  one = SingleDeviceSharding(aot.tpu("v5e:2x2")[0])
  given = [jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=one) for each in given]
  with tuning.trying("attention", "pallas_tpu", pallas_tpu.BLOCKS.candidates[0]):
    assert calls(jax.jit(lambda *given: run(*given)).lower(*given).compile()) == 1


def test_a_gpt_trains_by_the_kernels_in_less_memory():
  """Two layers of four heads of 64, eight texts of 1,024 tokens, in bfloat16."""
  model = LanguageModel(Config(layers=2, width=256, heads=4, dtype="bfloat16"), 512, 1024)
  one = SingleDeviceSharding(aot.tpu("v5e:2x2")[0])
  tokens = jax.ShapeDtypeStruct((8, 1024), jnp.int32, sharding=one)
  variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((8, 1024), jnp.int32), train=False))
  variables = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), variables)

  def loss(variables, tokens):
    unscored, _ = model.apply(variables, tokens, train=True, method="unscored")
    return losses.token_scores(unscored, tokens, 1.0 / tokens.size)[0]

  def compiled(said):
    with said:
      return jax.jit(jax.grad(loss)).lower(variables, tokens).compile()

  ours, by_xla = compiled(contextlib.nullcontext()), compiled(choice.configured("attention=xla"))
  assert (calls(ours), calls(by_xla)) == (3, 0)  # forward in one scan over layers, the two others in another
  bytes_of = lambda compiled: compiled.memory_analysis().temp_size_in_bytes  # noqa: E731
  print(f"compiled for v5e: {bytes_of(ours) / 2**20:.0f} MB by the kernels, {bytes_of(by_xla) / 2**20:.0f} MB by XLA")
  weights = 2 * 2 * 8 * 4 * 1024 * 1024  # of the softmax, of both layers
  assert bytes_of(ours) < bytes_of(by_xla) - weights
