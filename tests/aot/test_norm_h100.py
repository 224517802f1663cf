"""Norms compiled for an H100 that is not here, as the table chooses: kernels, their temporaries, and eight of them."""

import functools
import math
import re
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from research import aot
from research.kernels.norm import norm
from research.models.language_model import LanguageModel
from research.models.transformer_config import Config

pytestmark = pytest.mark.aot


@pytest.fixture(autouse=True, scope="module")
def _uncached():
  """A program for a device that is not here cannot be read back from a cache."""
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()
  yield
  jax.config.update("jax_enable_compilation_cache", True)
  compilation_cache.reset_cache()


KERNEL = 'custom_call_target="mosaic_gpu_v2"'
LAUNCH = re.compile(r"^\s+(?:ROOT )?%[\w.-]+ = (\(.*?\)|\S+) (?:fusion|custom-call|reduce|copy)\((.*?)\)", re.MULTILINE)
BATCH, LENGTH = 16, 1024


class Compiled(NamedTuple):
  """What a program for an H100 is.

  Attributes:
    text: its HLO.
    kernels: how many of ours it has.
    launches: kernels of all sorts.
    traffic: bytes that they read and write.
    temporaries: bytes.
  """

  text: str
  kernels: int
  launches: int
  traffic: int
  temporaries: int


def compiled(function, *shapes, devices=1):
  """Of arrays of rows the first axis is divided."""
  mesh = Mesh(np.asarray(aot.gpu("h100", devices)), ("data",))

  def placed(each):
    spec = PartitionSpec("data") if each.shape[:1] == (BATCH,) else PartitionSpec()
    return jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=NamedSharding(mesh, spec))

  program = jax.jit(function, compiler_options=aot.OPTIONS).lower(*jax.tree.map(placed, shapes)).compile()
  text = program.as_text()
  entry = text[text.index("\nENTRY") :]
  types = dict(re.findall(r"%([\w.-]+) = (\(.*?\)|\S+) ", entry))
  launches = LAUNCH.findall(entry)
  read = [types[name] for _, names in launches for name in re.findall(r"%([\w.-]+)", names)]
  traffic = sum(map(size, [*read, *(made for made, _ in launches)]))
  return Compiled(text, text.count(KERNEL), len(launches), traffic, program.memory_analysis().temp_size_in_bytes)


def size(types):
  """Bytes of an HLO type, or a tuple of them."""
  found = re.findall(r"\b(bf16|f32)\[([\d,]*)\]", types)
  return sum({"bf16": 2, "f32": 4}[of] * math.prod(map(int, filter(None, axes.split(",")))) for of, axes in found)


def passes(width, dtype, residual=False, **options):
  """A training step's forward pass, which also gives what it keeps, and its backward pass, each with its shapes."""
  x = jax.ShapeDtypeStruct((BATCH, LENGTH, width), dtype)
  parameter = jax.ShapeDtypeStruct((width,), jnp.float32)

  def run(x, scale_D, bias_D, *residual):
    return norm(x, scale_D, bias_D, epsilon=1e-5, residual=(*residual, None)[0], **{"kind": "layer", **options})

  given = (x, parameter, parameter, *[x] * residual)
  kept, tree = jax.tree.flatten(jax.eval_shape(functools.partial(jax.vjp, run), *given)[1])

  def forward(*given):
    values, back = jax.vjp(run, *given)
    return values, [each for each in jax.tree.leaves(back) if each.ndim == 2]  # the numbers of rows; others are copies

  def backward(kept, slopes):
    return jax.tree.unflatten(tree, kept)(slopes)[:3]  # the residual's is x's

  return (forward, *given), (backward, kept, (x, x) if residual else x)


CASES = [(width, dtype) for width in (768, 1600, 4096, 8192) for dtype in ("bfloat16", "float32")]


@pytest.mark.parametrize(("width", "dtype"), CASES)
def test_a_pass_reads_and_writes_once_what_xla_reads_again(width, dtype):
  array = BATCH * LENGTH * width * jnp.dtype(dtype).itemsize
  forward, backward = (compiled(*each) for each in passes(width, dtype))
  assert (forward.kernels, forward.launches) == (1, 1)
  assert "norm_mosaic_gpu" in forward.text
  assert forward.traffic < 2.02 * array
  assert forward.temporaries < 1024
  assert (backward.kernels, backward.launches) == (1, 3)  # and for each parameter a sum of what blocks have summed
  assert "norm_gradients_mosaic_gpu" in backward.text
  assert backward.traffic < 3.15 * array
  assert backward.temporaries < 2 * 264 * width * 4 + 1024
  forward, backward = (compiled(*each) for each in passes(width, dtype, form="xla"))
  assert forward.kernels == backward.kernels == 0
  assert forward.launches >= 4
  assert forward.traffic > 4 * array
  assert backward.launches >= 4
  assert backward.traffic > 5 * array


@pytest.mark.parametrize("width", [1024, 2048, 4096, 8192])
def test_registers_hold_what_a_thread_works_on(width, tmp_path, monkeypatch):
  """What ptxas says of the kernel with the most to hold: a few values are spilled at the widest, and none before."""
  monkeypatch.setenv("MOSAIC_GPU_DUMP_TO", str(tmp_path))
  monkeypatch.setattr(f"{__name__}.BATCH", 24)  # no kernel that was compiled before, and is told of no more
  compiled(*passes(width, "bfloat16", residual=True)[1])
  (path,) = tmp_path.glob("norm_gradients*.ptxas")
  (spilled,) = re.findall(r"(\d+) bytes spill stores, \d+ bytes spill loads\n", path.read_text(errors="replace"))[-1:]
  assert int(spilled) <= (128 if width == 8192 else 0)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_a_residual_takes_no_launch_more(kind):
  array = BATCH * LENGTH * 1024 * 2
  forward, backward = (compiled(*each) for each in passes(1024, "bfloat16", residual=True, kind=kind))
  assert (forward.kernels, forward.launches, backward.kernels, backward.launches) == (1, 1, 1, 3)
  assert forward.traffic < 4.02 * array  # two read, and two written
  assert backward.traffic < 4.15 * array


def test_eight_gpus_have_their_own_rows_and_add_up_the_sums():
  forward, backward = (compiled(*each, devices=8) for each in passes(1024, "bfloat16", residual=True))
  assert forward.kernels == backward.kernels == 1
  assert forward.traffic < 4.02 * 2 * LENGTH * 1024 * 2  # of two examples each
  assert not any(each in found.text for each in ("all-gather", "all-to-all") for found in (forward, backward))
  assert "all-reduce" in backward.text
  assert "all-reduce" not in forward.text


def test_a_language_model_on_eight_gpus_gathers_nothing():
  """Norms inside a scan over layers that recomputes them, as training has them, under jit."""
  config = Config(layers=3, width=512, heads=4, dtype="bfloat16", remat="full")
  network = LanguageModel(config, 1000, 64)
  tokens = jax.ShapeDtypeStruct((BATCH, 64), jnp.int32)
  params = jax.eval_shape(lambda tokens: nn.unbox(network.init(jax.random.key(0), tokens, train=False)), tokens)

  def loss(params, tokens):
    return jax.tree.leaves(network.apply(params, tokens, train=False))[0].astype(jnp.float32).mean()

  found = compiled(jax.grad(loss), params, tokens, devices=8)
  assert found.kernels == 8  # forward, again, and backward of a layer's two; forward and backward of the last
  assert "all-reduce" in found.text
  assert "all-gather" not in found.text
