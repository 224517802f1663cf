"""The classic convolutional network: 3×3 convolutions of 32 and 64 channels, each pooled by 2×2, a dense layer of 256
and a head; batch 256 of 28×28 pixels, Adam."""

import numpy as np

from benchmarks.updates import sides, turns

WIDTHS, HIDDEN, SIDE, BATCH, CLASSES = (32, 64), 256, 28, 256, 10


def weights() -> dict[str, np.ndarray]:
  """The same for every side, kernels (h, w, in, out) and (in, out): He's deviations."""
  random = np.random.default_rng(0)
  flat = (SIDE // 4) ** 2 * WIDTHS[1]
  shapes = {
    "conv_0_0": (3, 3, 1, WIDTHS[0]), "conv_1_0": (3, 3, *WIDTHS), "hidden_0": (flat, HIDDEN), "head": (HIDDEN, CLASSES)
  }  # fmt: skip
  deviation = {name: np.sqrt(2 / np.prod(shape[:-1])) for name, shape in shapes.items()}
  return {name: random.normal(0, deviation[name], shape).astype(np.float32) for name, shape in shapes.items()}


def batch() -> dict[str, np.ndarray]:
  random = np.random.default_rng(1)
  image = random.normal(size=(BATCH, SIDE, SIDE, 1)).astype(np.float32)
  return {"image": image, "label": random.integers(0, CLASSES, BATCH).astype(np.int32)}


def flagship(dtype: str) -> turns.Run:
  """Flagship's own task, as experiments.cnn compiles it."""
  from research.models.cnn import CNN
  from research.supervised import supervised

  def place(params):
    return {name: {**params[name], "kernel": kernel} for name, kernel in weights().items()}

  network = CNN(CLASSES, WIDTHS, head_widths=(HIDDEN,), dtype=dtype)
  return sides.by_flagship(lambda rule: supervised(network, rule, loss="softmax"), batch(), place, sides.ADAM)


def flax() -> turns.Run:
  """The same network as a flax script writes it: nn.Conv, nn.max_pool."""
  import flax.linen as nn
  import jax
  import optax

  class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
      for number, width in enumerate(WIDTHS):
        x = nn.max_pool(nn.relu(nn.Conv(width, (3, 3), name=f"conv_{number}_0")(x)), (2, 2), (2, 2))
      x = nn.relu(nn.Dense(HIDDEN, name="hidden_0")(x.reshape(BATCH, -1)))
      return nn.Dense(CLASSES, name="head")(x)

  model = CNN()
  params = model.init(jax.random.key(0), batch()["image"])["params"]
  params = {name: {**params[name], "kernel": kernel} for name, kernel in weights().items()}

  def loss_of(params, extra, data):
    logits = model.apply({"params": params}, data["image"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, data["label"]).mean(), extra

  return sides.by_optax(loss_of, params, None, batch(), sides.ADAM)


def torch(dtype: str, channels_last: bool = False) -> turns.Run:
  """The same network in PyTorch, eager."""
  import torch
  from torch import nn
  from torch.nn import functional

  w = {name: torch.from_numpy(kernel) for name, kernel in weights().items()}

  def with_kernel(layer, kernel):
    layer.weight.data = kernel.contiguous()
    nn.init.zeros_(layer.bias)
    return layer

  def make_model():
    flat, hidden = w["hidden_0"].shape
    rows_of_channels = w["hidden_0"].reshape(SIDE // 4, SIDE // 4, WIDTHS[1], hidden).permute(3, 2, 0, 1)
    model = nn.Sequential(
      with_kernel(nn.Conv2d(1, WIDTHS[0], 3, padding=1), w["conv_0_0"].permute(3, 2, 0, 1)), nn.ReLU(), nn.MaxPool2d(2),
      with_kernel(nn.Conv2d(*WIDTHS, 3, padding=1), w["conv_1_0"].permute(3, 2, 0, 1)), nn.ReLU(), nn.MaxPool2d(2),
      nn.Flatten(), with_kernel(nn.Linear(flat, hidden), rows_of_channels.reshape(hidden, flat)), nn.ReLU(),
      with_kernel(nn.Linear(hidden, CLASSES), w["head"].T),
    )  # fmt: skip
    return model.to(memory_format=torch.channels_last) if channels_last else model

  image, label = torch.from_numpy(batch()["image"]).permute(0, 3, 1, 2), torch.from_numpy(batch()["label"]).long()
  image = image.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
  return sides.by_torch(
    make_model, lambda model: functional.cross_entropy(model(image), label), sides.ADAM, dtype=dtype
  )


ROW = turns.Row(
  "classic CNN 32-64-256, 256 images of 28×28, Adam",
  {**sides.five(flagship, flax, torch), "PyTorch, channels last": lambda: torch("float32", channels_last=True)},
)
