"""A multilayer perceptron, 784-512-512-10 with rectifiers, batch 128, Adam: the network of MNIST's tutorials."""

import itertools

import numpy as np

from benchmarks.updates import sides, turns

WIDTHS, BATCH = (784, 512, 512, 10), 128
NAMES = ("hidden_0", "hidden_1", "head")


def weights() -> dict[str, np.ndarray]:
  """The same for every side, kernels (in, out): He's deviations."""
  random = np.random.default_rng(0)
  shapes = itertools.pairwise(WIDTHS)
  kernels = [random.normal(0, np.sqrt(2 / shape[0]), shape).astype(np.float32) for shape in shapes]
  return dict(zip(NAMES, kernels, strict=True))


def batch() -> dict[str, np.ndarray]:
  random = np.random.default_rng(1)
  image = random.normal(size=(BATCH, 28, 28, 1)).astype(np.float32)
  return {"image": image, "label": random.integers(0, WIDTHS[-1], BATCH).astype(np.int32)}


def flagship(dtype: str) -> turns.Run:
  """Flagship's own task, as experiments.mlp compiles it."""
  from research.models.mlp import MLP
  from research.supervised import supervised

  def place(params):
    return {name: {**params[name], "kernel": kernel} for name, kernel in weights().items()}

  network = MLP(WIDTHS[-1], WIDTHS[1:-1], dtype=dtype)
  return sides.by_flagship(lambda rule: supervised(network, rule, loss="softmax"), batch(), place, sides.ADAM)


def flax() -> turns.Run:
  """The same network as a flax script writes it."""
  import flax.linen as nn
  import jax
  import optax

  class MLP(nn.Module):
    @nn.compact
    def __call__(self, image):
      x = image.reshape(BATCH, -1)
      for name, width in zip(NAMES[:-1], WIDTHS[1:-1], strict=True):
        x = nn.relu(nn.Dense(width, name=name)(x))
      return nn.Dense(WIDTHS[-1], name=NAMES[-1])(x)

  model = MLP()
  params = model.init(jax.random.key(0), batch()["image"])["params"]
  params = {name: {**params[name], "kernel": kernel} for name, kernel in weights().items()}

  def loss_of(params, extra, data):
    logits = model.apply({"params": params}, data["image"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, data["label"]).mean(), extra

  return sides.by_optax(loss_of, params, None, batch(), sides.ADAM)


def torch(dtype: str) -> turns.Run:
  """The same network in PyTorch, eager."""
  import torch
  from torch import nn
  from torch.nn import functional

  def make_model():
    layers = []
    for kernel in weights().values():
      layer = nn.Linear(*kernel.shape)
      layer.weight.data = torch.from_numpy(kernel.T.copy())
      nn.init.zeros_(layer.bias)
      layers += [layer, nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *layers[:-1])

  image, label = torch.from_numpy(batch()["image"]), torch.from_numpy(batch()["label"]).long()
  return sides.by_torch(
    make_model, lambda model: functional.cross_entropy(model(image), label), sides.ADAM, dtype=dtype
  )


ROW = turns.Row("MLP 784-512-512-10, batch 128, Adam", sides.five(flagship, flax, torch))
