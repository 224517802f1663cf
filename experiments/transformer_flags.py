"""The flags that GPT, BERT and ViT share, and the transformer that they stand for."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn

from experiments.schema import flag
from research import mup
from research.models.transformer_config import Config


@dataclasses.dataclass(frozen=True)
class Transformer:
  """The transformer"""

  layers: int = flag(4, "blocks", low=1)
  width: int = flag(128, "width of the vectors between them", low=1)
  heads: int = flag(4, "attention heads", low=1)
  kv_heads: int = flag(0, "heads of keys and values (1: multi-query); 0: as many as heads", low=0)
  head_width: int = flag(0, "width of a head; 0: width / heads", low=0)
  mlp: str = flag("gelu", "nonlinearity of the MLPs", choices=("gelu", "gelu_exact", "relu", "swiglu"))
  mlp_width: int = flag(0, "hidden width; 0: 4 times the width, for swiglu 8/3 times", low=0)
  norm: str = flag("layer", "normalisation", choices=("layer", "rms"))
  norm_epsilon: float = flag(1e-5, "what it adds to the variance", low=0.0)
  norm_first: bool = flag(True, "normalise what a branch reads; no: the sum that it gives")
  rotary_base: float = flag(10_000.0, "rotary positions: base of their wavelengths", low=1.0)
  window: int = flag(0, "positions that one sees, itself included; 0: all", low=0)
  qk_norm: bool = flag(False, "normalise queries and keys")
  attention_softcap: float = flag(0.0, "bound of attention scores, by tanh; 0: none", low=0.0)
  bias: bool = flag(True, "biases in dense layers and norms")
  dropout: float = flag(0.0, "of attention weights and branches", low=0.0, high=0.99)
  stochastic_depth: float = flag(0.0, "probability of passing by the last block's branches", low=0.0, high=0.9)
  experts: int = flag(0, "MLPs of a mixture of experts; 0: one for all tokens", low=0)
  experts_per_token: int = flag(2, "how many of them a token goes to", low=1)
  capacity_factor: float = flag(1.25, "places of an expert over its fair share", low=0.01)
  mup_base_width: int = flag(0, "maximal update: the width whose best learning rate holds for all; 0: off", low=0)
  unroll: int = flag(1, "blocks in one turn of the scan over layers", low=1)
  remat: str = flag("none", "what the backward pass computes again", choices=("none", "dots", "full"), curve=False)
  dtype: str = flag("float32", "what is computed in; parameters stay float32", choices=("float32", "bfloat16"))

  def config(self, **more) -> Config:
    """The checked shape; `more` are the fields that no flag sets."""
    ours = {field.name for field in dataclasses.fields(Config)}
    values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name in ours}
    config = Config(**{**values, **more})
    config.check()
    return config

  def growth(self, network: nn.Module, *inputs: Any, **named: Any) -> mup.Growth | None:
    """What the optimizer of maximal update knows of the network that takes such inputs (shapes will do); None: off."""
    if not self.mup_base_width:
      return None
    initialize = functools.partial(network.init, train=False, **named)
    return mup.growth(self.config().width_multiplier, lambda key: initialize(key, *inputs)["params"])
