"""Contract 1: a task is pure functions, and one state serves every family. The loop knows nothing else of a model."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import struct

Key = jax.Array  # a typed PRNG key
Batch = Mapping[str, jax.Array]  # "image", "features" or "tokens"; "label" or "target"; "mask"; "index": B first
Metrics = Mapping[str, jax.Array]  # float32 scalars of one step
Sums = Mapping[str, jax.Array]  # what adds up over batches and hosts
Pictures = Any  # images_NHWC, or images_RKHWC in rows of K; C is 1 or 3; uint8, or floats in [0, 1]
Sample = Pictures | str | Mapping[str, Pictures | str]  # of several, the first is the one that a film is made of


@struct.dataclass
class State:
  """Everything that a checkpoint holds.

  Attributes:
    step: () int32, the number of finished updates.
    params: the parameters, float32.
    opt_state: the optimizer's state.
    extra: what else a family carries: "batch_stats", "ema", …
    guard: counters of `research.guard`, which sets them; a task neither makes nor reads them.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  extra: Any
  guard: Any = ()


@dataclasses.dataclass(frozen=True)
class Task:
  """What the loop needs of a model, a loss and an optimizer.

  Attributes:
    init: (key, batch) → State at step 0. Traced, so only the batch's shapes and dtypes matter.
    step: (state, batch, key) → (state with step + 1, metrics). One update; traced. Its metrics have to have the norm of
      each network's gradients, under a name that ends in gradient_norm: where one is not finite, or a metric whose name
      ends in loss, the update is passed over (`research.guard`).
    evaluate: (state, batch) → sums. Examples whose "mask" is 0 count for nothing.
    summarize: summed sums → named numbers, on the host.
    per_example: (state, batch) → arrays_B for the report: "label", "prediction", "loss" and the prediction's
      "probability" of a classifier; "target", "prediction", "loss" of a regression.
    features: (state, batch) → features_BD float32, what the head sees: another run's generator is judged by them.
    judge: (state, key) → {"split/name": value}, numbers that need the whole set at once. It runs on the host and
      compiles what it likes, as `sample` does.
    sample: (state, key, count) → about `count` pictures or texts to look at. One key gives one choice of noise, so
      samples of different steps can be compared.
    sampled: what that count counts: "pictures" (or texts), or "points", all of which are in one picture.
    flops: batch → analytic model FLOPs of one step.
    tokens: batch → how many tokens a model of text reads of it, padding included; None: examples are what counts.
    axes: batch → names of the axes of each parameter, a tree as `State.params` with a tuple of names for each array;
      what `parallel.tables` divides by. None: parameters stay whole.
    headline: the measure that a report shows first; "": accuracy where there are classes, else loss.
  """

  init: Callable[[Key, Batch], State]
  step: Callable[[State, Batch, Key], tuple[State, Metrics]]
  evaluate: Callable[[State, Batch], Sums]
  summarize: Callable[[Sums], dict[str, float]]
  per_example: Callable[[State, Batch], dict[str, jax.Array]] | None = None
  features: Callable[[State, Batch], jax.Array] | None = None
  judge: Callable[[State, Key], dict[str, float]] | None = None
  sample: Callable[[State, Key, int], Sample] | None = None
  sampled: str = "pictures"
  flops: Callable[[Batch], float] | None = None
  tokens: Callable[[Batch], int] | None = None
  axes: Callable[[Batch], Any] | None = None
  headline: str = ""


def step_key(seed: int, step: jax.Array) -> Key:
  """The key of the update that starts from `step` finished ones: a function of the seed and the step alone."""
  return jax.random.fold_in(jax.random.key(seed), step)
