"""How numbers are said to a person: metrics, durations, bytes; and of which metrics a best value is worth a word.

It rounds for reading only; whatever is stored or compared keeps every digit, and no program reads what is said here.
"""

import math
from collections.abc import Sequence

from research import selection, throughput

MINUS = "−"  # as wide as a plus sign; the hyphen of the keyboard is half of that
_PLAIN = (
  "learning_rate", "epoch", "norm", "logit", "beta",
  "skipped", "skipped_spikes",  # how many so far
  "distance_error",  # how far a kernel distance can be trusted
  "generator_loss", "discriminator_loss", "critic_loss",  # of a game: what one side wins the other loses
  "balance_loss", "kl", "density",  # best at 1, in balance with another term, and at about 1
)  # fmt: skip
BASELINES = {"seasonal_naive": "seasonal naive", "naive": "naive"}  # the beginning of a measure → what forecasts so


def is_share(name: str) -> bool:
  """Whether the metric is a share of 1 that reads best in per cent."""
  measure = name.rsplit("/", 1)[-1]
  shares = {"accuracy", "precision", "recall", "f1", "coverage", "mfu"}
  return measure == "high_quality" or not shares.isdisjoint(measure.split("_"))


def is_plain(name: str) -> bool:
  """Whether no value of the metric is better than another: it tells how the run went, or what needs no learning scores,
  not how well."""
  if is_floor(name) or is_baseline(name) or throughput.is_one(name):
    return True
  return name.endswith(_PLAIN)


def best(name: str, steps: Sequence[int], values: Sequence[float]) -> tuple[int, float] | None:
  """(step, value) of the best one, where that tells anything: None for what was measured once, or reads the same each
  time, or is of training batches, or of which no value is better than another."""
  if is_plain(name) or name.startswith("train/"):
    return None
  said = {say(name, value) for value in values if math.isfinite(value)}
  return selection.best(name, list(zip(steps, values, strict=True))) if len(said) > 1 else None


def is_floor(name: str) -> bool:
  """Whether it is what the real data themselves score by this measure: a constant to compare with."""
  return name.startswith("floor/")


def is_baseline(name: str) -> bool:
  """Whether it is what a forecast that learns nothing scores: a constant to compare with."""
  return bool(baseline(name)[0])


def baseline(name: str) -> tuple[str, str]:
  """("seasonal naive", "mae") of test/seasonal_naive_mae; ("", "mae") of test/mae, which is the model's own."""
  measure = name.partition("/")[2] or name
  for prefix, label in BASELINES.items():
    if measure.startswith(f"{prefix}_"):
      return label, measure.removeprefix(f"{prefix}_")
  return "", measure


def split_order(name: str) -> int:
  """Sorts `split/name` by what a reader asks first: test, validation, train, the rest, floors."""
  order = ("test", "validation", "train")
  split = name.split("/")[0]
  return order.index(split) if split in order else len(order) + is_floor(name)


def say(name: str, value: float) -> str:
  """`value` as a person reads it: 97.50% for an accuracy, 1.4 GiB of memory, four significant digits for all else."""
  if not math.isfinite(value):
    return "NaN" if math.isnan(value) else "∞" if value > 0 else f"{MINUS}∞"
  if name.endswith("_bytes"):
    return say_bytes(value)
  return with_minus(f"{100 * value:.2f}%") if is_share(name) else say_number(value)


def say_number(value: float) -> str:
  """Four significant digits, thousands apart: 12,345 · −0.3120 · 1.2e−05."""
  if not math.isfinite(value):
    return with_minus(str(value))
  size = abs(value)
  if value == int(value) and size < 1e15:
    return with_minus(f"{int(value):,}")
  if size >= 1000:
    return with_minus(f"{value:,.0f}")
  return with_minus(f"{value:.4g}" if size < 1e-3 else f"{value:#.4g}")


def with_minus(number: str) -> str:
  """A written number with true minus signs."""
  return number.replace("-", MINUS)


def say_seconds(seconds: float) -> str:
  """0.42 s · 12.3 s · 12 s (given a whole number) · 4:05 · 1:02:03 · 2 d 3:04:05."""
  if seconds < 59.95:
    return f"{seconds} s" if isinstance(seconds, int) else f"{seconds:.{2 if seconds < 1 else 1}f} s"
  minutes, whole = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  days, hours = divmod(hours, 24)
  clock = f"{hours}:{minutes:02}:{whole:02}" if hours or days else f"{minutes}:{whole:02}"
  return f"{days} d {clock}" if days else clock


def say_duration(seconds: float) -> str:
  """Three digits in the unit that suits what a program takes: 1.23 s · 45.6 ms · 7.89 µs · 120 ns."""
  if seconds >= 59.95:
    return say_seconds(seconds)
  for unit, length in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
    if seconds >= 0.9995 * length:
      return f"{seconds / length:.3g} {unit}"
  return f"{seconds / 1e-9:.3g} ns" if seconds else "0 s"


def say_bytes(count: float) -> str:
  """612 MiB · 1.4 GiB."""
  return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"
