"""One update of nanoGPT's CPU recipe: Flagship, Flagship in bfloat16, plain flax and PyTorch, turn by turn.

  python -m benchmarks.gpt                 needs the extra `bench`, for PyTorch
  python -m benchmarks.gpt --rounds=40

Four layers of width 128 with 4 heads, context 64, batch 12, AdamW with clipping, no dropout, no biases. All sides begin
with the same weights and the same batch, so their first losses must agree; the text is random, which changes no speed.
"""

import os

import numpy as np

from benchmarks import turns

LAYERS, WIDTH, HEADS, LENGTH, BATCH, VOCABULARY = 4, 128, 4, 64, 12, 65
RATE, DECAY, BETAS, CLIP = 1e-3, 0.1, (0.9, 0.99), 1.0


def weights() -> dict[str, np.ndarray]:
  """The same for every side: GPT-2's deviations, by nanoGPT's names; a layer's are (in, out)."""
  random = np.random.default_rng(0)
  normal = lambda *shape, std=0.02: random.normal(0, std, shape).astype(np.float32)  # noqa: E731
  branch = 0.02 / np.sqrt(2 * LAYERS)
  layer = {"query": (WIDTH, WIDTH), "key": (WIDTH, WIDTH), "value": (WIDTH, WIDTH), "up": (WIDTH, 4 * WIDTH)}
  found = {name: np.stack([normal(*shape) for _ in range(LAYERS)]) for name, shape in layer.items()}
  found["out"] = np.stack([normal(WIDTH, WIDTH, std=branch) for _ in range(LAYERS)])
  found["down"] = np.stack([normal(4 * WIDTH, WIDTH, std=branch) for _ in range(LAYERS)])
  return {**found, "tokens": normal(VOCABULARY, WIDTH), "places": normal(LENGTH, WIDTH)}


def batch() -> np.ndarray:
  return np.random.default_rng(1).integers(0, VOCABULARY, (BATCH, LENGTH + 1)).astype(np.int32)


def flagship(dtype: str = "float32") -> turns.Run:
  """Flagship's own task, as experiments.gpt compiles it."""
  import jax
  import jax.numpy as jnp

  from experiments.schema import Optim
  from research import optim
  from research.allocator import keep_freed_memory
  from research.language import language_modelling
  from research.models.language_model import LanguageModel
  from research.models.transformer_config import Config
  from research.task import step_key

  keep_freed_memory()  # as experiments.work does
  config = Config(layers=LAYERS, width=WIDTH, heads=HEADS, bias=False, unroll=LAYERS, dtype=dtype)
  rule = Optim(
    name="adamw", learning_rate=RATE, schedule="constant", beta2=BETAS[1], weight_decay=DECAY, clip_norm=CLIP
  )
  task = language_modelling(
    LanguageModel(config, VOCABULARY, LENGTH),
    optim.make_optimizer(rule, 1000),
    token_bytes_V=np.ones(VOCABULARY, np.int32),
  )
  data = {"tokens": jnp.asarray(batch()), "mask": jnp.ones(BATCH), "index": jnp.arange(BATCH)}
  state = jax.jit(task.init)(jax.random.key(0), data)
  w = jax.tree.map(jnp.asarray, weights())
  layers = state.params["transformer"]["layers"]
  params = {
    **state.params,
    "embed": {"embedding": w["tokens"]},
    "position_embed": {"embedding": w["places"]},
    "transformer": {
      **state.params["transformer"],
      "layers": {
        **layers,
        "attention": {name: {"kernel": w[name]} for name in ("query", "key", "value", "out")},
        "mlp": {name: {"kernel": w[name]} for name in ("up", "down")},
      },
    },
  }
  assert jax.tree.structure(params) == jax.tree.structure(state.params)
  state = state.replace(params=params)
  step = jax.jit(lambda state, data: task.step(state, data, step_key(0, state.step)), donate_argnums=0)

  def run(count: int) -> float:
    nonlocal state
    for _ in range(count):
      state, metrics = step(state, data)
    return float(metrics["loss"])

  return run


def bfloat16() -> turns.Run:
  return flagship("bfloat16")


def flax() -> turns.Run:
  """The same network as a flax script writes it: nn.Dense and einsum, a module for each layer, optax.adamw."""
  import flax.linen as nn
  import jax
  import jax.numpy as jnp
  import optax

  class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
      y = nn.LayerNorm(epsilon=1e-5, use_bias=False, name="norm_1")(x)
      q, k, v = (
        nn.Dense(WIDTH, use_bias=False, name=name)(y).reshape(BATCH, LENGTH, HEADS, -1)
        for name in ("query", "key", "value")
      )
      mask = nn.make_causal_mask(jnp.ones((BATCH, LENGTH)))
      y = nn.dot_product_attention(q, k, v, mask=mask).reshape(BATCH, LENGTH, WIDTH)
      x = x + nn.Dense(WIDTH, use_bias=False, name="out")(y)
      y = nn.LayerNorm(epsilon=1e-5, use_bias=False, name="norm_2")(x)
      y = nn.gelu(nn.Dense(4 * WIDTH, use_bias=False, name="up")(y))
      return x + nn.Dense(WIDTH, use_bias=False, name="down")(y)

  class GPT(nn.Module):
    @nn.compact
    def __call__(self, tokens):
      embed = nn.Embed(VOCABULARY, WIDTH, name="tokens")
      x = embed(tokens) + nn.Embed(LENGTH, WIDTH, name="places")(jnp.arange(LENGTH))
      for i in range(LAYERS):
        x = Block(name=f"block_{i}")(x)
      return embed.attend(nn.LayerNorm(epsilon=1e-5, use_bias=False, name="norm")(x))

  model, data, w = GPT(), jnp.asarray(batch()), weights()
  params = model.init(jax.random.key(0), data[:, :-1])["params"]
  params |= {name: {"embedding": jnp.asarray(w[name])} for name in ("tokens", "places")}
  for i in range(LAYERS):
    for name in ("query", "key", "value", "out", "up", "down"):
      params[f"block_{i}"][name] = {"kernel": jnp.asarray(w[name][i])}
  rule = optax.adamw(RATE, b2=BETAS[1], weight_decay=DECAY, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p))
  optimizer = optax.chain(optax.clip_by_global_norm(CLIP), rule)
  opt_state = optimizer.init(params)

  @jax.jit
  def step(params, opt_state, data):
    def loss_of(params):
      logits = model.apply({"params": params}, data[:, :-1])
      return optax.softmax_cross_entropy_with_integer_labels(logits, data[:, 1:]).mean()

    loss, gradients = jax.value_and_grad(loss_of)(params)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss

  def run(count: int) -> float:
    nonlocal params, opt_state
    for _ in range(count):
      params, opt_state, loss = step(params, opt_state, data)
    return float(loss)

  return run


def torch() -> turns.Run:
  """A compact PyTorch twin, eager, with its own fused attention."""
  import torch
  from torch import nn
  from torch.nn import functional

  torch.set_num_threads(os.cpu_count())
  w = weights()

  def linear(kernel):
    layer = nn.Linear(*kernel.shape, bias=False)
    layer.weight.data = torch.from_numpy(kernel.T.copy())
    return layer

  class Block(nn.Module):
    def __init__(self, i):
      super().__init__()
      self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
      self.qkv = linear(np.concatenate([w[name][i] for name in ("query", "key", "value")], axis=1))
      self.out, self.up, self.down = (linear(w[name][i]) for name in ("out", "up", "down"))

    def forward(self, x):
      q, k, v = self.qkv(self.norm_1(x)).view(BATCH, LENGTH, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
      y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
      x = x + self.out(y.transpose(1, 2).reshape(BATCH, LENGTH, WIDTH))
      return x + self.down(functional.gelu(self.up(self.norm_2(x)), approximate="tanh"))

  class GPT(nn.Module):
    def __init__(self):
      super().__init__()
      self.tokens = nn.Embedding.from_pretrained(torch.from_numpy(w["tokens"]), freeze=False)
      self.places = nn.Embedding.from_pretrained(torch.from_numpy(w["places"]), freeze=False)
      self.blocks = nn.Sequential(*(Block(i) for i in range(LAYERS)))
      self.norm = nn.LayerNorm(WIDTH, bias=False)

    def forward(self, tokens):
      x = self.blocks(self.tokens(tokens) + self.places(torch.arange(LENGTH)))
      return self.norm(x) @ self.tokens.weight.T

  model, data = GPT(), torch.from_numpy(batch()).long()
  matrices = [p for p in model.parameters() if p.ndim > 1]
  others = [p for p in model.parameters() if p.ndim <= 1]
  groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
  optimizer = torch.optim.AdamW(groups, RATE, BETAS)

  def run(count: int) -> float:
    for _ in range(count):
      loss = functional.cross_entropy(model(data[:, :-1]).flatten(0, 1), data[:, 1:].flatten())
      optimizer.zero_grad()
      loss.backward()
      nn.utils.clip_grad_norm_(model.parameters(), CLIP)
      optimizer.step()
    return loss.item()

  return run


if __name__ == "__main__":
  sides = {"flagship": flagship, "bfloat16": bfloat16, "flax": flax, "torch": torch}
  turns.main(__doc__, sides, module="benchmarks.gpt", steps=20)
