"""Examples by number: `open_splits(uri)` opens a set, and `Source.gather` reads from it."""

from research.data.source import ArraySource, Feature, Schema, Source, View
from research.data.splits import Splits, open_splits
from research.data.statistics import ChannelStatistics, channel_statistics

__all__ = [
  "ArraySource",
  "ChannelStatistics",
  "Feature",
  "Schema",
  "Source",
  "Splits",
  "View",
  "channel_statistics",
  "open_splits",
]
