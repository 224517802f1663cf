"""ResNet-18 with CIFAR's stem (He et al. 2016), batch 32 of 32×32 colour images, Nesterov's momentum, weight decay."""

import numpy as np

from benchmarks.updates import sides, turns

WIDTH, BLOCKS, SIDE, BATCH, CLASSES = 64, (2, 2, 2, 2), 32, sides.of_size(32, gpu=512), 10


def weights() -> dict[str, np.ndarray]:
  """The same for every side by the names of Flagship's layers: kernels (h, w, in, out), He's deviations by fan-out.

  A block's last scale is 1 here, and not 0, so that the losses compared are those of the whole network.
  """
  random = np.random.default_rng(0)
  shapes, channels = {"stem": (3, 3, 3, WIDTH)}, WIDTH
  for stage, blocks in enumerate(BLOCKS):
    for block in range(blocks):
      wide, name = WIDTH << stage, f"stage_{stage}_block_{block}"
      shapes |= {f"{name}/conv_0": (3, 3, channels, wide), f"{name}/conv_1": (3, 3, wide, wide)}
      if channels != wide:
        shapes[f"{name}/projection"] = (1, 1, channels, wide)
      channels = wide
  found = {
    name: random.normal(0, np.sqrt(2 / (shape[0] * shape[1] * shape[3])), shape).astype(np.float32)
    for name, shape in shapes.items()
  }
  return {**found, "head": random.normal(0, 0.05, (channels, CLASSES)).astype(np.float32)}


def batch() -> dict[str, np.ndarray]:
  random = np.random.default_rng(1)
  image = random.normal(size=(BATCH, SIDE, SIDE, 3)).astype(np.float32)
  return {"image": image, "label": random.integers(0, CLASSES, BATCH).astype(np.int32)}


def placed(params):
  """`weights` in the places of the parameters that a flax model has drawn."""
  w = weights()

  def place(path, array):
    *module, leaf = (part.key for part in path)
    if module[-1] == "last_norm" and leaf == "scale":
      return np.ones_like(array)
    return w["/".join(module)] if leaf == "kernel" else array

  import jax

  return jax.tree_util.tree_map_with_path(place, params)


def flagship(dtype: str) -> turns.Run:
  """Flagship's own task, as experiments.cnn compiles it."""
  from research.models.resnet import ResNet
  from research.supervised import supervised

  network = ResNet(CLASSES, width=WIDTH, dtype=dtype)
  return sides.by_flagship(lambda rule: supervised(network, rule, loss="softmax"), batch(), placed, sides.NESTEROV)


def flax() -> turns.Run:
  """The same network as a flax script writes it: nn.Conv, nn.BatchNorm."""
  import functools

  import flax.linen as nn
  import jax
  import optax

  conv = functools.partial(nn.Conv, use_bias=False)
  norm = functools.partial(nn.BatchNorm, use_running_average=False, momentum=0.9)

  class Block(nn.Module):
    width: int
    strides: int

    @nn.compact
    def __call__(self, x):
      y = conv(self.width, (3, 3), self.strides, padding=1, name="conv_0")(x)
      y = conv(self.width, (3, 3), padding=1, name="conv_1")(nn.relu(norm(name="norm_0")(y)))
      y = norm(name="last_norm")(y)
      if x.shape != y.shape:
        x = norm(name="projection_norm")(conv(self.width, (1, 1), self.strides, padding=0, name="projection")(x))
      return nn.relu(x + y)

  class ResNet(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.relu(norm(name="stem_norm")(conv(WIDTH, (3, 3), padding=1, name="stem")(x)))
      for stage, blocks in enumerate(BLOCKS):
        for block in range(blocks):
          strides = 2 if stage and not block else 1
          x = Block(WIDTH << stage, strides, name=f"stage_{stage}_block_{block}")(x)
      return nn.Dense(CLASSES, name="head")(x.mean(axis=(1, 2)))

  model = ResNet()
  variables = model.init(jax.random.key(0), batch()["image"])

  def loss_of(params, statistics, data):
    logits, new = model.apply({"params": params, "batch_stats": statistics}, data["image"], mutable=["batch_stats"])
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, data["label"]).mean()
    return loss, new["batch_stats"]

  params = placed(variables["params"])
  return sides.by_optax(loss_of, params, variables["batch_stats"], batch(), sides.NESTEROV)


def torch(dtype: str, channels_last: bool = False) -> turns.Run:
  """The same network in PyTorch, eager, as torchvision writes it."""
  import torch
  from torch import nn
  from torch.nn import functional

  w = weights()

  def conv(name, strides=1):
    kernel = torch.from_numpy(w[name]).permute(3, 2, 0, 1).contiguous()
    outputs, inputs, size, _ = kernel.shape
    layer = nn.Conv2d(inputs, outputs, size, strides, size // 2, bias=False)
    layer.weight.data = kernel
    return layer

  class Block(nn.Module):
    def __init__(self, name, width, strides):
      super().__init__()
      self.conv_0, self.norm_0 = conv(f"{name}/conv_0", strides), nn.BatchNorm2d(width)
      self.conv_1, self.norm_1 = conv(f"{name}/conv_1"), nn.BatchNorm2d(width)
      self.relu, self.shortcut = nn.ReLU(inplace=True), nn.Identity()
      if f"{name}/projection" in w:
        self.shortcut = nn.Sequential(conv(f"{name}/projection", strides), nn.BatchNorm2d(width))

    def forward(self, x):
      y = self.norm_1(self.conv_1(self.relu(self.norm_0(self.conv_0(x)))))
      return self.relu(y + self.shortcut(x))

  def make_model():
    layers = [conv("stem"), nn.BatchNorm2d(WIDTH), nn.ReLU(inplace=True)]
    for stage, blocks in enumerate(BLOCKS):
      for block in range(blocks):
        layers.append(Block(f"stage_{stage}_block_{block}", WIDTH << stage, 2 if stage and not block else 1))
    head = nn.Linear(*w["head"].shape)
    head.weight.data = torch.from_numpy(w["head"].T.copy())
    nn.init.zeros_(head.bias)
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    return model.to(memory_format=torch.channels_last) if channels_last else model

  image, label = torch.from_numpy(batch()["image"]).permute(0, 3, 1, 2), torch.from_numpy(batch()["label"]).long()
  image = image.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
  image, label = image.to(sides.torch_device()), label.to(sides.torch_device())
  return sides.by_torch(
    make_model, lambda model: functional.cross_entropy(model(image), label), sides.NESTEROV, dtype=dtype
  )


ROW = turns.Row(
  f"ResNet-18, {BATCH} images of 32×32, Nesterov",
  {
    **sides.five(flagship, flax, torch),
    "PyTorch, channels last": lambda: torch("float32", channels_last=True),
  },
)
