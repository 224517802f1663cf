"""All that a judge's features tell about a generator, against real examples that are looked at once."""

import numpy as np

from research.judging import frechet, kernel_distance, neighbours


class Reference:
  """Real examples' features (N, D), with what depends on them alone. Raises UserError for fewer than 4."""

  def __init__(self, features_ND: np.ndarray):
    self.balls = neighbours.Balls.of(features_ND)
    self.gaussian = frechet.Gaussian.of(features_ND)

  @property
  def features_ND(self) -> np.ndarray:
    return self.balls.center_ND


def score(features_ND: np.ndarray, reference: Reference, seed: int = 0) -> dict[str, float]:
  """Scores of generated features (N, D) by name; see frechet.py, kernel_distance.py and neighbours.py.

  Fréchet distance and recall depend on the number of examples on both sides: only scores of as many examples compare.

  Args:
    features_ND: of generated examples, by the judge that saw the real ones.
    reference: the real ones.
    seed: of the kernel distance's shuffling.

  Returns: "frechet_distance", "precision", "recall", "density", "coverage", "kernel_distance" and
    "kernel_distance_error" (its standard error).

  Raises:
    UserError: fewer than 4 examples, other dimensions than the reference's, NaN or infinite features.
  """
  found = kernel_distance.kernel_distance(features_ND, reference.features_ND, seed)
  return {
    "frechet_distance": frechet.frechet_distance(frechet.Gaussian.of(features_ND), reference.gaussian),
    **neighbours.compare(neighbours.Balls.of(features_ND), reference.balls)._asdict(),
    "kernel_distance": found.distance,
    "kernel_distance_error": found.standard_error,
  }
