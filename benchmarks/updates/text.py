"""A convolutional classifier of texts: the network of `experiments.text --config=docstrings_cnn` without dropout.

20,000 words, embeddings 128 wide, 100 filters each over 3, 4 and 5 words (Kim 2014), ten classes; batch 64, 100 words
at most, AdamW with clipping.
"""

import numpy as np

from benchmarks.updates import sides, turns

VOCABULARY, WIDTH, WINDOWS, FILTERS, LENGTH, BATCH, CLASSES = 20_000, 128, (3, 4, 5), 100, 100, 64, 10


def weights() -> dict[str, np.ndarray]:
  """The same for every side; a window's kernel is (words, D, filters)."""
  random = np.random.default_rng(0)
  normal = lambda std, *shape: random.normal(0, std, shape).astype(np.float32)  # noqa: E731
  found = {f"window_{n}": normal(np.sqrt(2 / (n * WIDTH)), n, WIDTH, FILTERS) for n in WINDOWS}
  return {**found, "embed": normal(0.1, VOCABULARY, WIDTH), "head": normal(0.06, len(WINDOWS) * FILTERS, CLASSES)}


def batch() -> dict[str, np.ndarray]:
  """Texts as long as docstrings are (half of them longer than is read), of words as frequent as in any language.

  Word r has a share of 1/r (Zipf); the embedding's gradient adds up over repeated words, so their number counts.
  """
  random = np.random.default_rng(1)
  share_V = 1 / np.arange(1, VOCABULARY + 1)
  tokens_BL = random.choice(VOCABULARY, (BATCH, LENGTH), p=share_V / share_V.sum()).astype(np.int32)
  length_B = np.where(np.arange(BATCH) % 2, LENGTH, random.integers(1, LENGTH, BATCH))
  tokens_BL = np.where(np.arange(LENGTH) < length_B[:, None], tokens_BL, np.int32(-1))
  return {"tokens": tokens_BL, "label": random.integers(0, CLASSES, BATCH).astype(np.int32)}


def flagship(dtype: str) -> turns.Run:
  """Flagship's own task, as experiments.text compiles it."""
  from research.models.text import TextCNN
  from research.supervised import supervised

  network = TextCNN(VOCABULARY, CLASSES, WIDTH, dtype=dtype, windows=WINDOWS, filters=FILTERS)
  w = weights()

  def place(params):
    kernel = lambda name: {**params[name], "kernel": w[name].reshape(params[name]["kernel"].shape)}  # noqa: E731
    kernels = {name: kernel(name) for name in params if name != "embed"}
    return {"embed": {"embedding": w["embed"]}, **kernels}

  def make_task(optimizer):
    return supervised(network, optimizer, loss="softmax", macro_f1=True)

  return sides.by_flagship(make_task, batch(), place)


def flax() -> turns.Run:
  """The same network as a flax script writes it: nn.Embed, nn.Conv, optax.adamw."""
  import flax.linen as nn
  import jax
  import jax.numpy as jnp
  import optax

  class TextCNN(nn.Module):
    @nn.compact
    def __call__(self, tokens):
      real = (tokens >= 0)[..., None]
      x = jnp.where(real, nn.Embed(VOCABULARY, WIDTH, name="embed")(jnp.maximum(tokens, 0)), 0)
      convolved = [nn.relu(nn.Conv(FILTERS, (n,), name=f"window_{n}")(x)) for n in WINDOWS]
      greatest = [jnp.where(real, y, 0).max(axis=1) for y in convolved]
      return nn.Dense(CLASSES, name="head")(jnp.concatenate(greatest, axis=-1))

  model, w = TextCNN(), weights()
  params = model.init(jax.random.key(0), batch()["tokens"])["params"]
  params["embed"]["embedding"] = w["embed"]
  for name in ("head", *(f"window_{n}" for n in WINDOWS)):
    params[name]["kernel"] = w[name]

  def loss_of(params, extra, data):
    logits = model.apply({"params": params}, data["tokens"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, data["label"]).mean(), extra

  return sides.by_optax(loss_of, params, None, batch())


def torch(dtype: str) -> turns.Run:
  """A compact PyTorch twin, eager: nn.Embedding, nn.Conv1d."""
  import torch
  from torch import nn
  from torch.nn import functional

  w = weights()

  class TextCNN(nn.Module):
    def __init__(self):
      super().__init__()
      self.embed = nn.Embedding.from_pretrained(torch.from_numpy(w["embed"]), freeze=False)
      self.windows = nn.ModuleList(nn.Conv1d(WIDTH, FILTERS, n) for n in WINDOWS)
      for n, layer in zip(WINDOWS, self.windows, strict=True):
        layer.weight.data = torch.from_numpy(w[f"window_{n}"].transpose(2, 1, 0).copy())
        nn.init.zeros_(layer.bias)
      self.head = nn.Linear(len(WINDOWS) * FILTERS, CLASSES)
      self.head.weight.data = torch.from_numpy(w["head"].T.copy())
      nn.init.zeros_(self.head.bias)

    def forward(self, tokens):
      real = (tokens >= 0)[:, None]
      x = self.embed(tokens.clamp(min=0)).transpose(1, 2) * real
      greatest = []
      for n, layer in zip(WINDOWS, self.windows, strict=True):
        y = functional.relu(layer(functional.pad(x, ((n - 1) // 2, n // 2))))
        greatest.append((y * real).max(dim=2).values)
      return self.head(torch.cat(greatest, dim=1))

  tokens, label = (torch.from_numpy(batch()[name]).long() for name in ("tokens", "label"))
  return sides.by_torch(TextCNN, lambda model: functional.cross_entropy(model(tokens), label), dtype=dtype)


ROW = turns.Row("text CNN, 64 texts of 100 words, AdamW", sides.five(flagship, flax, torch))
