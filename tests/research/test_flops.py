"""FLOPs against counts by hand and against the published one of ResNet-50."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from research import flops
from research.kernels.conv_transpose import conv_transpose
from research.models.cnn import CNN
from research.models.mlp import MLP
from research.models.resnet import ResNet
from research.parallel.mesh import make_mesh


def forward_flops(model, shape, train=False):
  x = jax.ShapeDtypeStruct(shape, jnp.float32)
  variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)

  def forward(variables, x):
    return model.apply(variables, x, train=train, rngs={"dropout": jax.random.key(0)}, mutable=["batch_stats"])

  return flops.model_flops(forward, variables, x)


def test_mlp_is_the_hand_count():
  assert forward_flops(MLP(10, (512, 256)), (32, 784)) == 2 * 32 * (784 * 512 + 512 * 256 + 256 * 10)


@pytest.mark.parametrize("train", [False, True])
def test_cnn_is_the_hand_count_whatever_else_it_does(train):
  model = CNN(10, (16, 32), kernel=3, head_widths=(64,), norm="batch", dropout=0.5)
  convolutions = 28 * 28 * 9 * 1 * 16 + 14 * 14 * 9 * 16 * 32
  assert forward_flops(model, (4, 28, 28, 1), train) == 2 * 4 * (convolutions + 7 * 7 * 32 * 64 + 64 * 10)


def test_resnet_50_is_the_published_count():
  giga_multiply_adds = forward_flops(ResNet(1000, 50, small_images=False), (1, 224, 224, 3)) / 2e9
  assert giga_multiply_adds == pytest.approx(4.089, abs=0.001)  # torchvision's table


def test_a_training_step_is_three_forward_passes():
  a, b = jnp.zeros((8, 5)), jnp.zeros((5, 7))
  assert flops.training_flops(jnp.dot, a, b) == 3 * 2 * 8 * 5 * 7
  # And that is what its traced backward pass holds: for a layer that is not the first, a product for each operand.
  step = jax.grad(lambda a, b: jnp.sin(a @ b).sum(), argnums=(0, 1))
  assert flops.model_flops(step, a, b) == 3 * 2 * 8 * 5 * 7


def test_loops_branches_and_wrappers_are_entered():
  a = jnp.zeros((4, 4))
  product = 2 * 4**3
  assert flops.model_flops(lambda a: lax.scan(lambda c, _: (c @ a, None), a, None, length=7)[0], a) == 7 * product
  assert flops.model_flops(lambda a: lax.cond(a[0, 0] > 0, lambda a: a @ a @ a, lambda a: a @ a, a), a) == 2 * product
  assert flops.model_flops(lambda a: lax.while_loop(lambda c: c[0, 0] > 0, lambda c: c @ a, a), a) == product
  assert flops.model_flops(jax.checkpoint(jax.jit(lambda a: a @ a)), a) == product
  assert flops.model_flops(jax.vmap(lambda a: a @ a), jnp.zeros((3, 4, 4))) == 3 * product


def test_batched_contractions_and_every_kind_of_convolution():
  einsum = flops.model_flops(lambda a, b: jnp.einsum("bik,bkj->bij", a, b), jnp.zeros((3, 4, 5)), jnp.zeros((3, 5, 6)))
  assert einsum == 2 * 3 * 4 * 5 * 6

  def convolution(**options):
    x, kernel = jnp.zeros((2, 8, 8, 6)), jnp.zeros((3, 3, 6 // options.get("feature_group_count", 1), 12))
    options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")} | options
    return flops.model_flops(lambda x, kernel: lax.conv_general_dilated(x, kernel, **options), x, kernel)

  assert convolution() == 2 * 2 * 64 * 9 * 6 * 12
  assert convolution(window_strides=(2, 2)) == convolution() / 4
  assert convolution(feature_group_count=6) == convolution() / 6
  # Transposed, to twice the side: each of the 8×8 inputs meets each of the kernel's values, up to the edges.
  transposed = convolution(lhs_dilation=(2, 2), padding=((2, 1), (2, 1)))
  assert transposed == pytest.approx(convolution(), rel=0.15)


def test_a_choice_by_platform_counts_what_the_mathematics_asks_for():
  """The CPU's form of a transposed convolution multiplies more: it makes rows that are cut off."""
  x_BHWC, kernel_HWCO = jnp.zeros((2, 7, 7, 8)), jnp.zeros((4, 4, 8, 16))
  found = flops.model_flops(lambda x, kernel: conv_transpose(x, kernel, (2, 2)), x_BHWC, kernel_HWCO)
  assert found == 2 * 2 * 7 * 7 * 4 * 4 * 8 * 16


def test_a_shard_map_over_some_axes_counts_for_their_devices_alone():
  mesh = make_mesh("data:4,model:2")
  mapped = jax.shard_map(
    jnp.matmul, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"), axis_names={"data"}, check_vma=False
  )
  x, kernel = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((16, 32), jnp.float32)
  assert flops.model_flops(jax.jit(mapped), x, kernel) == 2 * 8 * 16 * 32
