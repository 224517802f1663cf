"""synthetic:NAME?option=value&…, problems made from a formula, whose answer is known.

Features are left as they are made: they are of order one, and a line's slope and intercept stay readable.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl

import numpy as np

from research import nearest
from research.data import fingerprint
from research.data.source import ArraySource, Dataset, Feature, Options, Schema
from research.errors import UserError

_RULE = "synthetic 1"  # part of the fingerprint: raise it when the same options would give other numbers
_LOWEST = {"size": 1, "classes": 1, "modes": 1, "side": 1, "period": 1, "seed": 0, "noise": 0.0, "sigma": 0.0}


@dataclasses.dataclass(frozen=True)
class Made:
  features_ND: np.ndarray
  output_N: np.ndarray
  classes: int = 0  # 0 for a regression


def open_dataset(rest: str, options: Options) -> Dataset:
  """The set NAME with its options; the same options give the same fingerprint."""
  name, _, query = rest.partition("?")
  if name not in SETS:
    raise UserError(f"data: no dataset 'synthetic:{name}'{nearest.hint(name, SETS)}")
  chosen = read_options(SETS, name, query)
  made = SETS[name](**chosen)
  output, dtype = ("label", "int32") if made.classes else ("target", "float32")
  width = made.features_ND.shape[1]
  schema = Schema(
    {"features": Feature((width,), "float32"), output: Feature((), dtype)},
    tuple(str(number) for number in range(made.classes)),
    ("x",) if width == 1 else ("x", "y"),
  )
  arrays = {"features": made.features_ND.astype(np.float32), output: made.output_N.astype(dtype)}
  # By recipe: sines and logarithms differ in their last bits between machines.
  content = fingerprint.text(_RULE, name, *[f"{key}={value!r}" for key, value in sorted(chosen.items())])
  return Dataset({"all": ArraySource(f"synthetic:{rest}", schema, arrays, content)})


def line(w: float = 2.0, b: float = 1.0) -> Made:
  """Exactly five points of y = w x + b, at x = -2, -1, 0, 1, 2."""
  x_N1 = np.arange(-2.0, 3.0)[:, None]
  return Made(x_N1, w * x_N1[:, 0] + b)


def line_noisy(size: int = 10_000, w: float = 2.0, b: float = 1.0, noise: float = 0.5, seed: int = 0) -> Made:
  """y = w x + b + noise * normal, x uniform in [-1, 1)."""
  random = _generator(seed)
  x_N1 = random.uniform(-1, 1, (size, 1))
  return Made(x_N1, w * x_N1[:, 0] + b + noise * random.standard_normal(size))


def rings(size: int = 1000, classes: int = 2, noise: float = 0.05, seed: int = 0) -> Made:
  """Concentric circles of radius 1/classes, …, 1; `noise` is the standard deviation in x and in y."""
  random, label_N = _generator(seed), np.arange(size) % classes
  angle_N = random.uniform(0, 2 * np.pi, size)
  return Made(_polar((label_N + 1) / classes, angle_N) + noise * random.standard_normal((size, 2)), label_N, classes)


def spirals(size: int = 1000, classes: int = 2, noise: float = 0.02, seed: int = 0, turns: float = 1.5) -> Made:
  """Arms that wind `turns` times around the origin, from radius 0.1 to 1, evenly along the angle."""
  random, label_N = _generator(seed), np.arange(size) % classes
  along_N = random.uniform(0, 1, size)
  angle_N = 2 * np.pi * (turns * along_N + label_N / classes)
  points_N2 = _polar(0.1 + 0.9 * along_N, angle_N) + noise * random.standard_normal((size, 2))
  return Made(points_N2, label_N, classes)


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Equally likely Gaussians: centers_MD and one standard deviation."""

  centers_MD: np.ndarray
  sigma: float


def ring_mixture(modes: int = 8, radius: float = 2.0, sigma: float = 0.02) -> Mixture:
  """Gaussians around a circle (Metz et al. 2017, appendix A)."""
  return Mixture(_polar(np.full(modes, radius), 2 * np.pi * np.arange(modes) / modes), sigma)


def grid_mixture(side: int = 5, spacing: float = 2.0, sigma: float = 0.05) -> Mixture:
  """side × side Gaussians on a square grid around the origin (Srivastava et al. 2017, section 4.1)."""
  places = spacing * (np.arange(side) - (side - 1) / 2)
  return Mixture(np.stack(np.meshgrid(places, places, indexing="ij"), axis=-1).reshape(-1, 2), sigma)


def ring(size: int = 50_000, modes: int = 8, radius: float = 2.0, sigma: float = 0.02, seed: int = 0) -> Made:
  """Points of `ring_mixture`; the label is the Gaussian's number."""
  return _drawn(ring_mixture(modes, radius, sigma), size, seed)


def grid(size: int = 50_000, side: int = 5, spacing: float = 2.0, sigma: float = 0.05, seed: int = 0) -> Made:
  """Points of `grid_mixture`; the label is the Gaussian's number."""
  return _drawn(grid_mixture(side, spacing, sigma), size, seed)


def _drawn(mixture: Mixture, size: int, seed: int) -> Made:
  random, modes = _generator(seed), len(mixture.centers_MD)
  label_N = np.arange(size) % modes
  return Made(mixture.centers_MD[label_N] + mixture.sigma * random.standard_normal((size, 2)), label_N, modes)


SETS: dict[str, Callable[..., Made]] = {
  "line": line, "line_noisy": line_noisy, "rings": rings, "spirals": spirals, "ring": ring, "grid": grid
}  # fmt: skip
MIXTURES: dict[str, Callable[..., Mixture]] = {"ring": ring_mixture, "grid": grid_mixture}


def mixture(source: str) -> Mixture | None:
  """The mixture that "synthetic:NAME?options" draws from; None for any other source."""
  kind, _, rest = source.partition(":")
  name, _, query = rest.partition("?")
  if kind != "synthetic" or name not in MIXTURES:
    return None
  wanted = inspect.signature(MIXTURES[name]).parameters
  return MIXTURES[name](**{key: value for key, value in read_options(SETS, name, query).items() if key in wanted})


def _polar(radius_N: np.ndarray, angle_N: np.ndarray) -> np.ndarray:
  return np.stack([radius_N * np.cos(angle_N), radius_N * np.sin(angle_N)], axis=1)


def _generator(seed: int) -> np.random.Generator:
  return np.random.Generator(np.random.Philox(key=seed))


def read_options(sets: Mapping[str, Callable], name: str, query: str) -> dict[str, int | float]:
  """The defaults of sets[name] with those of `query` over them; types and names come from its function's signature."""
  parameters = inspect.signature(sets[name]).parameters
  chosen = {key: parameter.default for key, parameter in parameters.items()}
  for key, text in parse_qsl(query, keep_blank_values=True):
    if key not in chosen:
      raise UserError(f"data: synthetic:{name} has no option {key!r}{nearest.hint(key, chosen)}")
    kind = type(chosen[key])
    try:
      chosen[key] = kind(text)
    except ValueError:
      what = "an integer" if kind is int else "a number"
      raise UserError(f"data: synthetic:{name}: {key}={text!r} is not {what}") from None
    lowest = _LOWEST.get(key, -np.inf)
    if not lowest <= chosen[key] < np.inf:
      raise UserError(f"data: synthetic:{name}: {key}={text} must be finite and at least {lowest}")
  return chosen
