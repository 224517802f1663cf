"""Losses against scipy in float64, and at logits where a naive formula overflows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from research import losses

# Jitted: one compilation where eager calls would make one for each operation.
softmax_cross_entropy = jax.jit(losses.softmax_cross_entropy, static_argnames="label_smoothing")
sigmoid_cross_entropy = jax.jit(losses.sigmoid_cross_entropy, static_argnames="label_smoothing")


def random_logits(shape, scale=3.0, seed=0):
  return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def reference_softmax(logits_BC, distribution_BC):
  return -(distribution_BC * scipy.special.log_softmax(logits_BC.astype(np.float64), axis=1)).sum(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_of_labels_and_of_distributions_is_scipys(smoothing):
  logits_BC = random_logits((50, 7))
  labels_B = np.random.default_rng(1).integers(0, 7, 50).astype(np.int32)
  expected = reference_softmax(logits_BC, (1 - smoothing) * np.eye(7)[labels_B] + smoothing / 7)
  one_hot_BC = np.eye(7, dtype=np.float32)[labels_B]
  for labels in (labels_B, one_hot_BC):
    loss_B = softmax_cross_entropy(jnp.asarray(logits_BC), jnp.asarray(labels), smoothing)
    assert loss_B.shape == (50,)
    assert loss_B.dtype == jnp.float32
    # A difference of two float32 numbers of size up to about 10: an absolute error of a few 1e-7 of that.
    np.testing.assert_allclose(loss_B, expected, rtol=1e-6, atol=2e-6)


def test_softmax_of_a_mixture_is_the_mixture_of_losses():
  logits_BC, share_B = jnp.asarray(random_logits((9, 4))), np.linspace(0, 1, 9, dtype=np.float32)
  a_B, b_B = np.arange(9) % 4, np.arange(9) % 3
  mixed_BC = share_B[:, None] * np.eye(4)[a_B] + (1 - share_B[:, None]) * np.eye(4)[b_B]
  mixed_B = softmax_cross_entropy(logits_BC, jnp.asarray(mixed_BC, jnp.float32))
  separate_B = share_B * softmax_cross_entropy(logits_BC, jnp.asarray(a_B, jnp.int32)) + (
    1 - share_B
  ) * softmax_cross_entropy(logits_BC, jnp.asarray(b_B, jnp.int32))
  np.testing.assert_allclose(mixed_B, separate_B, rtol=1e-5, atol=1e-6)


def test_softmax_gradient_is_probability_minus_distribution():
  logits_BC, labels_B = random_logits((20, 5)), (np.arange(20) % 5).astype(np.int32)
  gradient = jax.grad(lambda x: softmax_cross_entropy(x, jnp.asarray(labels_B), 0.2).sum())(jnp.asarray(logits_BC))
  expected = scipy.special.softmax(logits_BC.astype(np.float64), axis=1) - (0.8 * np.eye(5)[labels_B] + 0.2 / 5)
  np.testing.assert_allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_sigmoid_is_scipys(smoothing):
  logits_B = random_logits((200,), 8.0)
  labels_B = np.random.default_rng(1).integers(0, 2, 200)
  z_B = (1 - smoothing) * labels_B + smoothing / 2
  x_B = logits_B.astype(np.float64)
  expected = -z_B * scipy.special.log_expit(x_B) - (1 - z_B) * scipy.special.log_expit(-x_B)
  actual = sigmoid_cross_entropy(jnp.asarray(logits_B), jnp.asarray(labels_B, jnp.int32), smoothing)
  # Without smoothing even losses of 1e-9 are right relatively: nothing large is subtracted to get them.
  np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=0 if not smoothing else 1e-6)


def test_sigmoid_gradient_is_probability_minus_label_also_at_zero():
  logits_B = np.concatenate([random_logits((30,), 5.0), [0.0, -0.0]]).astype(np.float32)
  labels_B = np.arange(32) % 2
  gradient = jax.grad(lambda x: sigmoid_cross_entropy(x, jnp.asarray(labels_B, jnp.float32)).sum())
  expected = scipy.special.expit(logits_B.astype(np.float64)) - labels_B
  np.testing.assert_allclose(gradient(jnp.asarray(logits_B)), expected, atol=1e-6)


def test_extreme_logits_give_exact_losses_and_gradients():
  logits_BC = jnp.asarray([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0]], jnp.float32)
  labels_B = jnp.asarray([0, 1], jnp.int32)
  loss, gradient = jax.value_and_grad(lambda x: softmax_cross_entropy(x, labels_B).sum())(logits_BC)
  assert float(loss) == 2e4
  np.testing.assert_array_equal(gradient, [[0, 0, 0], [1, -1, 0]])
  logits_B = jnp.asarray([1e4, -1e4, 1e4, -1e4], jnp.float32)
  loss_B = sigmoid_cross_entropy(logits_B, jnp.asarray([1, 0, 0, 1], jnp.int32))
  np.testing.assert_array_equal(loss_B, [0, 0, 1e4, 1e4])
  gradient_B = jax.grad(lambda x: sigmoid_cross_entropy(x, jnp.asarray([1, 0, 0, 1], jnp.int32)).sum())(logits_B)
  np.testing.assert_array_equal(gradient_B, [0, 0, 1, -1])


def test_bf16_logits_give_f32_losses():
  logits_BC = jnp.asarray(random_logits((6, 3)), jnp.bfloat16)
  loss_B = softmax_cross_entropy(logits_BC, jnp.zeros(6, jnp.int32))
  expected = reference_softmax(np.asarray(logits_BC.astype(jnp.float32)), np.eye(3)[np.zeros(6, int)])
  assert loss_B.dtype == jnp.float32
  np.testing.assert_allclose(loss_B, expected, rtol=1e-6, atol=1e-6)


def test_label_picking_compiles_to_no_gather_or_scatter():
  gradient = jax.grad(lambda x, y: softmax_cross_entropy(x, y).sum())
  program = str(jax.make_jaxpr(gradient)(jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32)))
  assert "gather" not in program
  assert "scatter" not in program


def test_mean_squared_error_averages_over_outputs_only():
  loss_B = losses.mean_squared_error(jnp.asarray([[1.0, 2.0], [0.0, 0.0]]), jnp.asarray([[0.0, 0.0], [3.0, 1.0]]))
  np.testing.assert_allclose(loss_B, [2.5, 5.0])
  np.testing.assert_allclose(losses.mean_squared_error(jnp.asarray([3.0]), jnp.asarray([1.0])), [4.0])


@pytest.mark.parametrize(
  "call",
  [
    lambda: losses.mean_squared_error(jnp.zeros((4, 1)), jnp.zeros(4)),  # would broadcast to 4×4
    lambda: losses.sigmoid_cross_entropy(jnp.zeros((4, 1)), jnp.zeros(4, jnp.int32)),
    lambda: losses.softmax_cross_entropy(jnp.zeros((4, 3)), jnp.zeros(4)),  # float class indices
    lambda: losses.softmax_cross_entropy(jnp.zeros((4, 3)), jnp.zeros((4, 2))),
  ],
)
def test_shapes_that_do_not_belong_together_are_refused(call):
  with pytest.raises(ValueError, match="against"):
    call()
