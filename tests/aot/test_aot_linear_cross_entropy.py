"""The temporaries of cross-entropy with gradients, on chips that are not here: by chunks, beside all the logits."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from research import aot
from research.kernels.linear_cross_entropy import linear_cross_entropy

pytestmark = pytest.mark.aot

VOCABULARY = 50_304


@pytest.mark.parametrize("chip", ["v5e:2x2", "h100"])
@pytest.mark.parametrize(("tokens", "width"), [(16_384, 2048), (8192, 768)])
def test_chunks_take_a_seventh_of_the_memory_of_all_logits(chip, tokens, width, monkeypatch):
  """In bfloat16. What is left is the sum of the kernel's gradient, float32, which no result has room for."""
  monkeypatch.setattr(jax, "device_count", lambda: 1)  # as on a machine with that chip; here are eight others
  one = SingleDeviceSharding((aot.gpu(chip) if chip == "h100" else aot.tpu(chip))[0])
  inputs = [((tokens, width), "bfloat16"), ((width, VOCABULARY), "bfloat16")]
  shapes = [*inputs, ((tokens,), "int32"), ((tokens,), "float32")]
  given = [jax.ShapeDtypeStruct(*each, sharding=one) for each in shapes]

  def temporaries(form):
    def total(x, kernel, labels, weights):
      found = linear_cross_entropy(x, kernel, labels, weights, form=form)
      return found.total, found.loss_N

    options = aot.OPTIONS if chip == "h100" else None
    slopes = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True), compiler_options=options)
    return slopes.lower(*given).compile().memory_analysis().temp_size_in_bytes

  ours, by_xla = temporaries("chunked"), temporaries("xla")
  print(f"compiled for {chip}: {tokens} tokens of {width}: {ours / 2**20:.0f} MB, all logits {by_xla / 2**20:.0f} MB")
  assert by_xla >= 4 * tokens * VOCABULARY
  assert ours <= 0.15 * by_xla
  assert ours >= 0.95 * jnp.dtype("float32").itemsize * width * VOCABULARY
