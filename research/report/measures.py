"""How numbers are said to a person: metrics, durations, bytes.

It rounds for reading only; whatever is stored or compared keeps every digit.
"""

import math

BASELINES = {"seasonal_naive": "seasonal naive", "naive": "naive"}  # the beginning of a measure → what forecasts so


def is_share(name: str) -> bool:
  """Whether the metric is a share of 1 that reads best in per cent."""
  measure = name.rsplit("/", 1)[-1]
  shares = {"accuracy", "precision", "recall", "f1", "coverage"}
  return measure == "high_quality" or not shares.isdisjoint(measure.split("_"))


def is_plain(name: str) -> bool:
  """Whether no value of the metric is better than another: it tells how the run went, or what needs no learning scores,
  not how well."""
  if is_floor(name) or is_baseline(name):
    return True
  return name.endswith(("learning_rate", "per_second", "epoch", "norm", "logit", "distance_error"))


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
