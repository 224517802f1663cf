"""The C++ kernels: their operations by the oracle, what they refuse, and what happens where they are not."""

import functools
import logging
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from research.errors import UserError
from research.kernels import attention, choice, dense, native, norm
from research.kernels.conv import convolution, convolve, input_gradient, reference, weight_gradient
from research.kernels.conv_transpose import conv_transpose
from research.kernels.native import build
from tests.research.kernels import oracle

CASES = {
  # batch, image (H, W), channels in and out, kernel, strides, pads
  "3x3 by Winograd": (5, (15, 14), (17, 33), (3, 3), (1, 1), ((1, 1), (1, 1))),
  "few squares for a wide kernel": (9, (5, 6), (40, 16), (3, 3), (1, 1), ((1, 1), (0, 2))),
  "3x3 with few channels": (3, (9, 8), (3, 5), (3, 3), (1, 1), ((1, 1), (1, 1))),
  "a GAN's": (9, (8, 6), (19, 34), (4, 4), (2, 2), ((1, 1), (1, 1))),
  "to one channel": (3, (8, 8), (1, 21), (4, 4), (2, 2), ((1, 1), (1, 1))),
  "from one pixel": (1, (1, 1), (1, 1), (1, 1), (1, 1), ((0, 0), (0, 0))),
  "windows that leave a row unread": (3, (8, 9), (2, 3), (2, 2), (2, 2), ((0, 0), (0, 0))),
  "uneven strides, and edges cut off": (4, (9, 8), (5, 37), (3, 3), (3, 2), ((-1, 2), (3, -1))),
}


def resolved(case, dtype="float32"):
  """(x, kernel, gradient) in a dtype, in float64, and (strides, pads, image size, kernel size)."""
  batch, size, channels, kernel, strides, pads = case
  shapes = (batch, *size, channels[0]), kernel + channels
  x, kernel_HWCO = (oracle.normal(seed, *each, dtype=dtype) for seed, each in enumerate(shapes))
  shape = [(n + low + high - k) // s + 1 for n, k, s, (low, high) in zip(size, kernel, strides, pads, strict=True)]
  g = oracle.normal(2, batch, *shape, channels[1], dtype=dtype)
  ours, exact = zip(x, kernel_HWCO, g, strict=True)
  return ours, exact, (strides, pads, size, kernel)


def operations(ours, how):
  x, kernel_HWCO, g = ours
  strides, pads, size, kernel = how
  return (
    convolution(x, kernel_HWCO, strides, pads, None),
    input_gradient(g, kernel_HWCO, size, strides, pads, None),
    weight_gradient(x, g, kernel, strides, pads, None),
  )


@pytest.mark.parametrize(
  ("case", "dtype"),
  [*((case, "float32") for case in CASES.values()), (CASES["3x3 by Winograd"], "bfloat16")],
  ids=[*CASES, "bfloat16"],
)
def test_each_operation_is_its_definition_as_nearly_as_xla_is(case, dtype):
  ours, exact, how = resolved(case, dtype)
  strides, pads, size, kernel = how
  found = {}
  for form in ("native", "xla"):
    with choice.use(conv=form), choice.recording() as forms:
      found[form] = jax.jit(functools.partial(operations, how=how))(ours)
    assert forms == dict.fromkeys(("conv", "conv.input_gradient", "conv.weight_gradient"), form)
  expected = (
    reference.convolution(*exact[:2], strides, pads),
    reference.input_gradient(exact[2], exact[1], size, strides, pads),
    reference.weight_gradient(exact[0], exact[2], kernel, strides, pads),
  )
  oracle.check(found["native"][:1], found["xla"][:1], expected[:1], dtype)
  oracle.check(found["native"][1:], found["xla"][1:], expected[1:], dtype, gradient=True)
  assert {each.dtype for each in found["native"]} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(7, 3), (2, 65, 40), (1, 1), (3, 211, 129)])
def test_each_product_of_a_dense_layer_is_its_definition(shape, dtype):
  sizes = (shape, (shape[-1], 37), (*shape[:-1], 37))
  (x, x64), (w, w64), (g, g64) = (oracle.normal(i, *size, dtype=dtype) for i, size in enumerate(sizes))
  found = {}
  for form in ("native", "xla"):
    with choice.use(dense=form), choice.recording() as forms:
      found[form] = jax.jit(
        lambda x, w, g: (dense.product(x, w, None), dense.input_gradient(g, w, None), dense.weight_gradient(x, g, None))
      )(x, w, g)
    assert forms == dict.fromkeys(("dense.product", "dense.input_gradient", "dense.weight_gradient"), form)
  columns = shape[-1]
  expected = (x64 @ w64, g64 @ w64.T, x64.reshape(-1, columns).T @ g64.reshape(-1, 37))
  oracle.check(found["native"][:1], found["xla"][:1], expected[:1], dtype)
  oracle.check(found["native"][1:], found["xla"][1:], expected[1:], dtype, gradient=True)


def test_derivatives_of_derivatives_vmap_and_remat():
  (x, w, _), _, (strides, pads, *_) = resolved(CASES["3x3 by Winograd"])

  def penalty(x, w):
    loss = jax.checkpoint(lambda x, w: jnp.tanh(0.1 * convolution(x, w, strides, pads, None)).sum())
    return sum((each**2).sum() for each in jax.grad(loss, (0, 1))(x, w))

  def slopes(x, w):
    return jax.grad(penalty, (0, 1))(x, w)

  found = {}
  for form in ("native", "xla"):
    with choice.use(conv=form):
      both = jax.jit(jax.vmap(slopes, in_axes=(0, None)))(jnp.stack([x[:2], x[2:4]]), w)
      found[form] = (*both, *jax.jit(slopes)(x[2:4], w))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(b).max())), *found.values()
  )
  np.testing.assert_array_equal(found["native"][0][1], found["native"][2])  # of its own examples alone


def test_inside_a_shard_map_each_device_makes_its_own_call(mesh):
  (x, w, _), _, (strides, pads, *_) = resolved(CASES["3x3 with few channels"])
  x = jnp.tile(x, (8, 1, 1, 1))
  part, whole = PartitionSpec("data"), PartitionSpec()

  def each(x, w):
    assert native.whole()
    return convolution(x, w, strides, pads, None)

  assert not native.whole()
  with choice.recording() as forms:
    apart = jax.jit(jax.shard_map(each, mesh=mesh, in_specs=(part, whole), out_specs=part, check_vma=False))
    text = apart.lower(x, w).compile().as_text()
  assert forms == {"conv": "native"}
  assert "flagship_conv_forward" in text
  assert "all-gather" not in text
  with choice.use(conv="xla"):
    expected = convolution(x, w, strides, pads, None)
  np.testing.assert_allclose(apart(x, w), expected, rtol=1e-5, atol=1e-5)


SHARED = {
  # (what differs from device to device, what is the same on all) → a loss
  "attention": (lambda x, w: attention.attention(x * w[None, None, None], x, x, causal=True)[0], (8, 6, 2, 4), (4,)),
  "norm": (lambda x, w: norm.norm(x, w, w, kind="layer", epsilon=1e-3), (8, 5, 4), (4,)),
  "dense": (lambda x, w: dense.dot_general(x, w, (((2,), (0,)), ((), ()))), (8, 5, 4), (4, 3)),
  "conv": (lambda x, w: convolve(x, w, (2, 1), "SAME"), (8, 5, 4, 3), (3, 3, 3, 2)),
  "depthwise_conv": (lambda x, w: convolve(x, w, (1, 1), "SAME", feature_group_count=3), (8, 5, 4, 3), (3, 3, 1, 3)),
  "conv_transpose": (lambda x, w: conv_transpose(x, w, (2, 2), "SAME"), (8, 3, 4, 3), (4, 4, 3, 2)),
}


@pytest.mark.parametrize("form", [None, "native", "xla"])
@pytest.mark.parametrize("name", SHARED)
def test_inside_a_shard_map_that_checks_what_differs(mesh, name, form):
  """As jax.shard_map is unless told otherwise; what all devices share has the sum of their gradients."""
  function, *shapes = SHARED[name]
  x, w = (oracle.normal(seed, *shape)[0] for seed, shape in enumerate(shapes))
  slopes = jax.grad(lambda x, w: jnp.square(function(x, w)).sum(), (0, 1))
  part, whole = PartitionSpec("data"), PartitionSpec()
  apart = jax.jit(jax.shard_map(slopes, mesh=mesh, in_specs=(part, whole), out_specs=(part, whole)))
  family = {"conv_transpose": "conv"}.get(name, name)
  forms = {family: form} if form and form in {each for op in parts(family) for each in op.forms} else {}
  with choice.use(**forms):
    found = apart(x, w)
  expected = jax.jit(slopes)(x, w)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


def parts(family):
  return [op for name, op in choice.OPS.items() if name.partition(".")[0] == family]


@pytest.mark.parametrize(
  ("rows", "dtype", "form"), [(512, "float32", "native"), (511, "float32", "xla"), (512, "bfloat16", "xla")]
)
def test_the_table_takes_a_product_of_many_rows_in_float32(mesh, rows, dtype, form):
  part, whole = PartitionSpec("data"), PartitionSpec()
  each = jax.grad(lambda x, w: dense.product(x, w, None).sum(dtype=jnp.float32))
  apart = jax.shard_map(each, mesh=mesh, in_specs=(part, whole), out_specs=part, check_vma=False)
  with choice.recording() as forms:
    jax.eval_shape(apart, jnp.ones((8 * rows, 3), dtype), jnp.ones((3, 2), dtype))
  assert forms["dense.product"] == forms["dense.input_gradient"] == form


def traced(dtype=jnp.float32):
  """The forms that a convolution's gradients have for whoever asks for none."""
  x, w = jnp.ones((2, 4, 4, 3), dtype), jnp.ones((3, 3, 3, 2), dtype)
  with choice.recording() as forms:
    slope = jax.grad(lambda w, x: convolution(x, w, (1, 1), ((1, 1), (1, 1)), None).sum(), (0, 1))
    jax.eval_shape(lambda *given: slope(*given), w, x)
  return forms


def test_the_table_takes_it_on_one_device_and_not_for_every_dtype(monkeypatch, caplog):
  names = ("conv", "conv.input_gradient", "conv.weight_gradient")
  others = dict(zip(names, ("xla", "cpu", "cpu"), strict=True))
  assert traced() == others  # eight devices
  monkeypatch.setattr(native, "whole", lambda: True)
  assert traced() == dict.fromkeys(names, "native")
  choice._logged.clear()
  with caplog.at_level(logging.WARNING):
    assert traced(jnp.float16) == others
    traced(jnp.float16)
  (told,) = caplog.messages
  assert told == "kernels: conv does not run as native: it takes float32 and bfloat16, not float16"


def test_without_the_library_there_are_the_other_forms_and_one_line(monkeypatch, caplog, tmp_path):
  monkeypatch.setattr(native, "whole", lambda: True)
  library = native.PATH.read_bytes()
  monkeypatch.setattr(native, "PATH", tmp_path / "none.so")
  native.missing.cache_clear()
  choice._logged.clear()
  try:
    with caplog.at_level(logging.WARNING):
      assert set(traced().values()) == {"xla", "cpu"}
      traced()
    (told,) = caplog.messages
    assert told.startswith("kernels: no operation runs as native: ")
    assert told.endswith("it is not compiled; run python -m research.kernels.native.build")
    with pytest.raises(UserError, match="conv cannot run as native: it is not compiled"), choice.use(conv="native"):
      traced()
    (tmp_path / "none.so").write_text("no library")
    native.missing.cache_clear()
    assert "does not load" in native.missing()
    (tmp_path / "none.so").write_bytes(library[: len(library) // 2])  # the loader would end the process
    native.missing.cache_clear()
    assert "damaged" in native.missing()
  finally:
    native.missing.cache_clear()


@pytest.mark.parametrize(
  ("kernel", "strides", "what"),
  [((3, 3, 4, 2), (1, 1), "channels or examples differ"), ((3, 3, 3, 2), (0, 1), "a stride below 1")],
)
def test_a_call_that_does_not_fit_is_an_error_and_no_crash(kernel, strides, what):
  assert native.missing() is None
  x, w = jnp.ones((2, 4, 4, 3)), jnp.ones(kernel)
  shape = jax.ShapeDtypeStruct((2, 4, 4, 2), jnp.float32)
  with pytest.raises(Exception, match=what):
    native.call("conv_forward", shape, x, w, strides=strides, lows=(1, 1)).block_until_ready()


def test_without_a_compiler_building_says_so_and_succeeds(monkeypatch, capsys):
  monkeypatch.setattr(shutil, "which", lambda name: None)
  assert build.main() == 0
  assert "no g++" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("target", build.TARGETS)
def test_no_address_is_wrong_and_threads_change_no_bit(target, tmp_path):
  """Random shapes under AddressSanitizer and UndefinedBehaviorSanitizer, for each instruction set."""
  sources = [str(path) for path in sorted(build.SOURCES.glob("*.cc")) if path.name != "ffi.cc"]
  check = str(Path(__file__).with_name("native_check.cc"))
  options = ["-std=c++20", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-pthread"]
  define, program = f"-DFLAGSHIP_TARGET={target}", str(tmp_path / "check")
  command = ["g++", *options, *build.TARGETS[target], define, f"-I{build.SOURCES}", *sources, check, "-o", program]
  subprocess.run(command, check=True)
  if target == "avx512" and "avx512dq" not in Path("/proc/cpuinfo").read_text():
    return  # compiled, and nothing here can run it
  done = subprocess.run([program, "150"], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr[-2000:]
  assert done.stdout == "150 shapes\n"
