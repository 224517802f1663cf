"""linear_cross_entropy beside the loss of materialised logits: time of value and gradients, and temporary memory."""

import functools
import statistics
import time

import jax
import jax.numpy as jnp

from research.kernels import choice
from research.kernels.linear_cross_entropy import linear_cross_entropy

SIZES = ((16_384, 768, 50_304), (16_384, 2048, 50_304))  # tokens, width, vocabulary
SMOKE = ((64, 16, 256),)


def rows(smoke: bool) -> list[dict]:
  return [_row(*size, rounds=2 if smoke else 10) for size in (SMOKE if smoke else SIZES)]


def _row(tokens: int, width: int, vocabulary: int, rounds: int) -> dict:
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (tokens, width), jnp.bfloat16)
  kernel = jax.random.normal(keys[1], (width, vocabulary), jnp.bfloat16) * jnp.bfloat16(0.02)
  labels = jax.random.randint(keys[2], (tokens,), 0, vocabulary, jnp.int32)

  def total(x, kernel):
    return linear_cross_entropy(x, kernel, labels, jnp.full(tokens, 1.0 / tokens)).total

  programs = {}
  for form in ("chunked", "xla"):
    with choice.use(linear_cross_entropy=form):
      programs[form] = jax.jit(jax.value_and_grad(functools.partial(total), argnums=(0, 1))).lower(x, kernel).compile()
  took = {form: [] for form in programs}
  for program in programs.values():
    jax.block_until_ready(program(x, kernel))
  for number in range(rounds):
    for form in list(programs) if number % 2 else list(programs)[::-1]:
      began = time.perf_counter()
      jax.block_until_ready(programs[form](x, kernel))
      took[form].append(time.perf_counter() - began)
  memory = {form: program.memory_analysis().temp_size_in_bytes for form, program in programs.items()}
  ratios = [theirs / ours for ours, theirs in zip(took["chunked"], took["xla"], strict=True)]
  return {
    "what": f"linear_cross_entropy, {tokens:,} tokens × {width} × {vocabulary:,}, bfloat16, value and gradients",
    "form": "chunked",
    "ms": 1000 * statistics.median(took["chunked"]),
    "peer": "materialised logits",
    "ratio": statistics.median(ratios),
    "spread": [min(ratios), max(ratios)],
    "temporary_mb": memory["chunked"] / 1e6,
    "peer_temporary_mb": memory["xla"] / 1e6,
  }
