"""The depthwise convolution and its gradients against their definition in float64 and XLA's, over all kinds of edge."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

from research.kernels import choice
from research.kernels.conv import convolve
from research.kernels.depthwise_conv import cpu, depthwise_conv, input_gradient, reference, weight_gradient
from research.models import layers
from tests.research.kernels import oracle

PARTS = ("depthwise_conv", "depthwise_conv.input_gradient", "depthwise_conv.weight_gradient")
CASES = {
  # image, channels, kernel, strides, pads
  "3x3 same": ((8, 7), 5, (3, 3), (1, 1), ((1, 1), (1, 1))),
  "3x3 halving": ((8, 9), 5, (3, 3), (2, 2), ((1, 1), (1, 1))),
  "even and oblong": ((9, 8), 3, (2, 5), (1, 1), ((0, 1), (2, 2))),
  "uneven strides and pads": ((9, 8), 2, (3, 4), (3, 2), ((0, 2), (3, 1))),
  "windows that leave a row unread": ((8, 9), 3, (2, 2), (2, 2), ((0, 0), (0, 0))),
  "kernel smaller than the stride": ((7, 8), 3, (1, 2), (2, 3), ((0, 0), (0, 0))),
  "one pixel": ((1, 1), 4, (3, 3), (1, 1), ((1, 1), (1, 1))),
}


def arrays(case, dtype="float32", batch=3):
  """x, kernel, g and the same in float64."""
  image, channels, kernel, strides, pads = case
  x, exact_x = oracle.normal(0, batch, *image, channels, dtype=dtype)
  k, exact_k = oracle.normal(1, *kernel, channels, dtype=dtype)
  g, exact_g = oracle.normal(2, *reference.depthwise_conv(exact_x, exact_k, strides, pads).shape, dtype=dtype)
  return (x, k, g), (exact_x, exact_k, exact_g)


def by(form, given, how):
  """All three operations."""
  x, k, g = given
  with choice.use(**dict.fromkeys(PARTS, form)):
    return jax.jit(lambda x, k, g: (
      depthwise_conv(x, k, *how, None),
      input_gradient(g, k, x.shape[1:3], *how, None),
      weight_gradient(x, g, k.shape[:2], *how, None),
    ))(x, k, g)  # fmt: skip


@pytest.mark.parametrize(
  ("case", "dtype"),
  [(case, "float32") for case in CASES.values()] + [(CASES["3x3 halving"], "bfloat16")],
  ids=[*CASES, "3x3 halving in bfloat16"],
)
def test_it_is_its_definition_as_nearly_as_xla_is(case, dtype):
  given, (x, k, g) = arrays(case, dtype)
  how = case[3:]
  ours, theirs = (by(form, given, how) for form in ("cpu", "xla"))
  exact = (
    reference.depthwise_conv(x, k, *how),
    reference.input_gradient(g, k, x.shape[1:3], *how),
    reference.weight_gradient(x, g, k.shape[:2], *how),
  )
  oracle.check(ours[:1], theirs[:1], exact[:1], dtype)
  oracle.check(ours[1:], theirs[1:], exact[1:], dtype, gradient=True)
  assert [each.dtype for each in ours] == [dtype] * 3


@pytest.mark.parametrize("name", ["3x3 same", "uneven strides and pads"])
def test_first_and_second_derivatives_are_xlas(name):
  case = CASES[name]
  (x, k, _), _ = arrays(case)

  def penalty(function):
    def squares(x, k):
      slopes = jax.grad(lambda x, k: jnp.tanh(function(x, k)).sum(), (0, 1))(x, k)
      return sum((slope**2).sum() for slope in slopes), slopes

    return jax.jit(jax.grad(squares, (0, 1), has_aux=True))(x, k)

  with choice.use(**dict.fromkeys(PARTS, "cpu")):
    ours = penalty(lambda x, k: depthwise_conv(x, k, *case[3:], None))
  theirs = penalty(lambda x, k: lax.conv_general_dilated(
    x, k[:, :, None], *case[3:], dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=k.shape[2]
  ))  # fmt: skip
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), ours, theirs)


def test_gradients_are_numerical_ones():
  case = CASES["3x3 halving"]
  (x, k, _), _ = arrays(case, batch=1)
  function = jax.jit(lambda x, k: depthwise_conv(x, k, *case[3:], None))
  check_grads(function, (x, k), order=2, modes=["rev"], rtol=2e-2, atol=2e-2, eps=1e-2)


def test_a_convolution_of_a_group_a_channel_is_this_one():
  x, _ = oracle.normal(0, 2, 7, 6, 4)
  layer = layers.depthwise_conv(4, 3, strides=2)
  variables = nn.unbox(layer.init(jax.random.key(0), x))
  assert variables["params"]["kernel"].shape == (3, 3, 1, 4)
  with choice.recording() as found:
    y = jax.jit(layer.apply)(variables, x)
  assert found == {"depthwise_conv": "cpu"}
  plain = nn.Conv(4, (3, 3), (2, 2), feature_group_count=4, use_bias=False)
  np.testing.assert_allclose(y, jax.jit(plain.apply)(variables, x), rtol=1e-4, atol=1e-5)
  with pytest.raises(ValueError, match="no groups but one for each channel"):  # two outputs a channel
    convolve(x, jnp.zeros((3, 3, 1, 8)), (1, 1), "SAME", feature_group_count=4)


@pytest.mark.parametrize(
  ("channels", "kernel", "forms"),
  [(16, 3, ["cpu"] * 3), (15, 3, ["cpu", "cpu", "xla"]), (16, 13, ["xla", "xla", "cpu"])],
)
def test_each_direction_takes_the_form_that_is_worth_it(channels, kernel, forms):
  x, k = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((1, 15, 15, channels), (kernel, kernel, channels)))
  with choice.recording() as found:
    jax.eval_shape(jax.grad(lambda x, k: depthwise_conv(x, k, (1, 1), ((0, 0), (0, 0)), None).sum(), (0, 1)), x, k)
  assert found == dict(zip(PARTS, forms, strict=True))


@pytest.mark.parametrize(("batch", "side"), [(2, 40), (7, 16)])
def test_weights_gather_over_pieces(batch, side):
  # 40×40 is more than one piece's pixels; 7 examples of 16×16 do not divide into pieces of 4.
  case = ((side, side), 3, (2, 1), (1, 1), ((0, 1), (0, 0)))
  (x, _, g), (exact_x, _, exact_g) = arrays(case, batch=batch)
  how = (case[2], *case[3:])
  with choice.use(**{PARTS[2]: "cpu"}):
    found = jax.jit(lambda x, g: weight_gradient(x, g, *how, None))(x, g)
  expected = reference.weight_gradient(exact_x, exact_g, *how)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def gradients(x, k):
  loss = lambda x, k: jnp.sin(depthwise_conv(x, k, (2, 2), ((1, 1), (1, 1)), None)).sum()  # noqa: E731
  return jax.grad(loss, (0, 1))(x, k)


def test_under_vmap_remat_and_of_a_view_it_is_the_same():
  (x, k, _), _ = arrays(((6, 7), 16, (3, 3), (2, 2), ((1, 1), (1, 1))), batch=4)
  near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  expected = jax.jit(gradients)(x, k)
  wide = jnp.stack([x, 2 * x], axis=2)
  twice = jax.jit(jax.vmap(gradients, in_axes=(2, None)))(wide, k)
  jax.tree.map(lambda a, b: near(a[0], b), twice, expected)
  jax.tree.map(near, jax.jit(gradients)(wide[:, :, 0], k), expected)
  remat = jax.checkpoint(lambda x, k: jnp.sin(depthwise_conv(x, k, (2, 2), ((1, 1), (1, 1)), None)).sum())
  jax.tree.map(near, jax.jit(jax.grad(remat, (0, 1)))(x, k), expected)


def test_a_sharded_batch_stays_where_it_is(mesh, monkeypatch):
  monkeypatch.setattr(cpu, "PIXELS_IN_CACHE", 9)  # one example at a time
  (x, k, _), _ = arrays(((6, 6), 16, (3, 3), (2, 2), ((1, 1), (1, 1))), batch=16)
  part = PartitionSpec(mesh.axis_names[0])
  rows, whole = NamedSharding(mesh, part), NamedSharding(mesh, PartitionSpec())
  program = jax.jit(gradients, out_shardings=(rows, whole)).lower(jax.device_put(x, rows), jax.device_put(k, whole))
  program = program.compile()
  for move in ("all-gather", "all-to-all", "collective-permute"):
    assert move not in program.as_text()
  near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  expected = jax.jit(gradients)(x, k)
  jax.tree.map(near, program(jax.device_put(x, rows), jax.device_put(k, whole)), expected)

  def apart(x, k):
    to_x, to_k = gradients(x, k)
    return to_x, lax.psum(to_k, mesh.axis_names[0])

  specs = {"in_specs": (part, PartitionSpec()), "out_specs": (part, PartitionSpec()), "check_vma": False}
  jax.tree.map(near, jax.jit(jax.shard_map(apart, mesh=mesh, **specs))(x, k), expected)


def test_only_a_cpu_shifts_and_adds():
  (x, k, _), _ = arrays(((6, 6), 16, (3, 3), (2, 2), ((1, 1), (1, 1))))
  program = jax.jit(gradients).trace(x, k)
  for platform, count in (("cpu", 0), ("tpu", 3), ("cuda", 3)):
    assert program.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.convolution") == count
