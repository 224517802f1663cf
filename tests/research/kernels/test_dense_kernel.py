"""The dense product's own gradients against the definition and XLA's, however many axes stand before the last."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from research.kernels.dense import dot_general, input_gradient, product, reference, weight_gradient
from research.models import layers

SHAPES = [(5, 3), (2, 4, 3), (2, 1, 3, 3), (3,)]


def arrays(shape, dtype=jnp.float32):
  random = np.random.default_rng(0)
  numbers = [random.normal(size=size) for size in (shape, (shape[-1], 4), (*shape[:-1], 4))]
  return [jnp.asarray(number, dtype) for number in numbers]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_operations_are_their_definition(shape):
  x, kernel_DF, gradient = arrays(shape)
  for ours, definition, operands in (
    (product, reference.product, (x, kernel_DF)),
    (input_gradient, reference.input_gradient, (gradient, kernel_DF)),
    (weight_gradient, reference.weight_gradient, (x, gradient)),
  ):
    found = jax.jit(lambda a, b, ours=ours: ours(a, b, None))(*operands)
    np.testing.assert_allclose(found, definition(*operands), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("of", [product, input_gradient, weight_gradient])
def test_each_operations_derivatives_are_the_other_two(of):
  x, kernel_DF, gradient = arrays((2, 4, 3))
  operands = {product: (x, kernel_DF), input_gradient: (gradient, kernel_DF), weight_gradient: (x, gradient)}[of]
  with jax.enable_x64(True):
    check_grads(lambda a, b: of(a, b, None), [jnp.asarray(each, jnp.float64) for each in operands], 2, modes=["rev"])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_first_and_second_derivatives_are_xlas(shape):
  x, kernel_DF, _ = arrays(shape)

  def penalty(multiply):
    def squared(x, w):
      gradients = jax.grad(lambda x, w: jnp.tanh(multiply(x, w)).sum(), (0, 1))(x, w)
      return sum((gradient**2).sum() for gradient in gradients)

    return jax.jit(jax.value_and_grad(squared, (0, 1)))(x, kernel_DF)

  ours, theirs = penalty(lambda x, w: product(x, w, None)), penalty(jnp.matmul)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)


def test_a_dense_layer_is_flaxs_with_these_gradients():
  x = arrays((4, 6, 3))[0]
  ours = layers.dense(5, ("embed", "mlp"))
  params = nn.meta.unbox(ours.init(jax.random.key(0), x))
  theirs = nn.Dense(5)

  def gradient(layer):
    return jax.jit(jax.value_and_grad(lambda p: jnp.sin(layer.apply(p, x)).sum()))(params)

  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), gradient(ours), gradient(theirs))


def test_a_cpu_multiplies_two_matrices_and_others_keep_the_axes():
  x, _, gradient = arrays((2, 4, 3))
  program = jax.jit(lambda x, g: weight_gradient(x, g, None)).trace(x, gradient)
  assert "tensor<8x3xf32>" in program.lower(lowering_platforms=("cpu",)).as_text()
  assert "tensor<8x3xf32>" not in program.lower(lowering_platforms=("tpu",)).as_text()


def test_a_sharded_batch_stays_where_it_is():
  mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
  place = lambda *axes: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))  # noqa: E731
  x, kernel_DF, _ = arrays((16, 4, 3))
  x, kernel_DF = jax.device_put(x, place("batch")), jax.device_put(kernel_DF, place())
  gradient = jax.jit(jax.grad(lambda w, x: jnp.sin(product(x, w, None)).sum()), out_shardings=place())
  program = gradient.lower(kernel_DF, x).compile().as_text()
  assert "all-reduce" in program
  for move in ("all-gather", "all-to-all", "collective-permute"):
    assert move not in program


@pytest.mark.parametrize("numbers", [(((0,), (0,)), ((), ())), (((2,), (1,)), ((), ())), (((2,), (0,)), ((0,), (1,)))])
def test_other_products_are_refused(numbers):
  with pytest.raises(ValueError, match="only; use lax"):
    dot_general(jnp.zeros((3, 3, 3)), jnp.zeros((3, 3)), numbers)
