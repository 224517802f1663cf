"""Bad numbers never become parameters: an update whose loss or gradient is not finite changes nothing but the step.

The decision is part of the compiled step and of what the state holds, so it is the same on every device, in every
process and after a resume. The data's order stays what it is: the batch is passed over. What comes of many bad updates
in a row is decided by the loop (`research.recovery`); until then such a state is frozen, whatever calls are under way.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from research.task import Batch, Key, Metrics, State

IN_ROW = "bad_in_row"  # of a call's metrics; for the loop, not for a report
SKIPPED, SPIKES = "skipped", "skipped_spikes"  # totals among the metrics; told where they are not 0
WATCHED = ("loss", "gradient_norm")  # last words of the metrics that have to be finite
WARM_UP = 25  # updates before one can be a spike; this and the next as in ZClip (Kumar et al. 2025)
DECAY = 0.97  # of the running mean of a gradient's norm

Step = Callable[[State, Batch, Key], tuple[State, Metrics]]


@dataclasses.dataclass(frozen=True)
class Rules:
  """What is passed over, and when it is enough.

  Attributes:
    bad_steps: after so many bad updates in a row, and at least one, the state is frozen.
    skip_spikes: an update is passed over too if a gradient's norm is over this times its running mean; 0: never.
  """

  bad_steps: int = 5
  skip_spikes: float = 0.0

  @property
  def limit(self) -> int:
    return max(1, self.bad_steps)


def norms(metrics: Mapping[str, Any]) -> dict[str, Any]:
  """Those of the metrics that are norms of gradients: one, or one for each network."""
  return {name: value for name, value in metrics.items() if name.endswith("gradient_norm")}


def told(metrics: Mapping[str, Any]) -> dict[str, Any]:
  """Those of a call's metrics that a report is told: without what is only the loop's, and without totals of none."""
  silent = {IN_ROW, *(name for name in (SKIPPED, SPIKES) if name in metrics and not metrics[name])}
  return {name: value for name, value in metrics.items() if name not in silent}


def start(rules: Rules, metrics: Mapping[str, Any]) -> dict[str, Any]:
  """`State.guard` at step 0: () int32 counters, and where spikes are skipped () float32 means of `norms(metrics)`."""
  counters = {"skipped": jnp.int32(0), "in_row": jnp.int32(0)}
  if rules.skip_spikes:
    means = {name: jnp.float32(0) for name in norms(metrics)}
    counters |= {"spikes": jnp.int32(0), "seen": jnp.int32(0), "mean": means}
  return counters


def guarded(step: Step, rules: Rules) -> Step:
  """`Task.step` on the whole batch → the same, with a state that has a guard.

  A good update's results are the step's own. Of a bad one params, opt_state and extra stay as they were, bit for bit,
  and the step is counted. Of a frozen state all stays, its step too: that is the one after the last bad update.

  Raises TypeError, when traced, for a task that does not report the norm of its gradients.
  """

  def careful(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
    new, metrics = step(state, batch, key)
    if not norms(metrics):
      raise TypeError("a task's step has to report the norm of its gradients, as gradient_norm or NAME_gradient_norm")
    guard = state.guard
    good = _all(jnp.isfinite(value).all() for name, value in metrics.items() if name.endswith(WATCHED))
    frozen = guard["in_row"] >= rules.limit
    counted = {
      "skipped": guard["skipped"] + _one(~good),
      "in_row": jnp.where(good, 0, guard["in_row"] + 1),
    }
    taken = good
    if rules.skip_spikes:
      spikes, means = _spikes(guard, norms(metrics), rules.skip_spikes)
      taken = good & ~spikes
      counted |= {
        "spikes": guard["spikes"] + _one(good & spikes),
        "seen": guard["seen"] + _one(good),
        "mean": _select(good, means, guard["mean"]),
      }
    counted = _select(frozen, guard, counted)
    kept = _select(taken & ~frozen, _arrays(new), _arrays(state))
    told = {IN_ROW: counted["in_row"], SKIPPED: counted["skipped"]}
    if rules.skip_spikes:
      told[SPIKES] = counted["spikes"]
    step_after = jnp.where(frozen, state.step, new.step)
    told = {name: value.astype(jnp.float32) for name, value in told.items()}
    return State(step_after, **kept, guard=counted), {**metrics, **told}

  return careful


def _spikes(guard: Mapping[str, Any], found: Mapping[str, jax.Array], times: float) -> tuple[jax.Array, dict]:
  """→ (whether a norm is over `times` its mean, the means with these norms).

  A norm counts as `times` the mean at most, so the mean follows a lasting change within some updates, and training
  never stands still for ever.
  """
  warm = guard["seen"] >= WARM_UP
  rate = jnp.maximum(1.0 / (guard["seen"] + 1).astype(jnp.float32), 1.0 - DECAY)  # of all at first, then of the last
  over, means = [], {}
  for name, mean in guard["mean"].items():
    most = times * mean
    over.append(warm & (found[name] > most))
    means[name] = mean + rate * (jnp.where(warm, jnp.minimum(found[name], most), found[name]) - mean)
  return ~_all(~each for each in over), means


def _arrays(state: State) -> dict[str, Any]:
  """What an update changes besides the step."""
  return {"params": state.params, "opt_state": state.opt_state, "extra": state.extra}


def _one(flag: jax.Array) -> jax.Array:
  return flag.astype(jnp.int32)


def _all(flags: Iterable[jax.Array]) -> jax.Array:
  result = jnp.bool_(True)
  for flag in flags:
    result &= flag
  return result


def _select(which: jax.Array, yes: Any, no: Any) -> Any:
  """One of two trees, by a () bool."""
  return jax.tree.map(lambda y, n: jax.lax.select(which, y, n), yes, no)


def not_finite(state: State) -> str:
  """The path of the first array of a state that holds NaN or infinity; "" where all are finite.

  One read of the state on its devices. Finite gradients can make such parameters: a learning rate may be too great for
  float32, and Adam with an epsilon of 0 divides by 0.
  """
  leaves = [(path, leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0] if _is_float(leaf)]
  good = jax.device_get(_finite_each([leaf for _, leaf in leaves], state.step.sharding))
  bad = [path for (path, _), each in zip(leaves, good, strict=True) if not each]
  return jax.tree_util.keystr(bad[0], simple=True, separator="/") if bad else ""


@functools.partial(jax.jit, static_argnames="everywhere")
def _finite_each(leaves: list[jax.Array], everywhere: jax.sharding.Sharding) -> jax.Array:
  """(number of arrays,) bool, on every device."""
  return jax.lax.with_sharding_constraint(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]), everywhere)


def _is_float(leaf: jax.Array) -> bool:
  return jnp.issubdtype(leaf.dtype, jnp.floating)
