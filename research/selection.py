"""Which checkpoint is best, and when to stop: both follow from the scores so far, so nothing of it needs saving."""

import math
from collections.abc import Mapping, Sequence

LOWER_IS_BETTER = (
  "loss", "mse", "mae", "mase", "error", "perplexity", "distance", "divergence", "bits_per_byte", "gap", "dropped"
)  # fmt: skip


def lower_is_better(metric: str) -> bool:
  """By the metric's last word: validation/loss and generated/frechet_distance fall, all that is not named rises."""
  return metric.rpartition("/")[2].endswith(LOWER_IS_BETTER)


def best(metric: str, scores: Sequence[tuple[int, float]]) -> tuple[int, float] | None:
  """The (step, value) that is best, the earlier of equals; None where no value is a number."""
  finite = [score for score in scores if score[1] is not None and math.isfinite(score[1])]
  sign = 1 if lower_is_better(metric) else -1
  return min(finite, key=lambda score: (sign * score[1], score[0])) if finite else None


def exhausted(metric: str, scores: Sequence[tuple[int, float]], patience: int) -> bool:
  """Whether the last `patience` evaluations brought nothing better. Never, where patience is 0."""
  top = best(metric, scores)
  since = sum(step > (top[0] if top else -1) for step, _ in scores)
  return 0 < patience <= since


def from_records(metric: str, records: Sequence[Mapping]) -> list[tuple[int, float]]:
  """The scores among a run's lines of metrics, oldest first."""
  return [(record["step"], record[metric]) for record in records if metric in record]
