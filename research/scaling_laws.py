"""Loss as a law of parameters and data: L(N, D) = E + A/N^α + B/D^β, its fit, and what it says of a compute budget.

Hoffmann et al. 2022 (Chinchilla), approaches 2 and 3. Pure functions of numbers; nothing is trained or drawn here. A
fit of few runs is not made to look like one of many: every fit has a bootstrap, a law that the runs do not fix says
so, and a parabola without a minimum among its points gives none.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from research.errors import UserError

HUBER = 1e-3  # delta of the loss of log residuals (Hoffmann et al. 2022, appendix D.2)
LEAST_RUNS = 6  # one more than the law has numbers
# Starts of (a, b, e, α, β), the same ranges as theirs; of all, the best are descended from.
_LOGS, _EXPONENTS = (0, 5, 10, 15, 20, 25), (0, 0.5, 1, 1.5, 2)
_GRID = (_LOGS, _LOGS, (-1, -0.5, 0, 0.5, 1), _EXPONENTS, _EXPONENTS)
_DESCENTS = 12
# Falling curves only: a rising term would be no law of scale. A term may be as little as e^−12 at the runs' middle.
_EXPONENT_BOUNDS, _LEAST_TERM = (1e-3, 5.0), -12.0
Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Law:
  """L(N, D) = E + A/N^α + B/D^β, in nats where the losses are; N parameters, D tokens.

  Attributes:
    pinned: those of its numbers that a fit left at the end of their range: the runs do not fix them.
  """

  E: float
  A: float
  B: float
  alpha: float
  beta: float
  pinned: tuple[str, ...] = ()

  def loss(self, parameters: Array, tokens: Array) -> Array:
    """L of each (N, D)."""
    n, d = np.asarray(parameters, np.float64), np.asarray(tokens, np.float64)
    return self.E + self.A * n**-self.alpha + self.B * d**-self.beta

  @property
  def exponents(self) -> tuple[float, float]:
    """(a, b) of N ∝ C^a and D ∝ C^b at the optimum: β/(α+β) and α/(α+β) (equation 4)."""
    total = self.alpha + self.beta
    return self.beta / total, self.alpha / total

  def optimum(self, flops: Array, flops_per_parameter_token: float = 6.0) -> tuple[Array, Array]:
    """(N, D) of the least loss where C = k·N·D (equation 4): N = G (C/k)^a, D = (C/k)^b / G, G = (αA/βB)^(1/(α+β)).

    Args:
      flops: C.
      flops_per_parameter_token: k.
    """
    a, b = self.exponents
    scale = (self.alpha * self.A / (self.beta * self.B)) ** (1.0 / (self.alpha + self.beta))
    products = np.asarray(flops, np.float64) / flops_per_parameter_token
    return scale * products**a, products**b / scale


def fit(parameters: Sequence[float], tokens: Sequence[float], losses: Sequence[float]) -> Law:
  """The law with the least Huber loss of log residuals (Hoffmann et al. 2022, equation 10), by L-BFGS.

  Losses are summed and not averaged, and the descent ends late: a mean of small numbers meets the usual tolerance too
  soon (Besiroglu et al. 2024).

  Args:
    parameters: N of each run.
    tokens: D.
    losses: L, all above 0.

  Raises:
    UserError: fewer than `LEAST_RUNS` runs, or of fewer than three sizes or lengths, which fix no exponent.
  """
  n, d, loss = (np.log(np.asarray(values, np.float64)) for values in (parameters, tokens, losses))
  if len(loss) < LEAST_RUNS:
    raise UserError(f"laws: five numbers are fitted, and there are {len(loss)} runs; at least {LEAST_RUNS} are needed")
  for name, values in (("sizes", n), ("lengths", d)):
    if len(np.unique(values)) < 3:
      raise UserError(f"laws: runs of at least three {name} are needed to fit an exponent")
  with _one_thread():
    return _descend(n, d, loss, _grid_starts(n, d, loss))


def bootstrap(
  parameters: Sequence[float], tokens: Sequence[float], losses: Sequence[float], count: int, seed: int = 0
) -> list[Law]:
  """Laws of `count` resamplings of the runs with replacement; one that could fix no exponent is drawn again."""
  n, d, loss = (np.asarray(values, np.float64) for values in (parameters, tokens, losses))
  whole, random, found = fit(n, d, loss), np.random.default_rng(seed), []
  with _one_thread():
    for _ in range(50 * count):
      if len(found) == count:
        break
      taken = random.integers(0, len(loss), len(loss))
      if min(len(np.unique(n[taken])), len(np.unique(d[taken]))) >= 3 and len(np.unique(taken)) >= LEAST_RUNS - 1:
        drawn = (np.log(values[taken]) for values in (n, d, loss))
        found.append(_descend(*drawn, [_numbers(whole)]))
  return found


def interval(values: Sequence[float], level: float = 0.9) -> tuple[float, float]:
  """The percentile interval that holds `level` of the values, as much left out on either side."""
  low, high = np.quantile(np.asarray(values, np.float64), [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class Parabola:
  """L = c0 + c1·x + c2·x² of x = ln N at one budget, and its minimum (Hoffmann et al. 2022, section 3.2).

  Attributes:
    coefficients: (c2, c1, c0).
    parameters: N at the minimum; None where the parabola has none, or has it outside the sizes that were trained.
    loss: there.
  """

  coefficients: tuple[float, float, float]
  parameters: float | None
  loss: float | None

  def __call__(self, parameters: Array) -> Array:
    return np.polyval(self.coefficients, np.log(np.asarray(parameters, np.float64)))


def parabola(parameters: Sequence[float], losses: Sequence[float]) -> Parabola:
  """Of one budget's runs. Raises UserError for fewer than three sizes."""
  x, y = np.log(np.asarray(parameters, np.float64)), np.asarray(losses, np.float64)
  if len(np.unique(x)) < 3:
    raise UserError(f"laws: a parabola needs three sizes at a budget, and there are {len(np.unique(x))}")
  c2, c1, c0 = (float(c) for c in np.polyfit(x, y, 2))
  vertex = -c1 / (2 * c2) if c2 > 0 else None
  inside = vertex is not None and x.min() <= vertex <= x.max()
  return Parabola((c2, c1, c0), float(np.exp(vertex)) if inside else None, c0 - c1**2 / (4 * c2) if inside else None)


def power_law(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
  """(coefficient, exponent) of y = coefficient·x^exponent by least squares of logarithms."""
  exponent, offset = np.polyfit(np.log(np.asarray(x, np.float64)), np.log(np.asarray(y, np.float64)), 1)
  return float(np.exp(offset)), float(exponent)


def resampled_exponents(budgets: Sequence[float], profiles: Sequence[tuple[Array, Array]], count: int, seed: int = 0):
  """Exponents a of N ∝ C^a by parabolas of resampled runs; resamplings with fewer than two minima give none.

  Args:
    budgets: C of each profile.
    profiles: (N, L) of each budget's runs.
    count: resamplings.
    seed: of them.
  """
  random, found = np.random.default_rng(seed), []
  for _ in range(count):
    minima = []
    for budget, (n, loss) in zip(budgets, profiles, strict=True):
      taken = random.integers(0, len(loss), len(loss))
      if len(np.unique(n[taken])) >= 3 and (least := parabola(n[taken], loss[taken]).parameters):
        minima.append((budget, least))
    if len(minima) >= 2:
      found.append(power_law(*zip(*minima, strict=True))[1])
  return found


def _one_thread():
  """scipy's L-BFGS multiplies matrices of twenty rows; BLAS' threads would spin for each, ten times as long as it."""
  import threadpoolctl

  return threadpoolctl.threadpool_limits(1, "blas")


def _numbers(law: Law) -> Array:
  """(a, b, e, α, β), where A = exp(a) and so on."""
  return np.array([*np.log([law.A, law.B, law.E]), law.alpha, law.beta])


def _objective(n: Array, d: Array, loss: Array) -> Callable[[Array], tuple[float, Array]]:
  """(centred numbers) → (sum of Huber losses of log L_predicted − log L, its gradient); arguments are logarithms.

  Centred: a is that at the runs' mean ln N, which does not change with α. The descent is then well conditioned.
  """

  def function(theta: Array) -> tuple[float, Array]:
    a, b, e, alpha, beta = theta
    terms = np.stack([a - alpha * n, b - beta * d, np.full_like(n, e)])
    top = terms.max(axis=0)
    share = np.exp(terms - top)
    total = share.sum(axis=0)
    residual = top + np.log(total) - loss
    slope = np.clip(residual, -HUBER, HUBER)
    value = np.where(np.abs(residual) <= HUBER, 0.5 * residual**2, HUBER * (np.abs(residual) - 0.5 * HUBER))
    by_term = slope * share / total
    gradient = [by_term[0].sum(), by_term[1].sum(), by_term[2].sum(), -(by_term[0] * n).sum(), -(by_term[1] * d).sum()]
    return value.sum(), np.array(gradient)

  return function


@functools.cache
def _grid() -> Array:
  return np.array(list(itertools.product(*_GRID)), np.float64)


def _grid_starts(n: Array, d: Array, loss: Array) -> list[Array]:
  """The most promising starts of the grid."""
  starts = _grid()
  logs = np.stack([
    starts[:, :1] - starts[:, 3:4] * n[None],
    starts[:, 1:2] - starts[:, 4:] * d[None],
    np.broadcast_to(starts[:, 2:3], (len(starts), len(n))),
  ])
  residual = np.abs(np.logaddexp.reduce(logs, axis=0) - loss[None])
  return list(starts[np.argsort(residual.sum(axis=1))[:_DESCENTS]])


def _descend(n: Array, d: Array, loss: Array, starts: Sequence[Array]) -> Law:
  from scipy import optimize

  mean_n, mean_d = n.mean(), d.mean()
  objective = _objective(n - mean_n, d - mean_d, loss)
  scaled = lambda theta: tuple(1e6 * part for part in objective(theta))  # noqa: E731  far from the tolerances
  bounds = [(_LEAST_TERM, loss.max() + 1.0)] * 3 + [_EXPONENT_BOUNDS] * 2
  options = {"maxiter": 2000, "maxfun": 5000, "ftol": 1e-15, "gtol": 1e-9}
  best = None
  for start in starts:
    shifted = start - np.array([start[3] * mean_n, start[4] * mean_d, 0, 0, 0])
    shifted = np.clip(shifted, *zip(*bounds, strict=True))
    found = optimize.minimize(scaled, shifted, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    if best is None or found.fun < best.fun:
      best = found
  a, b, e, alpha, beta = (float(number) for number in best.x)
  pinned = tuple(
    name
    for name, value, (low, high) in zip("ABEαβ", best.x, bounds, strict=True)
    if not low + 1e-6 < value < high - 1e-6
  )
  return Law(math.exp(e), math.exp(a + alpha * mean_n), math.exp(b + beta * mean_d), alpha, beta, pinned)
