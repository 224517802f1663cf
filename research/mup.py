"""Maximal-update parametrisation: the best learning rate of a narrow network is that of a wide one of the same depth.

Yang et al. 2022 (Tensor Programs V), table 8. A network is m times as wide as its base; where a width grows is told by
the names of the parameters' axes, so no name of a layer is known here. What the network itself does about it
(initialisation, logits, attention) is in models/transformer_config.py; here is what its optimizer does. It refuses
rules for which no one has said what is right.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from research.errors import UserError
from research.parallel.tables import logical_axes

GROWING = ("embed", "mlp", "heads", "kv_heads")  # axes that are m times as long as the base's
RULES = ("sgd", "momentum", "nesterov", "adam", "adamw", "muon")


@dataclasses.dataclass(frozen=True)
class Growth:
  """What an optimizer knows of a network's width.

  Attributes:
    multiplier: m, its width over the base's.
    is_matrix: a tree as the parameters': whether both sides of an array grow. Those of which one side or none does
      (embeddings, output layers, biases, norms) are table 8's input and output weights.
  """

  multiplier: float
  is_matrix: Any


def growth(multiplier: float, initialize: Callable[[jax.Array], Any]) -> Growth:
  """Of the network whose `initialize` is key → parameters with named axes; nothing is computed."""
  axes = logical_axes(jax.eval_shape(initialize, jax.random.key(0)))
  is_matrix = lambda names: sum(name in GROWING for name in names[-2:]) == 2  # noqa: E731
  return Growth(multiplier, jax.tree.map(is_matrix, axes, is_leaf=lambda x: isinstance(x, tuple)))


def check(rule: str, weight_decay: float) -> None:
  """Raises UserError where it is not known how a rule's step should change with the width."""
  if rule not in RULES:
    raise UserError(f"optim: --model.mup_base_width has no rule for {rule}; it has for {', '.join(RULES)}")
  if rule == "adam" and weight_decay:
    raise UserError(
      "optim: under --model.mup_base_width an L2 term in Adam's gradient weighs more the wider the network is; take"
      " --optim.name=adamw"
    )


def scale_steps(growth: Growth, rule: str) -> optax.GradientTransformation:
  """A step's size by the shape of the parameter: before momentum in the SGDs, after the rule itself in the others.

  - adam, adamw: those of matrices ÷ m (table 8).
  - sgd, momentum, nesterov: those of all others × m (table 8: by fan-out of what comes in, by fan-in of what goes out).
  - muon: those of matrices ÷ √m: `optim` scales an orthogonal matrix by √width to Adam's root mean square, and what it
    may change a feature by is a spectral norm that does not grow (Yang et al. 2023, A spectral condition, condition 1).

  Weight decay is added after it: learning_rate·weight_decay is the share that decays in an update, whatever the width.
  """
  m = growth.multiplier
  if rule in ("sgd", "momentum", "nesterov"):
    matrix, other = 1.0, m
  else:
    matrix, other = m**-0.5 if rule == "muon" else 1.0 / m, 1.0

  def scale(updates, params=None):
    del params
    return jax.tree.map(lambda is_matrix, u: u * (matrix if is_matrix else other), growth.is_matrix, updates)

  return optax.stateless(scale)
