"""A small vision transformer: the network of `experiments.vit --config=cifar10_small`, but wider.

Six layers of width 192 with 3 heads, patches of 4×4 in images of 32×32×3, the patches' mean, batch 64; learned
positions and AdamW with clipping, no stochastic depth. The images are noise.
"""

import numpy as np

from benchmarks.updates import sides, turns

LAYERS, WIDTH, HEADS, SIDE, PATCH, BATCH, CLASSES = 6, 192, 3, 32, 4, 64, 10
LENGTH, EPSILON = (SIDE // PATCH) ** 2, 1e-6


def weights() -> dict[str, np.ndarray]:
  """The same for every side, kernels (in, out): Glorot's deviations, and a head that is not zero, to compare losses."""
  random = np.random.default_rng(0)
  normal = lambda *shape: random.normal(0, np.sqrt(2 / sum(shape[-2:])), shape).astype(np.float32)  # noqa: E731
  square = (LAYERS, WIDTH, WIDTH)
  found = {name: normal(*square) for name in ("query", "key", "value", "out")}
  found |= {"up": normal(LAYERS, WIDTH, 4 * WIDTH), "down": normal(LAYERS, 4 * WIDTH, WIDTH)}
  found |= {"embed": normal(PATCH * PATCH * 3, WIDTH), "head": normal(WIDTH, CLASSES)}
  return {**found, "positions": random.normal(0, 0.02, (1, LENGTH, WIDTH)).astype(np.float32)}


def batch() -> dict[str, np.ndarray]:
  random = np.random.default_rng(1)
  image = random.normal(size=(BATCH, SIDE, SIDE, 3)).astype(np.float32)
  return {"image": image, "label": random.integers(0, CLASSES, BATCH).astype(np.int32)}


def flagship(dtype: str) -> turns.Run:
  """Flagship's own task, as experiments.vit compiles it."""
  from research.models.transformer_config import Config
  from research.models.vit import ViT
  from research.supervised import supervised

  config = Config(
    layers=LAYERS,
    width=WIDTH,
    heads=HEADS,
    norm_epsilon=EPSILON,
    causal=False,
    unroll=LAYERS,
    initializer="vit",
    dtype=dtype,
  )
  network = ViT(config, classes=CLASSES, patch=PATCH, pooling="mean")
  w = weights()

  def place(params):
    kernel = lambda there, name: {**there, "kernel": w[name]}  # noqa: E731
    stack = params["transformer"]
    layers = {
      **stack["layers"],
      **{
        part: {name: kernel(there, name) for name, there in stack["layers"][part].items()}
        for part in ("attention", "mlp")
      },
    }
    ends = {name: kernel(params[name], name) for name in ("embed", "head")}
    return {**params, **ends, "positions": w["positions"], "transformer": {**stack, "layers": layers}}

  return sides.by_flagship(lambda optimizer: supervised(network, optimizer, loss="softmax"), batch(), place)


def flax() -> turns.Run:
  """The same network as a flax script writes it: patches by nn.Conv, a module for each layer, optax.adamw."""
  import flax.linen as nn
  import jax
  import optax

  class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
      y = nn.LayerNorm(epsilon=EPSILON, name="norm_1")(x)
      q, k, v = (nn.Dense(WIDTH, name=name)(y).reshape(BATCH, LENGTH, HEADS, -1) for name in ("query", "key", "value"))
      x = x + nn.Dense(WIDTH, name="out")(nn.dot_product_attention(q, k, v).reshape(BATCH, LENGTH, WIDTH))
      y = nn.LayerNorm(epsilon=EPSILON, name="norm_2")(x)
      return x + nn.Dense(WIDTH, name="down")(nn.gelu(nn.Dense(4 * WIDTH, name="up")(y)))

  class ViT(nn.Module):
    @nn.compact
    def __call__(self, image):
      x = nn.Conv(WIDTH, (PATCH, PATCH), (PATCH, PATCH), name="embed")(image).reshape(BATCH, LENGTH, WIDTH)
      x = x + self.param("positions", nn.initializers.zeros, (1, LENGTH, WIDTH))
      for i in range(LAYERS):
        x = Block(name=f"block_{i}")(x)
      return nn.Dense(CLASSES, name="head")(nn.LayerNorm(epsilon=EPSILON, name="norm")(x).mean(axis=1))

  model, w = ViT(), weights()
  params = model.init(jax.random.key(0), batch()["image"])["params"]
  params["positions"] = w["positions"]
  params["embed"]["kernel"] = w["embed"].reshape(PATCH, PATCH, 3, WIDTH)
  params["head"]["kernel"] = w["head"]
  for i in range(LAYERS):
    for name in ("query", "key", "value", "out", "up", "down"):
      params[f"block_{i}"][name]["kernel"] = w[name][i]

  def loss_of(params, extra, data):
    logits = model.apply({"params": params}, data["image"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, data["label"]).mean(), extra

  return sides.by_optax(loss_of, params, None, batch())


def torch(dtype: str) -> turns.Run:
  """A compact PyTorch twin, eager, with its own fused attention."""
  import torch
  from torch import nn
  from torch.nn import functional

  w = weights()

  def linear(kernel):
    layer = nn.Linear(*kernel.shape)
    layer.weight.data = torch.from_numpy(kernel.T.copy())
    nn.init.zeros_(layer.bias)
    return layer

  class Block(nn.Module):
    def __init__(self, i):
      super().__init__()
      self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH, EPSILON), nn.LayerNorm(WIDTH, EPSILON)
      self.qkv = linear(np.concatenate([w[name][i] for name in ("query", "key", "value")], axis=1))
      self.out, self.up, self.down = (linear(w[name][i]) for name in ("out", "up", "down"))

    def forward(self, x):
      q, k, v = self.qkv(self.norm_1(x)).view(BATCH, LENGTH, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
      y = functional.scaled_dot_product_attention(q, k, v)
      x = x + self.out(y.transpose(1, 2).reshape(BATCH, LENGTH, WIDTH))
      return x + self.down(functional.gelu(self.up(self.norm_2(x)), approximate="tanh"))

  class ViT(nn.Module):
    def __init__(self):
      super().__init__()
      self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
      kernel_HWCD = torch.from_numpy(w["embed"].reshape(PATCH, PATCH, 3, WIDTH))
      self.embed.weight.data = kernel_HWCD.permute(3, 2, 0, 1).contiguous()
      nn.init.zeros_(self.embed.bias)
      self.positions = nn.Parameter(torch.from_numpy(w["positions"]))
      self.blocks = nn.Sequential(*(Block(i) for i in range(LAYERS)))
      self.norm, self.head = nn.LayerNorm(WIDTH, EPSILON), linear(w["head"])

    def forward(self, image):
      x = self.embed(image).flatten(2).transpose(1, 2) + self.positions
      return self.head(self.norm(self.blocks(x)).mean(dim=1))

  image = torch.from_numpy(batch()["image"]).permute(0, 3, 1, 2).contiguous()
  label = torch.from_numpy(batch()["label"]).long()
  return sides.by_torch(ViT, lambda model: functional.cross_entropy(model(image), label), dtype=dtype)


ROW = turns.Row("ViT, 6 layers of width 192, 64 images of 32×32, AdamW", sides.five(flagship, flax, torch))
