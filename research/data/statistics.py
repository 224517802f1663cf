"""Mean and standard deviation of a split's images, per channel, exactly: what normalising subtracts and divides by."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from research.data import cache
from research.data import fingerprint as fingerprints
from research.data.source import Source

_CHUNK_BYTES = 1 << 23
_REMEMBER_BYTES = 1 << 23  # counting this much takes less time than it is worth a file for


@dataclasses.dataclass(frozen=True)
class ChannelStatistics:
  """In raw units, 0 to 255. A channel that is constant has std 1, so that normalising makes it 0 and not NaN."""

  mean_C: tuple[float, ...]
  std_C: tuple[float, ...]


def channel_statistics(source: Source, cache_dir: str = "") -> ChannelStatistics:
  """Of "image" (N, H, W, C) uint8, over N, H and W; std is the population's.

  The pixels are counted by value, so sums are integers and the results correctly rounded, on every machine. Those of a
  large source are remembered in the cache directory under its fingerprint."""
  memo = cache.directory(cache_dir) / "statistics" / f"{source.fingerprint}.json"
  large = source.size * source.schema.features["image"].nbytes >= _REMEMBER_BYTES
  channels = source.schema.features["image"].shape[-1]
  found = fingerprints.read_json(memo) if large else {}
  try:
    mean_C, std_C = (tuple(map(float, found[key])) for key in ("mean", "std"))
    if len(mean_C) == len(std_C) == channels and all(map(math.isfinite, mean_C)) and min(std_C) > 0:
      return ChannelStatistics(mean_C, std_C)
  except (KeyError, TypeError, ValueError):
    pass
  statistics = _from_counts(_counts(source, channels))
  if large:
    fingerprints.write_json(memo, {"mean": statistics.mean_C, "std": statistics.std_C})
  return statistics


def _counts(source: Source, channels: int) -> np.ndarray:
  """How often each value occurs, (C, 256) int64."""
  counts_CV = np.zeros((channels, 256), np.int64)
  rows = max(1, _CHUNK_BYTES // source.schema.example_bytes)
  for start in range(0, source.size, rows):
    x_BHWC = source.gather(np.arange(start, min(start + rows, source.size)))["image"]
    for channel in range(channels):
      counts_CV[channel] += np.bincount(x_BHWC[..., channel].ravel(), minlength=256)
  return counts_CV


def _from_counts(counts_CV: np.ndarray) -> ChannelStatistics:
  mean_C, std_C = [], []
  for counts_V in counts_CV.tolist():  # Python's integers: n * sum of squares passes 2**63
    count = sum(counts_V)
    total = sum(value * times for value, times in enumerate(counts_V))
    squares = sum(value * value * times for value, times in enumerate(counts_V))
    mean_C.append(total / count)
    std_C.append(math.sqrt((count * squares - total * total) / (count * count)) or 1.0)
  return ChannelStatistics(tuple(mean_C), tuple(std_C))
