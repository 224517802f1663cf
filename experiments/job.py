"""Everything that an experiment's flags stand for, made but not started: data, task, layout, plan, compiled calls."""

import concurrent.futures
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from experiments import inputs
from experiments.command import Definition
from experiments.schema import Experiment
from research import evaluating, guard, loop, steps, throughput
from research.data.splits import Splits
from research.errors import UserError
from research.kernels import choice
from research.parallel.mesh import make_mesh
from research.parallel.peak import peak_flops
from research.parallel.shards import rounds_once
from research.parallel.tables import Layout
from research.parallel.topology import Target
from research.recovery import Cause, cause_of
from research.task import Batch, State, Sums, Task

MOST_STEPS = 2**31 - 1  # the state's step is an int32
MOST_EVALUATIONS = 20  # in a run that does not say how often


@dataclasses.dataclass(frozen=True)
class Job:
  """What train, eval, sample and preflight are done with."""

  config: Experiment
  layout: Layout
  data: inputs.Inputs
  task: Task
  plan: loop.Plan

  @property
  def mesh(self) -> Mesh:
    return self.layout.mesh

  @property
  def abstract_state(self) -> State:
    return self._initialization.abstract

  def initial_state(self) -> State:
    return self._initialization.state()

  @functools.cached_property
  def _initialization(self) -> steps.Initialization:
    return steps.Initialization(*self._training, self.rules)

  @property
  def _training(self) -> tuple[Any, ...]:
    """What a call is compiled of."""
    return self.task, self.data.train, self.data.augment, self.config.seed, self.layout

  @property
  def rules(self) -> guard.Rules:
    """Which updates are passed over."""
    return guard.Rules(self.config.run.bad_steps, self.config.run.skip_spikes)

  def find_cause(self, state: State) -> Cause:
    """Why the update that starts from `state` is bad."""
    inputs = self.data.train.inputs(int(jax.device_get(state.step)))
    return cause_of(evaluating.facts_call(*self._training)(state, inputs), state)

  def training_call(self) -> steps.TrainingCall:
    return steps.training_call(
      *self._training, self.plan.steps_per_call, abstract=self.abstract_state, rules=self.rules
    )

  @functools.cached_property
  def _batch(self) -> Batch:
    """Shapes and dtypes of what a step is given."""
    whole = lambda given: self.data.augment(self.data.train.batch(given, jnp.int32(0)), jax.random.key(0))  # noqa: E731
    shapes = jax.eval_shape(whole, self.data.train.inputs(0))
    self.data.train.close()
    return shapes

  def counting(self) -> Callable[[], float]:
    """Model FLOPs of an update, 0 where the task does not tell: counted from now on, beside what else a start takes."""
    if self.task.flops is None:
      return float
    pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="flops")
    return pool.submit(choice.carried(self.task.flops), self._batch).result

  def one_update(self, call: steps.TrainingCall, flops: float) -> throughput.Update:
    """What speeds are computed from. A peak that is not known yet is measured once `call` is compiled."""
    dtype = getattr(getattr(self.config, "model", None), "dtype", "float32")
    return throughput.Update(
      examples=self.config.data.batch_size,
      devices=self.mesh.size,
      tokens=self.task.tokens(self._batch) if self.task.tokens is not None else 0,
      flops=flops,
      peak=peak_flops(self.mesh.size, dtype, call.compiled) if flops else 0.0,
    )

  @functools.cached_property
  def _evaluations(self) -> dict[str, Callable[[State, Callable[[], bool]], Sums]]:
    return {
      name: evaluating.evaluation_call(self.task, feed, self.data.prepare, self.layout)
      for name, feed in self.data.evaluation.items()
    }

  def for_host(self, state: State) -> State:
    """The state as `judge` and `sample` are given it: in virtual shards on one device, as their programs are then."""
    return jax.tree.map(lambda x: x.addressable_data(0), state) if self.layout.shards else state

  def scores(
    self, state: State, splits: Sequence[str], stop: Callable[[], bool] = lambda: False
  ) -> dict[str, float]:
    """{"split/metric": value} of each split, and the task's own judgement where it has one.

    Raises Stopped where `stop`, which is asked between batches, says so.
    """
    found = {}
    if self.task.judge is not None:
      alone = self.for_host(state)
      found |= self.task.judge(alone, steps.step_key(self.config.seed, alone.step))
    for split in splits:
      summary = self.task.summarize(self._evaluations[split](state, stop))
      found |= {f"{split}/{name}": value for name, value in summary.items()}
    return found


def make_job(
  definition: Definition,
  config: Experiment,
  say: Callable[[str], None],
  workdir: Path | None = None,
  splits: Splits | None = None,
  target: Target | None = None,
) -> Job:
  """Opens the data and builds the task. Raises UserError for whatever does not fit together.

  Args:
    definition: the experiment.
    config: its flags.
    say: is told what the user should know of the data.
    workdir: the run's, where it may have kept what the data need.
    splits: the data, where they are open.
    target: what to compile for, where that is not here; feeds give shapes then.
  """
  devices = None if target is None else target.devices
  if splits is None:
    opened = definition.open_data
    splits = inputs.open_data(config.data, say) if opened is None else opened(config, say, workdir)
    for note in splits.notes:
      say(note)
  if config.parallel.strategy == "auto":
    from experiments import automatic

    config = automatic.choose(definition, config, splits, say, target)
  shards = config.run.deterministic_shards
  mesh = make_mesh(config.parallel.mesh, shards or config.data.batch_size // config.batch_parts, devices)
  if target is not None:
    target.check(mesh.size)
  layout = Layout(mesh, config.parallel.strategy, config.parallel.compile, config.parallel.micro_batches, shards)
  layout.check()
  if shards and target is None and rounds_once():
    kind = mesh.devices.ravel()[0].device_kind
    say(
      f"--run.deterministic_shards: {kind} rounds a multiply and an add once, so bits can"
      " differ between numbers of devices; XLA has a flag against that for x86 CPUs alone"
    )
  if not config.parallel.mesh and mesh.size < (count := len(devices or jax.devices())):
    divided = f"{shards} shards" if shards else f"a batch of {config.data.batch_size}"
    say(f"on {mesh.size} of {count} devices, which divide {divided}")
  data = inputs.make_inputs(config, splits, layout, promised=target is not None)
  plan = make_plan(config, splits.train.size)
  task = definition.build(config, splits, plan.total_steps)
  return Job(config, layout, data, task, plan)


def make_plan(config: Experiment, size: int) -> loop.Plan:
  """Epochs become updates; where nothing is said, evaluations fall on the ends of epochs."""
  run = config.run
  per_epoch = size / config.data.batch_size
  total = run.steps or math.ceil(run.epochs * per_epoch)
  if total > MOST_STEPS:
    raise UserError(f"flags: --run.epochs={run.epochs:g} are {total:,} updates; at most {MOST_STEPS:,} can be counted")
  if run.profile and run.profile[1] > total:
    raise UserError(f"flags: --run.profile_steps={run.profile_steps} ends after the run, which has {total:,} updates")
  eval_every = run.eval_every or math.ceil(per_epoch * max(1, math.ceil(total / per_epoch / MOST_EVALUATIONS)))
  return loop.Plan(
    total_steps=total,
    eval_every=eval_every,
    checkpoint_every=run.checkpoint_every or eval_every,
    log_every=run.log_every,
    steps_per_call=run.steps_per_call,
    best_metric=run.best_metric,
    patience=run.patience,
    bad_steps=run.bad_steps,
    check_replay_every=run.check_replay_every,
    profile=run.profile,
  )
