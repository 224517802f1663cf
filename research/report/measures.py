"""How numbers are said to a person: metrics, durations, bytes.

It rounds for reading only; whatever is stored or compared keeps every digit.
"""

import math


def is_share(name: str) -> bool:
  """Whether the metric is a share of 1 that reads best in per cent."""
  return not {"accuracy", "precision", "recall", "f1"}.isdisjoint(name.rsplit("/", 1)[-1].split("_"))


def is_plain(name: str) -> bool:
  """Whether no value of the metric is better than another: it tells how the run went, not how well."""
  return name.endswith(("learning_rate", "per_second", "epoch", "norm"))


def split_order(name: str) -> int:
  """Sorts `split/name` by what a reader asks first: test, validation, train, the rest."""
  order = ("test", "validation", "train")
  split = name.split("/")[0]
  return order.index(split) if split in order else len(order)


def say(name: str, value: float) -> str:
  """`value` as a person reads it: 97.50% for an accuracy, four significant digits for all else."""
  if not math.isfinite(value):
    return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
  return f"{100 * value:.2f}%" if is_share(name) else say_number(value)


def say_number(value: float) -> str:
  """Four significant digits, thousands apart: 12,345 · 0.3120 · 1.2e-05."""
  if not math.isfinite(value):
    return str(value)
  size = abs(value)
  if value == int(value) and size < 1e15:
    return f"{int(value):,}"
  if size >= 1000:
    return f"{value:,.0f}"
  return f"{value:.4g}" if size < 1e-3 else f"{value:#.4g}"


def say_seconds(seconds: float) -> str:
  """0.42 s · 12.3 s · 12 s (given a whole number) · 4:05 · 1:02:03 · 2 d 3:04:05."""
  if seconds < 59.95:
    return f"{seconds} s" if isinstance(seconds, int) else f"{seconds:.{2 if seconds < 1 else 1}f} s"
  minutes, whole = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  days, hours = divmod(hours, 24)
  clock = f"{hours}:{minutes:02}:{whole:02}" if hours or days else f"{minutes}:{whole:02}"
  return f"{days} d {clock}" if days else clock


def say_bytes(count: float) -> str:
  """612 MiB · 1.4 GiB."""
  return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"
