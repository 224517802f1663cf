"""What a transformer is made of, as numbers and names; no computation. transformer.py builds it."""

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp

from research.errors import UserError
from research.models.layers import DType, Initializer, glorot_uniform


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of a transformer. Raises UserError from `check` where the parts do not fit together.

  Attributes:
    layers: blocks.
    width: D.
    heads: H.
    kv_heads: G, heads of keys and values: H for multi-head, 1 for multi-query, between for grouped-query attention
      (Ainslie et al. 2023); 0: as many as `heads`.
    head_width: K; 0: width / heads.
    mlp: "gelu" (tanh form), "gelu_exact", "relu", or "swiglu" (Shazeer 2020).
    mlp_width: F; 0: 4·width, and for swiglu 8/3·width rounded up to a multiple of 8.
    norm: "layer" or "rms" (Zhang and Sennrich 2019).
    norm_epsilon: of it.
    norm_first: normalise what a branch reads, and once more at the end (pre-norm, Xiong et al. 2020); else the sum that
      a branch gives (post-norm, Vaswani et al. 2017).
    rotary: rotary positions (Su et al. 2021) in each attention; learned and sinusoidal ones are added to the input.
    rotary_base: theta.
    causal: no position sees a later one.
    window: a position sees this many positions back, its own included; 0: all of them.
    qk_norm: RMS-normalise queries and keys head by head (Dehghani et al. 2023).
    attention_softcap: s·tanh(scores / s) (Gemma 2, 2024, section 2); 0: none.
    bias: whether dense layers and layer norms have one.
    dropout: of attention's weights and of each branch's result.
    stochastic_depth: probability that an example passes by a branch of the last block in training; in the blocks
      before less, in a straight line from 0 (Huang et al. 2016).
    experts: E; 0: one MLP for all tokens.
    experts_per_token: how many of them a token goes to.
    capacity_factor: places of an expert over its fair share; tokens beyond them skip the layer, and are counted.
    initializer: "gpt2" (Radford et al. 2019: normal, 0.02, branches' ends 0.02/√(2·layers)), "bert" (truncated normal,
      0.02) or "vit" (Dosovitskiy et al. 2021: Glorot's uniform).
    mup_base_width: maximal-update parametrisation (Yang et al. 2022, table 8): the width at which a network is what it
      would be without, and m = width / mup_base_width; 0: the standard one. All other widths are taken to grow in
      proportion: the MLP's and the heads side by side, which are as many as in the base and wider, or, where
      `head_width` is given, as wide and more. Kernels of the stack begin 1/√m as large, logits are divided by m, and
      scores by √m where heads are wider. Depth is not transferred.
    unroll: blocks in one turn of the scan over layers.
    remat: what the backward pass computes again: "none", "dots" (all but matrix products), "full".
    dtype: what is computed in; parameters stay float32.
  """

  layers: int = 4
  width: int = 128
  heads: int = 4
  kv_heads: int = 0
  head_width: int = 0
  mlp: str = "gelu"
  mlp_width: int = 0
  norm: str = "layer"
  norm_epsilon: float = 1e-5
  norm_first: bool = True
  rotary: bool = False
  rotary_base: float = 10_000.0
  causal: bool = True
  window: int = 0
  qk_norm: bool = False
  attention_softcap: float = 0.0
  bias: bool = True
  dropout: float = 0.0
  stochastic_depth: float = 0.0
  experts: int = 0
  experts_per_token: int = 2
  capacity_factor: float = 1.25
  initializer: str = "gpt2"
  mup_base_width: int = 0
  unroll: int = 1
  remat: str = "none"
  dtype: DType = jnp.float32

  @property
  def groups(self) -> int:
    """G."""
    return self.kv_heads or self.heads

  @property
  def k(self) -> int:
    """K."""
    return self.head_width or self.width // self.heads

  @property
  def f(self) -> int:
    """F."""
    if self.mlp_width:
      return self.mlp_width
    return -(-8 * self.width // 24) * 8 if self.mlp == "swiglu" else 4 * self.width

  @property
  def width_multiplier(self) -> float:
    """m; 1 without `mup_base_width`."""
    return self.width / self.mup_base_width if self.mup_base_width else 1.0

  @property
  def query_multiplier(self) -> float:
    """What queries are multiplied by besides K^-½: K_base^½ K^-½, so that scores are K_base^½/K of a product."""
    return 1.0 if self.head_width else self.width_multiplier**-0.5

  def check(self) -> None:
    if not self.head_width and self.width % self.heads:
      raise UserError(
        f"model: {self.heads} heads do not divide a width of {self.width};"
        f" a width of {-(-self.width // self.heads) * self.heads} would, or give --model.head_width"
      )
    if self.heads % self.groups:
      raise UserError(f"model: {self.groups} key and value heads do not divide {self.heads} heads")
    if self.rotary and self.k % 2:
      raise UserError(f"model: rotary positions turn pairs, and heads are {self.k} wide; an even width would do")
    if self.experts and not 1 <= self.experts_per_token <= self.experts:
      raise UserError(f"model: a token cannot go to {self.experts_per_token} of {self.experts} experts")
    if self.experts and self.mup_base_width:
      raise UserError("model: --model.mup_base_width has no rule for the router of experts; take one of the two")
    if self.layers % self.unroll:
      raise UserError(f"model: {self.layers} layers do not divide into turns of {self.unroll}")


def initializers(config: Config) -> tuple[Initializer, Initializer]:
  """(of kernels between two widths of the stack, of those that end a branch)."""
  if config.initializer == "vit":
    return glorot_uniform, glorot_uniform  # whose variance falls as the widths grow, as maximal update has it
  shrink = config.width_multiplier**-0.5
  if config.initializer == "bert":
    normal = nn.initializers.truncated_normal(0.02 * shrink)
    return normal, normal
  return nn.initializers.normal(0.02 * shrink), nn.initializers.normal(0.02 * shrink / math.sqrt(2 * config.layers))


def head_initializer(config: Config) -> Initializer:
  """Of a kernel from the stack's width to tokens or classes: the same for all widths, since logits are divided by m."""
  return initializers(dataclasses.replace(config, mup_base_width=0))[0]
