"""Attention around a ring is attention, and with a causal mask no device has more of it than another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.kernels.attention import attention as kernel
from research.parallel import ring
from research.parallel.activations import constrain, laid_out
from research.parallel.mesh import make_mesh
from research.parallel.tables import Layout

B, H, G, K = 2, 4, 2, 8


def arrays(length, segments):
  rng = np.random.default_rng(0)
  q, k, v = (jnp.asarray(rng.standard_normal((B, length, heads, K)), jnp.float32) for heads in (H, G, G))
  ids = np.sort(rng.integers(0, 3, (B, length)), axis=1).astype(np.int32)
  return q, k, v, jnp.asarray(ids) if segments else None


@pytest.mark.parametrize("length", [32, 24, 8], ids=["even parts", "odd parts", "parts of one"])
@pytest.mark.parametrize(
  ("causal", "segments"), [(True, True), pytest.param(True, False, marks=pytest.mark.slow), (False, True)]
)
def test_it_is_attention_and_so_are_its_gradients(length, causal, segments):
  q, k, v, ids = arrays(length, segments)
  how = {"causal": causal, "segment_ids": ids, "window": 0, "softcap": 5.0}
  weights = jnp.asarray(np.random.default_rng(1).standard_normal(q.shape), jnp.float32)

  def by_ring(q, k, v):
    with laid_out(Layout(make_mesh("sequence:8"), "sp")):
      q = constrain(q, "batch", "length", "heads", None)
      return (ring.attention(q, k, v, **how) * weights).sum()

  def alone(q, k, v):
    return (kernel(q, k, v, **how)[0] * weights).sum()

  found, slopes = jax.jit(jax.value_and_grad(by_ring, argnums=(0, 1, 2)))(q, k, v)
  expected, expected_slopes = jax.jit(jax.value_and_grad(alone, argnums=(0, 1, 2)))(q, k, v)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
  for ours, theirs in zip(slopes, expected_slopes, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5)


def test_each_device_sees_as_much_of_every_block(monkeypatch):
  """Both ways that a block can be seen are half of it. Cut in order it is all of it for some and nothing for others."""
  seen = []

  def counted(q, k, v, *, causal=False, **_):
    seen.append(("diagonal" if causal else "block", q.shape[1] * k.shape[1]))
    return jnp.zeros(q.shape, q.dtype), jnp.zeros(q.shape[:3], jnp.float32)

  monkeypatch.setattr(ring, "kernel", counted)

  def areas(length):
    seen.clear()
    q, k, v, _ = arrays(length, False)
    with laid_out(Layout(make_mesh("sequence:8"), "sp")):
      how = {"causal": True, "segment_ids": None, "window": 0, "softcap": 0.0}
      jax.eval_shape(lambda q: ring.attention(constrain(q, "batch", "length", None, None), k, v, **how), q)
    part = length // 8
    return {(kind, area / part**2) for kind, area in seen}

  assert areas(32) == {("diagonal", 1.0), ("block", 0.5)}
  assert areas(24) == {("diagonal", 1.0), ("block", 1.0)}  # parts of odd length are not dealt
