"""Training GPT-2 of 124M parameters (12 layers, width 768, context 1,024) in bfloat16, beside a torch.compile twin.

The vocabulary is filled up to 50,304 as nanoGPT has it; random tokens, which change no speed. In the smoke mode the
network is tiny and on the CPU.
"""

import os

import numpy as np

from benchmarks.updates import sides, turns

SMOKE = bool(os.environ.get("FLAGSHIP_BENCHMARK_SMOKE"))
LAYERS, WIDTH, HEADS, LENGTH, BATCH, VOCABULARY = (2, 64, 2, 32, 2, 256) if SMOKE else (12, 768, 12, 1024, 32, 50_304)


def batch() -> np.ndarray:
  return np.random.default_rng(1).integers(0, VOCABULARY, (BATCH, LENGTH + 1)).astype(np.int32)


def flops() -> float:
  """Model FLOPs of an update: six for each weight of a product and token, and causal attention's (PaLM, appendix B)."""
  weights = LAYERS * 12 * WIDTH**2 + VOCABULARY * WIDTH
  return 6.0 * BATCH * LENGTH * (weights + LAYERS * WIDTH * LENGTH)


def flagship() -> turns.Run:
  from research.language import language_modelling
  from research.models.language_model import LanguageModel
  from research.models.transformer_config import Config

  config = Config(layers=LAYERS, width=WIDTH, heads=HEADS, bias=False, unroll=LAYERS, dtype="bfloat16")
  network = LanguageModel(config, VOCABULARY, LENGTH)

  def make_task(optimizer):
    return language_modelling(network, optimizer, token_bytes_V=np.ones(VOCABULARY, np.int32))

  return sides.by_flagship(make_task, {"tokens": batch()}, lambda params: params)


def torch(compiled: bool = True) -> turns.Run:
  import torch
  from torch import nn
  from torch.nn import functional

  class Block(nn.Module):
    def __init__(self):
      super().__init__()
      self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
      self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
      self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x):
      q, k, v = self.qkv(self.norm_1(x)).view(BATCH, LENGTH, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
      y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
      x = x + self.out(y.transpose(1, 2).reshape(x.shape))
      return x + self.down(functional.gelu(self.up(self.norm_2(x)), approximate="tanh"))

  class GPT(nn.Module):
    def __init__(self):
      super().__init__()
      self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
      nn.init.normal_(self.tokens.weight, std=0.02)
      self.blocks, self.norm = nn.Sequential(*(Block() for _ in range(LAYERS))), nn.LayerNorm(WIDTH, bias=False)

    def forward(self, data):
      x = self.tokens(data[:, :-1]) + self.places.weight
      logits = self.norm(self.blocks(x)) @ self.tokens.weight.T
      return functional.cross_entropy(logits.flatten(0, 1), data[:, 1:].flatten())

  torch.set_float32_matmul_precision("high")
  data = torch.from_numpy(batch()).long().to(sides.torch_device())
  return sides.by_torch(GPT, lambda model: model(data), dtype="bfloat16", compiled=compiled)


ROW = turns.Row(
  f"GPT-2 124M, {BATCH} × {LENGTH} tokens, bfloat16, AdamW",
  {"Flagship": flagship, "PyTorch": torch, "PyTorch, eager": lambda: torch(compiled=False)},
)
