"""From the data flags to transforms and feeds, with the checks that need to see the data."""

import dataclasses

from experiments.schema import Data, Experiment
from research.data import feeds, transforms
from research.data.randaugment import randaugment
from research.data.source import Schema
from research.data.splits import Splits, open_splits
from research.data.statistics import channel_statistics
from research.errors import UserError
from research.parallel.tables import Layout


@dataclasses.dataclass(frozen=True)
class Inputs:
  """What training and evaluation read.

  Attributes:
    splits: the open data.
    train: the training feed.
    evaluation: split name → feed of every example once.
    augment: training's transform.
    prepare: evaluation's transform.
  """

  splits: Splits
  train: feeds.Feed
  evaluation: dict[str, feeds.Feed]
  augment: transforms.Transform
  prepare: transforms.Transform


def open_data(data: Data, progress=lambda line: None) -> Splits:
  """The splits that the flags ask for."""
  return open_splits(
    data.source,
    data_dir=data.dir,
    cache_dir=data.cache_dir,
    target=data.target,
    **data.division,
    progress=progress,
  )


def make_inputs(config: Experiment, splits: Splits, layout: Layout, *, promised: bool = False) -> Inputs:
  """Feeds over the layout. Raises UserError where the flags do not fit the data or the devices.

  With `promised` the devices are not here, and feeds give shapes.
  """
  data, mesh = config.data, layout.mesh
  how = {"axes": layout.batch_axes, "promised": promised}
  _check(config, splits, layout.ways)
  parts = {"validation": splits.validation, "test": splits.test}
  parts = {name: source for name, source in parts.items() if source is not None}
  budget = data.device_budget_mb * 10**6
  if data.feed == "auto":  # all splits share the device, so they fit together or not at all
    budget -= sum(source.nbytes for source in parts.values())
  shuffled = feeds.Shuffled(config.seed, data.batch_size, splits.train.size)
  (train,) = feeds.make_feeds(splits.train, mesh, [shuffled], kind=data.feed, budget_bytes=budget, **how)
  if config.run.steps_per_call > 1 and not train.resident:
    raise UserError(
      f"flags: --run.steps_per_call={config.run.steps_per_call} needs the data on the device, and"
      f" {splits.train.nbytes // 10**6} MB do not fit in --data.device_budget_mb={data.device_budget_mb}"
    )
  evaluation = {}
  for name, source in parts.items():
    plan = feeds.InOrder(_eval_batch(data.eval_batch_size, source.size, layout.shards or layout.ways), source.size)
    kind = "device" if train.resident else "grain"
    (evaluation[name],) = feeds.make_feeds(source, mesh, [plan], kind=kind, budget_bytes=budget, **how)
  augment, prepare = make_transforms(data, splits, config.pixels)
  return Inputs(splits, train, evaluation, augment, prepare)


def make_transforms(
  data: Data, splits: Splits, pixels: str = "standardised"
) -> tuple[transforms.Transform, transforms.Transform]:
  """(training's, evaluation's). Crops and flips come before normalising, where a pixel is a byte."""
  schema = splits.train.schema
  before, normal, after = [], [], []
  if "image" in schema.features:
    if pixels == "standardised":
      statistics = channel_statistics(splits.train, data.cache_dir)
      normal = [transforms.normalise(statistics.mean_C, statistics.std_C)]
    else:
      mean, scale = {"unit": (0.0, 255.0), "signed": (127.5, 127.5)}[pixels]
      normal = [transforms.normalise((mean,), (scale,))]
  if data.pad_crop:
    before.append(transforms.pad_and_crop(data.pad_crop))
  if data.flip:
    before.append(transforms.flip())
  if data.randaugment:
    before.append(randaugment(data.randaugment, data.randaugment_magnitude))
  if data.cutout:
    after.append(transforms.cutout(data.cutout))
  if data.mixup:
    after.append(transforms.mixup(data.mixup, len(schema.class_names)))
  if data.label_smoothing:
    after.append(transforms.smooth_labels(data.label_smoothing, len(schema.class_names)))
  return transforms.chain([*before, *normal, *after]), transforms.chain(normal)


def sizes(splits: Splits) -> str:
  """"1,437 train, 360 test" """
  parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
  return ", ".join(f"{source.size:,} {name}" for name, source in parts.items() if source is not None)


def _check(config: Experiment, splits: Splits, devices: int) -> None:
  data, schema, source = config.data, splits.train.schema, splits.train
  if data.batch_size > source.size:
    raise UserError(
      f"data: --data.batch_size={data.batch_size} is larger than the {source.size} training examples of {data.source};"
      f" at most {source.size} would do"
    )
  if (data.batch_size // config.batch_parts) % devices:
    even = devices * config.batch_parts
    raise UserError(
      f"data: --data.batch_size={data.batch_size} does not divide over {devices} devices"
      + (f" in {config.batch_parts} parts" if config.batch_parts > 1 else "")
      + f"; {-(-data.batch_size // even) * even} would, or another --parallel.mesh"
    )
  if config.run.best_metric.startswith("validation/") and splits.validation is None:
    raise UserError(
      f"flags: --run.best_metric={config.run.best_metric} needs a validation split, and {data.source} has none:"
      " --data.validation_fraction=0.1 takes one from the training data"
    )
  images = {"pad_crop": data.pad_crop, "flip": data.flip, "randaugment": data.randaugment, "cutout": data.cutout}
  labels = {"mixup": data.mixup, "label_smoothing": data.label_smoothing}
  _need(schema, "image", images, data.source, "images")
  _need(schema, "label", labels, data.source, "class labels")
  if data.cutout and data.cutout > max(schema.features["image"].shape[:2]):
    raise UserError(f"flags: --data.cutout={data.cutout} covers the whole image {schema.features['image'].shape[:2]}")


def _need(schema: Schema, feature: str, wanted: dict, source: str, noun: str) -> None:
  if feature not in schema.features:
    for name, value in wanted.items():
      if value:
        raise UserError(f"flags: --data.{name} needs {noun}, and {source} has {', '.join(schema.features)}")


def _eval_batch(wanted: int, size: int, devices: int) -> int:
  return -(-min(wanted, size) // devices) * devices

