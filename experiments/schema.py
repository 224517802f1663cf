"""What an experiment may be told: frozen dataclasses, from which the flags, their help and their checks are derived.

A model has a dataclass of its own beside its experiment; the parts here are the ones that every experiment has.
"""

import dataclasses
import math
import operator
from collections.abc import Mapping
from typing import Any, ClassVar

from research.errors import UserError
from research.kernels import choice
from research.parallel.tables import COMPILE, STRATEGIES


def flag(
  default: Any,
  help: str,
  *,
  choices: tuple[str, ...] = (),
  low: float | None = None,
  high: float | None = None,
  curve: bool = True,
  verbatim: bool = False,
) -> Any:
  """A dataclass field that becomes a flag.

  Args:
    default: its type is the flag's: bool, int, float, str, or a tuple of ints (written `64,128`).
    help: one line; it starts small and ends without a full stop.
    choices: the strings allowed.
    low: least value allowed, inclusive.
    high: greatest value allowed, inclusive.
    verbatim: a string that may have blanks around it and line breaks in it, which no flag file could hold.
    curve: whether another value can change the training curve by more than rounding. What cannot is free to differ
      when a run is resumed.
  """
  metadata = {"help": help, "choices": choices, "low": low, "high": high, "curve": curve, "verbatim": verbatim}
  return dataclasses.field(default=default, metadata=metadata)


MOST = 2**31 - 1  # updates: they are counted in an int32


@dataclasses.dataclass(frozen=True)
class Run:
  """How long, and how often to look, save and speak"""

  steps: int = flag(0, "updates to make; 0: as --run.epochs says", low=0, high=MOST)
  epochs: float = flag(10.0, "passes over the training data, where --run.steps is 0", low=0.0, high=1e9)
  eval_every: int = flag(0, "updates between evaluations; 0: each epoch, but 20 times at most", low=0, high=MOST)
  checkpoint_every: int = flag(0, "updates between checkpoints; 0: at each evaluation", low=0, high=MOST, curve=False)
  keep_checkpoints: int = flag(2, "newest checkpoints to keep, beside the best", low=1, curve=False)
  log_every: int = flag(10, "updates between lines of metrics", low=1, curve=False)
  steps_per_call: int = flag(1, "updates in one compiled call, where the data live on the device", low=1)
  best_metric: str = flag("", "metric whose best checkpoint is restored at the end, such as validation/accuracy")
  patience: int = flag(0, "evaluations without a better --run.best_metric before stopping; 0: never", low=0)
  deterministic_shards: int = flag(
    0, "V, parts of a batch computed alone and added in one order: the same bits on 1, 2, … V devices; 0: off", low=0
  )
  grace_seconds: float = flag(
    25.0, "seconds after SIGINT or SIGTERM at which the process ends, saved or not", low=0.5, high=1e6, curve=False
  )
  bad_steps: int = flag(
    5, "updates in a row whose loss or gradient is not finite (they change nothing) after which training goes back to"
    " its last checkpoint, once, and then ends with 76; 0: it ends at the first", low=0, high=MOST, curve=False
  )  # fmt: skip
  skip_spikes: float = flag(
    0.0, "skip an update whose gradient's norm is over this times its running mean; 0: none", low=0.0
  )
  check_replay_every: int = flag(
    0, "updates between two that are made twice and have to agree in every bit, against a machine that lies; 0: none",
    low=0, high=MOST, curve=False
  )  # fmt: skip
  compilation_cache: bool = flag(True, "keep compiled programs for the next start", curve=False)
  watchdog: float = flag(
    20.0, "times the median that a step may take before all threads' stacks are written down; 0: any", low=0.0,
    high=1e6, curve=False,
  )  # fmt: skip
  stall_seconds: float = flag(
    600.0, "most seconds of a step in which one of several processes does not come on; 0: any", low=0.0, high=1e6,
    curve=False,
  )  # fmt: skip
  profile_steps: str = flag(
    "", "FIRST:LAST, trace the updates from step FIRST to step LAST for XProf and the log; empty: none", curve=False
  )

  @property
  def profile(self) -> tuple[int, int] | tuple[()]:
    """--run.profile_steps as numbers. Raises UserError where they are none, or not in order."""
    if not self.profile_steps:
      return ()
    ends = self.profile_steps.split(":")
    if len(ends) != 2 or not all(end.isascii() and end.isdigit() for end in ends):
      raise UserError(f"flags: --run.profile_steps={self.profile_steps} is not FIRST:LAST, two steps such as 10:15")
    first, last = map(int, ends)
    if first >= last:
      raise UserError(
        f"flags: --run.profile_steps={self.profile_steps} holds no update; {first}:{first + 5} would be five from step"
        f" {first} on"
      )
    return first, last


@dataclasses.dataclass(frozen=True)
class Data:
  """Which examples, how divided, how fed and how altered"""

  source: str = flag(
    "sklearn:digits",
    "tfds:NAME, sklearn:NAME, idx:DIR, folder:DIR, npz:FILE, csv:FILE, synthetic:NAME; of text also text:FILE|DIR,"
    " jsonl:FILE, python:stdlib or python:docstrings",
  )
  dir: str = flag("", "where tfds sets lie prepared; empty: ~/tensorflow_datasets", curve=False)
  cache_dir: str = flag("", "where decoded sets are kept; empty: ~/.cache/flagship", curve=False)
  target: str = flag("", "csv: the column to predict, also COLUMN:class or COLUMN:number; empty: the last")
  validation_fraction: float = flag(0.0, "share of the training data held out for validation", low=0.0, high=0.9)
  test_fraction: float = flag(0.2, "share held out for the test, where the source has no test split", low=0.0, high=0.9)
  split_seed: int = flag(0, "seed of the division into splits", low=0)
  batch_size: int = flag(64, "examples an update, over all devices", low=1)
  eval_batch_size: int = flag(1000, "examples a call in evaluation, over all devices", low=1, curve=False)
  feed: str = flag("auto", "where batches are gathered", choices=("auto", "device", "grain"), curve=False)
  device_budget_mb: int = flag(2048, "most MB of a device's memory that the data may take", low=0, curve=False)
  pad_crop: int = flag(0, "pad images by this many pixels and crop at random", low=0)
  flip: bool = flag(False, "mirror images left to right at random")
  randaugment: int = flag(0, "random operations on each image (RandAugment); 0: none", low=0)
  randaugment_magnitude: float = flag(9.0, "their strength", low=0.0, high=10.0)
  cutout: int = flag(0, "side in pixels of a square set to the mean", low=0)
  mixup: float = flag(0.0, "alpha of mixup's Beta distribution; 0: none", low=0.0)
  label_smoothing: float = flag(0.0, "share of probability spread over all classes", low=0.0, high=0.99)

  @property
  def division(self) -> dict[str, Any]:
    """How a source that is not divided is, as the functions of `research.data` that open one take it."""
    return {name: getattr(self, name) for name in ("validation_fraction", "test_fraction", "split_seed")}


# Flags that alter images, for the `unused` of experiments that see none.
AUGMENTATION = (
  "data.pad_crop", "data.flip", "data.randaugment", "data.randaugment_magnitude", "data.cutout", "data.mixup",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Optim:
  """The optimizer and its schedule"""

  name: str = flag(
    "adamw", "update rule", choices=("sgd", "momentum", "nesterov", "adam", "adamw", "lamb", "muon")
  )
  learning_rate: float = flag(1e-3, "greatest learning rate", low=0.0)
  schedule: str = flag("cosine", "shape over time", choices=("constant", "cosine", "linear", "one_cycle"))
  warmup_steps: int = flag(0, "updates of linear warm-up", low=0)
  warmup_fraction: float = flag(0.0, "linear warm-up as a share of the run, instead of a number", low=0.0, high=0.9)
  final_learning_rate_fraction: float = flag(0.0, "last learning rate over the greatest", low=0.0, high=1.0)
  momentum: float = flag(0.9, "decay of momentum, Nesterov and Muon", low=0.0, high=1.0)
  beta1: float = flag(0.9, "decay of Adam's first moment", low=0.0, high=1.0)
  beta2: float = flag(0.999, "decay of Adam's second moment", low=0.0, high=1.0)
  epsilon: float = flag(1e-8, "Adam's denominator offset", low=0.0)
  weight_decay: float = flag(0.0, "decoupled in adamw, lamb and muon, an L2 term elsewhere", low=0.0)
  weight_decay_mask: str = flag("kernels", "what decays: arrays of rank 2 and more, or all", choices=("kernels", "all"))
  clip_norm: float = flag(0.0, "greatest global norm of the gradient; 0: no clipping", low=0.0)
  micro_batches: int = flag(1, "parts of a batch whose gradients are accumulated", low=1)
  ema_decay: float = flag(0.0, "decay of the averaged parameters used in evaluation; 0: none", low=0.0, high=1.0)

  def over(self, total_steps: int) -> "Optim":
    """The same with warm-up as a number of steps, for an optimizer that makes `total_steps` updates."""
    steps = int(self.warmup_fraction * total_steps)
    return dataclasses.replace(self, warmup_steps=steps) if self.warmup_fraction else self


@dataclasses.dataclass(frozen=True)
class Parallel:
  """Devices and how the work is divided over them"""

  mesh: str = flag("", "axes and sizes, such as data:4,model:2; empty: all devices that divide the batch", curve=False)
  strategy: str = flag(
    "dp", "table from logical to mesh axes; auto: the fastest that fits", choices=(*STRATEGIES, "auto"), curve=False
  )
  compile: str = flag("jit", "the step divided by XLA, or written out for each device", choices=COMPILE)
  micro_batches: int = flag(0, "parts of a batch in a pipeline (pp); 0: four times the stages", low=0, curve=False)


@dataclasses.dataclass(frozen=True)
class Asking:
  """The word preflight's own flags, on the command line only"""

  topology: str = flag("", "devices to compile for, which need not be here: v5e:16x16, h100:8, cpu:8; empty: these")
  json: bool = flag(False, "print the facts as JSON, in bytes, FLOPs and seconds")

  def check(self) -> None:
    """No combination of these is impossible."""


@dataclasses.dataclass(frozen=True)
class Resuming:
  """Training's own flags, on the command line only"""

  allow_change: str = flag("", "flags that may differ from those that the run was started with, NAME,…")

  def names(self, schema: type) -> tuple[str, ...]:
    """The flags named. Raises UserError for one that the experiment does not have."""
    from experiments import flags

    names = tuple(name.strip().lstrip("-") for name in self.allow_change.split(",") if name.strip())
    known = [leaf.name for leaf in flags.leaves(schema)]
    for name in names:
      if name not in known:
        raise UserError(f"flags: --allow_change={name} names no flag{flags.nearest(name, known)}; --help lists them")
    return names

  def check(self) -> None:
    """No combination of these is impossible."""


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Base of every experiment's schema: subclasses add a `model` and may extend `check`.

  Attributes:
    pixels: what the task sees of a byte: "standardised" by the training images' channel statistics, "unit" in [0, 1],
      or "signed" in [-1, 1]. It belongs to the experiment and is no flag.
    unused: flags of the common groups that the experiment has no use for, each with why or what it has instead, as it
      follows the flag's name in an error. --help leaves them out.
  """

  pixels: ClassVar[str] = "standardised"
  unused: ClassVar[Mapping[str, str]] = {}

  seed: int = flag(0, "seed of parameters, order, augmentation and dropout", low=0, high=2**32 - 1)
  init_from: str = flag(
    "", "what to start from, with its --model flags: a run's directory, or hf:DIR (a Hugging Face directory)"
  )
  kernels: str = flag("", "forms of operations, OPERATION=FORM,…, as conv=xla; empty: the fastest known")
  run: Run = dataclasses.field(default_factory=Run)
  data: Data = dataclasses.field(default_factory=Data)
  optim: Optim = dataclasses.field(default_factory=Optim)
  parallel: Parallel = dataclasses.field(default_factory=Parallel)

  @property
  def batch_parts(self) -> int:
    """How many equal parts an update cuts its batch into, each of which the devices share."""
    return self.optim.micro_batches

  def check(self) -> None:
    """Raises UserError for a combination that no single flag forbids."""
    run, data, optim, untouched = self.run, self.data, self.optim, type(self)()
    for name, why in self.unused.items():
      if operator.attrgetter(name)(self) != operator.attrgetter(name)(untouched):
        raise UserError(f"flags: --{name} {why}")
    choice.parse(self.kernels)
    strategy, parts = self.parallel.strategy, self.parallel.micro_batches
    if parts and strategy not in ("pp", "auto"):
      raise UserError(
        f"flags: --parallel.micro_batches={parts} are parts in a pipeline, which --parallel.strategy={strategy} is not:"
        " leave it at 0; pp is one, and --optim.micro_batches accumulates gradients under any strategy"
      )
    run.profile  # noqa: B018  raises where it is wrong
    if not run.steps and not run.epochs:
      raise UserError("flags: --run.steps and --run.epochs are both 0; give one of them")
    if data.batch_size % optim.micro_batches:
      raise UserError(
        f"flags: --data.batch_size={data.batch_size} does not divide into --optim.micro_batches={optim.micro_batches}"
        f" parts; {math.ceil(data.batch_size / optim.micro_batches) * optim.micro_batches} would"
      )
    if 0 < run.skip_spikes <= 1:
      raise UserError(
        f"flags: --run.skip_spikes={run.skip_spikes:g} would skip ordinary updates; 5 skips norms over 5 times the mean"
      )
    if run.patience and not run.best_metric:
      raise UserError("flags: --run.patience needs --run.best_metric, such as validation/accuracy")
    if run.best_metric and not run.best_metric.startswith("validation/"):
      raise UserError(
        f"flags: --run.best_metric={run.best_metric} would choose a checkpoint by data that judge it;"
        " choose validation/…, with --data.validation_fraction=0.1"
      )
    if optim.warmup_steps and optim.warmup_fraction:
      raise UserError("flags: --optim.warmup_steps and --optim.warmup_fraction are both given; give one of them")
    if run.steps_per_call > 1 and data.feed == "grain":
      raise UserError("flags: --run.steps_per_call above 1 needs the data on the device: --data.feed=device")
    self._check_shards()
    if optim.name in ("sgd", "momentum", "nesterov") and optim.learning_rate == 0:
      raise UserError("flags: --optim.learning_rate=0 trains nothing; 0.1 is usual for SGD")

  def _check_shards(self) -> None:
    shards, batch, parts = self.run.deterministic_shards, self.data.batch_size, self.batch_parts
    if not shards:
      return
    if shards & (shards - 1):
      near = sorted((2 ** (shards.bit_length() - 1), 2 ** shards.bit_length()), key=lambda power: abs(power - shards))
      raise UserError(f"flags: --run.deterministic_shards={shards} is no power of two; {near[0]} is")
    if self.parallel.strategy != "dp":
      raise UserError(
        f"flags: --run.deterministic_shards is for --parallel.strategy=dp, and not for {self.parallel.strategy}"
      )
    if batch % (shards * parts):
      raise UserError(
        f"flags: --data.batch_size={batch} does not divide into --run.deterministic_shards={shards}"
        + (f" of {parts} parts" if parts > 1 else "")
        + f"; {-(-batch // (shards * parts)) * shards * parts} would"
      )
