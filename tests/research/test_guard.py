"""Bad numbers change nothing, are counted, and come out the same on any layout; spikes, where they are skipped."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import BAD, Job, counters, recovering, spoilt, step_of

from research import guard, loop, optim, steps
from research.adversarial import Adversaries, Game, adversarial
from research.checkpoint import Checkpoints, named
from research.gan_losses import LOSSES

PLAN = loop.Plan(total_steps=24, eval_every=8, checkpoint_every=6, log_every=1)
class Length(nn.Module):
  """Classes by the length of a projection: of an example that is 0 the loss is finite and the gradient is 0/0."""

  @nn.compact
  def __call__(self, x_BD, *, train):
    h_BF = nn.Dense(8, use_bias=False, name="projection")(x_BD)
    return nn.Dense(2, name="head")(jnp.sqrt((h_BF**2).sum(axis=-1, keepdims=True)))


def call(job, state, step, count=1):
  return job.call(state, job.feed.inputs(step), count)


def at(job, step):
  """The job's own state at a step, by good updates; on the host too, since the state itself is donated."""
  state = job.state
  for each in range(step):
    state, _ = call(job, state, each)
  return state, jax.device_get(state)


def unchanged(before, after):
  """All but the step and the counters, bit for bit."""
  for name in ("params", "opt_state", "extra"):
    chex.assert_trees_all_equal(getattr(jax.device_get(after), name), getattr(before, name))


@pytest.mark.parametrize("compile", ["jit", "shard_map", "pmap"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_data_that_are_no_numbers_change_nothing(value, compile):
  """`guarded` with `_select` always taking the new arrays fails it: parameters, Adam's moments, EMA and statistics are
  NaN. So does `good` left out of `taken`."""
  job = Job(data=spoilt(value), compile=compile)
  bad = step_of(job, BAD)
  state, before = at(job, bad)
  state, metrics = call(job, state, bad)
  assert not np.isfinite(metrics["loss"])
  assert int(state.step) == bad + 1
  unchanged(before, state)
  assert counters(state) == {"skipped": 1, "in_row": 1}
  state, metrics = call(job, state, bad + 1)
  assert np.isfinite(metrics["loss"])
  assert counters(state) == {"skipped": 1, "in_row": 0}
  assert float(metrics["skipped"]) == 1


def test_a_gradient_that_is_no_number_changes_nothing_though_the_loss_is_one():
  """`WATCHED` without "gradient_norm" fails it."""
  job = Job(data=spoilt(0.0), model=Length())
  bad = step_of(job, BAD)
  state, before = at(job, bad)
  state, metrics = call(job, state, bad)
  assert np.isfinite(metrics["loss"])
  assert not np.isfinite(metrics["gradient_norm"])
  unchanged(before, state)
  cause = job.find_cause(jax.device_put(before, jax.tree.map(lambda x: x.sharding, state)))
  assert "train/gradient_norm is nan, first in the gradient of projection/kernel" in cause.text
  assert "16 in all" in cause.text


def test_a_skipped_update_is_a_missing_one(tmp_path):
  """The order is not shifted, and what comes after is what would come after an update that does nothing."""
  job = Job(data=spoilt(np.nan))
  plan = dataclasses.replace(PLAN, total_steps=12, eval_every=99, checkpoint_every=99)
  job.evaluate = lambda state: {}
  found, _, _ = recovering(job, tmp_path / "guarded", plan)
  other = Job()  # without a bad number: the updates that meet it are left out by hand
  state = other.state
  for step in range(12):
    if BAD in other.feed.plan.rows(step)[0]:
      state = state.replace(step=state.step + 1)
    else:
      state, _ = call(other, state, step)
  assert int(found.guard["skipped"]) >= 2
  assert int(found.step) == int(state.step) == 12
  unchanged(jax.device_get(state), found)


def test_a_frozen_state_stays_as_it_is_in_calls_of_several_updates_too():
  """`frozen` always False fails it: the state goes on to step 9, and nobody could tell which update it was."""
  job = Job(steps_per_call=9, rules=guard.Rules(bad_steps=3), data=spoilt(np.nan, slice(None)))
  state, metrics = call(job, job.state, 0, 9)
  assert int(state.step) == 3
  assert counters(state) == {"skipped": 3, "in_row": 3}
  assert float(metrics[guard.IN_ROW]) == 3


def test_counters_go_through_a_checkpoint(tmp_path):
  job = Job(data=spoilt(np.nan))
  bad = step_of(job, BAD)
  state, _ = at(job, bad)
  state, _ = call(job, state, bad)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(bad + 1, state)
  checkpoints.wait()
  restored = checkpoints.restore(bad + 1, job.abstract)
  checkpoints.close()
  assert counters(restored) == {"skipped": 1, "in_row": 1}
  assert {"guard/skipped", "guard/in_row"} < named(job.abstract).keys()


def test_a_task_without_a_gradient_norm_is_refused():
  job = Job()
  step = lambda state, batch, key: (lambda out: (out[0], {"loss": out[1]["loss"]}))(job.task.step(state, batch, key))  # noqa: E731
  task = dataclasses.replace(job.task, step=step)
  lame = steps.training_call(task, job.feed, job.augment, 0, job.layout, 1, abstract=job.abstract, begin=False)
  with pytest.raises(TypeError, match="has to report the norm of its gradients"):
    lame(job.state, job.feed.inputs(0), 1)


class Score(nn.Module):
  @nn.compact
  def __call__(self, x_BD, label_B, *, train):
    return nn.Dense(1)(x_BD)[:, 0]


class Make(nn.Module):
  @nn.compact
  def __call__(self, z_BZ, label_B, *, train):
    return nn.Dense(2)(z_BZ)


def test_none_of_a_games_gradients_is_bad_unseen():
  """The discriminator's first of two updates meets NaN and the second does not; nothing moves, so NaN cannot spread.

  The norm of the last update alone, as it was, fails it."""
  still = {"generator": optax.set_to_zero(), "discriminator": optax.set_to_zero()}
  task = adversarial(Adversaries(Make(), Score(), 2), still, Game(LOSSES["non_saturating"], critic_steps=2))
  x_BD = np.ones((4, 2), np.float32)
  batch = {"features": x_BD, "mask": np.ones(4, np.float32)}
  state = task.init(jax.random.key(0), batch)
  _, good = jax.jit(task.step)(state, batch, jax.random.key(1))
  bad_BD = x_BD.copy()
  bad_BD[0] = np.nan  # of the first part, which is examples 0 and 2
  _, found = jax.jit(task.step)(state, {**batch, "features": bad_BD}, jax.random.key(1))
  assert np.isfinite(good["discriminator_gradient_norm"])
  assert np.isfinite(found["discriminator_loss"])
  assert np.isnan(found["discriminator_gradient_norm"])


def test_clipping_spoils_no_gradient_but_the_bad_one():
  """By optax's own clipping both would be NaN; of good gradients the two are the same bits."""
  clip, theirs = optim._clip(1.0), optax.clip_by_global_norm(1.0)
  bad = {"a": jnp.float32([3, 4]), "b": jnp.float32([np.nan])}
  found, _ = clip.update(bad, clip.init(bad))
  assert np.isfinite(found["a"]).all()
  assert np.isnan(found["b"]).all()
  for scale in (0.01, 1.0, 3.7):
    good = {"a": scale * jnp.float32([0.6, 0.8]), "b": scale * jnp.float32([0.3])}
    chex.assert_trees_all_equal(clip.update(good, clip.init(good))[0], theirs.update(good, theirs.init(good))[0])


# Spikes


def norms_step(norm_of):
  """A step whose gradient's norm is norm_of(step), and which counts in params."""

  def step(state, batch, key):
    del batch, key
    new = state.replace(step=state.step + 1, params=state.params + 1)
    return new, {"loss": jnp.float32(1), "gradient_norm": norm_of(state.step)}

  return step


def run_norms(norms, times, count):
  from research.task import State

  norms_S = jnp.asarray(norms, jnp.float32)
  rules = guard.Rules(skip_spikes=times)
  step = jax.jit(guard.guarded(norms_step(lambda step: norms_S[step]), rules))
  state = State(jnp.int32(0), jnp.int32(0), (), {}, guard.start(rules, {"gradient_norm": 0}))
  states = []
  for _ in range(count):
    state, metrics = step(state, {}, None)
    states.append((jax.device_get(state), jax.device_get(metrics)))
  return states


def test_a_spike_is_skipped_and_never_counted_towards_going_back():
  """`spikes` left out of `taken` fails it."""
  norms = np.ones(60)
  norms[[10, 40, 41, 42, 43, 44, 45]] = 100  # the first while the mean is not known yet
  states = run_norms(norms, 5.0, 60)
  final, metrics = states[-1]
  assert int(final.params) == 54
  assert int(final.step) == 60
  assert (int(final.guard["spikes"]), int(final.guard["skipped"])) == (6, 0)
  assert all(int(state.guard["in_row"]) == 0 for state, _ in states)
  assert float(metrics[guard.SPIKES]) == 6
  assert int(run_norms(norms, 0.0, 60)[-1][0].params) == 60


def test_the_mean_follows_a_lasting_change():
  norms = np.r_[np.ones(50), np.full(150, 20.0)]
  final, _ = run_norms(norms, 5.0, 200)[-1]
  skipped = 200 - int(final.params)
  # The mean grows by (5 - 1)·3 % at each, so from 1 to 20/5 = 4 in ln 4 / ln 1.12 = 12.2 updates.
  assert skipped == 13
  assert float(final.guard["mean"]["gradient_norm"]) > 15


def test_bad_numbers_leave_the_mean_alone():
  norms = np.ones(40)
  norms[30] = np.nan
  final, _ = run_norms(norms, 5.0, 40)[-1]
  assert float(final.guard["mean"]["gradient_norm"]) == 1
  assert (int(final.guard["skipped"]), int(final.guard["seen"])) == (1, 39)


def test_spikes_of_a_whole_job_resume_bit_for_bit(tmp_path):
  rules = guard.Rules(skip_spikes=1.05)
  plan = dataclasses.replace(PLAN, total_steps=60, eval_every=60, checkpoint_every=30)
  whole, told, _ = recovering(Job(rules=rules), tmp_path / "whole", plan)
  assert int(whole.guard["spikes"]) > 0
  assert told.lines[60]["train/skipped_spikes"] == int(whole.guard["spikes"])
  job = Job(rules=rules)
  checkpoints = Checkpoints(tmp_path / "whole", keep=10)
  restored = checkpoints.restore(30, job.abstract)
  checkpoints.close()
  resumed, _, _ = recovering(job, tmp_path / "again", plan, state=restored)
  chex.assert_trees_all_equal(jax.device_get(whole), jax.device_get(resumed))
