"""nanoGPT's CPU recipe: four layers of width 128 with 4 heads, context 64, batch 12, AdamW with clipping, no biases.

The text is random, which changes no speed.
"""

import numpy as np

from benchmarks.updates import sides, turns

LAYERS, WIDTH, HEADS, LENGTH, BATCH, VOCABULARY = 4, 128, 4, 64, 12, 65


def weights(seed: int = 0) -> dict[str, np.ndarray]:
  """The same for every side: GPT-2's deviations, by nanoGPT's names; a layer's are (in, out)."""
  random = np.random.default_rng(seed)
  normal = lambda *shape, std=0.02: random.normal(0, std, shape).astype(np.float32)  # noqa: E731
  branch = 0.02 / np.sqrt(2 * LAYERS)
  layer = {"query": (WIDTH, WIDTH), "key": (WIDTH, WIDTH), "value": (WIDTH, WIDTH), "up": (WIDTH, 4 * WIDTH)}
  found = {name: np.stack([normal(*shape) for _ in range(LAYERS)]) for name, shape in layer.items()}
  found["out"] = np.stack([normal(WIDTH, WIDTH, std=branch) for _ in range(LAYERS)])
  found["down"] = np.stack([normal(4 * WIDTH, WIDTH, std=branch) for _ in range(LAYERS)])
  return {**found, "tokens": normal(VOCABULARY, WIDTH), "places": normal(LENGTH, WIDTH)}


def batch() -> np.ndarray:
  return np.random.default_rng(1).integers(0, VOCABULARY, (BATCH, LENGTH + 1)).astype(np.int32)


def language_task(optimizer, dtype: str = "float32"):
  """Flagship's own, as experiments.gpt makes it."""
  from research.language import language_modelling
  from research.models.language_model import LanguageModel
  from research.models.transformer_config import Config

  config = Config(layers=LAYERS, width=WIDTH, heads=HEADS, bias=False, unroll=LAYERS, dtype=dtype)
  network = LanguageModel(config, VOCABULARY, LENGTH)
  return language_modelling(network, optimizer, token_bytes_V=np.ones(VOCABULARY, np.int32))


def placed(params, seed: int = 0):
  """`weights` in the places of the parameters that the task has drawn."""
  w, stack = weights(seed), params["transformer"]
  layers = {
    **stack["layers"],
    "attention": {name: {"kernel": w[name]} for name in ("query", "key", "value", "out")},
    "mlp": {name: {"kernel": w[name]} for name in ("up", "down")},
  }
  embedded = {"embed": {"embedding": w["tokens"]}, "position_embed": {"embedding": w["places"]}}
  return {**params, **embedded, "transformer": {**stack, "layers": layers}}


def flagship(dtype: str) -> turns.Run:
  return sides.by_flagship(lambda optimizer: language_task(optimizer, dtype), {"tokens": batch()}, placed)


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

  model, w = GPT(), weights()
  params = model.init(jax.random.key(0), batch()[:, :-1])["params"]
  params |= {name: {"embedding": w[name]} for name in ("tokens", "places")}
  for i in range(LAYERS):
    params[f"block_{i}"] |= {name: {"kernel": w[name][i]} for name in ("query", "key", "value", "out", "up", "down")}

  def loss_of(params, extra, data):
    logits = model.apply({"params": params}, data[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, data[:, 1:]).mean(), extra

  return sides.by_optax(loss_of, params, None, batch())


def twin(seed: int = 0):
  """A compact PyTorch twin, eager, with its own fused attention: tokens (B, T) → logits (B, T, V)."""
  import torch
  from torch import nn
  from torch.nn import functional

  w = weights(seed)

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
      q, k, v = self.qkv(self.norm_1(x)).view(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
      y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
      x = x + self.out(y.transpose(1, 2).reshape(x.shape))
      return x + self.down(functional.gelu(self.up(self.norm_2(x)), approximate="tanh"))

  class GPT(nn.Module):
    def __init__(self):
      super().__init__()
      self.tokens = nn.Embedding.from_pretrained(torch.from_numpy(w["tokens"]), freeze=False)
      self.places = nn.Embedding.from_pretrained(torch.from_numpy(w["places"]), freeze=False)
      self.blocks = nn.Sequential(*(Block(i) for i in range(LAYERS)))
      self.norm = nn.LayerNorm(WIDTH, bias=False)

    def forward(self, tokens):
      x = self.blocks(self.tokens(tokens) + self.places(torch.arange(tokens.shape[1])))
      return self.norm(x) @ self.tokens.weight.T

  return GPT()


def torch(dtype: str) -> turns.Run:
  """The twin's updates."""
  import torch
  from torch.nn import functional

  data = torch.from_numpy(batch()).long()

  def loss_of(model):
    return functional.cross_entropy(model(data[:, :-1]).flatten(0, 1), data[:, 1:].flatten())

  return sides.by_torch(twin, loss_of, dtype=dtype)


ROW = turns.Row(
  "nanoGPT's CPU recipe, 4 layers of width 128, 12 × 64 characters, AdamW", sides.five(flagship, flax, torch)
)
