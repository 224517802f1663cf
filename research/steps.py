"""From a task and a feed to the state at step 0 and one compiled training call, whatever the family.

Nothing here reads a value back from the device or decides when to do something; the loop does.
"""

import concurrent.futures
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from research import guard
from research.data.feeds import Feed
from research.data.transforms import Transform
from research.errors import UserError
from research.kernels import choice
from research.parallel import arrays, collectives
from research.parallel.activations import laid_out
from research.parallel.shards import Shards
from research.parallel.tables import Layout
from research.task import Batch, Key, Metrics, State, Task, step_key


@dataclasses.dataclass(frozen=True)
class TrainingCall:
  """(state, inputs, count) → (state after `count` updates, metrics of the last). The state is donated.

  Attributes:
    program: (state, inputs, count) → the same, once it is compiled.
    forms: → {operation: form} of `research.kernels` in it, once it is traced; {} of one that is not compiled ahead.
    compiled: → the compiled program, once it is; None of one that is not compiled ahead.
  """

  program: Callable[[State, Any, int], tuple[State, Metrics]]
  forms: Callable[[], dict[str, str]] = dict
  compiled: Callable[[], jax.stages.Compiled | None] = lambda: None

  def __call__(self, state: State, inputs: Any, count: int) -> tuple[State, Metrics]:
    return self.program(state, inputs, count)

  def wait(self) -> None:
    """Until it is compiled, where that has begun."""
    self.compiled()

  def text(self) -> str:
    """The compiled program in XLA's words, once it is compiled; "" of one that is not compiled ahead."""
    compiled = self.compiled()
    return (compiled and compiled.as_text()) or ""


class Initialization:
  """The state at step 0, in two ways: its shapes and where its parts lie, or the state itself.

  The numbers do not depend on where they lie. `rules` are those of the training call. Raises UserError where the
  layout's table does not fit a parameter, or the task has none to offer.
  """

  def __init__(
    self,
    task: Task,
    feed: Feed,
    transform: Transform,
    seed: int,
    layout: Layout,
    rules: guard.Rules = guard.Rules(),  # noqa: B008  it is frozen
  ):
    self._feed = feed

    def first_batch(inputs: Any, key: Key) -> Batch:
      return transform(feed.batch(inputs, jnp.int32(0)), key)

    def initialize(inputs: Any) -> State:
      parameters_key, data_key = jax.random.split(jax.random.key(seed))
      batch = first_batch(inputs, data_key)
      state = task.init(parameters_key, batch)
      found = jax.eval_shape(task.step, state, batch, data_key)[1] if rules.skip_spikes else {}
      return state.replace(guard=guard.start(rules, found))

    # It runs once, and LLVM takes longer to optimise its random numbers (3 s on two cores) than plain ones to be drawn.
    on_cpu = layout.mesh.devices.ravel()[0].platform == "cpu"
    options = {"compiler_options": {"xla_backend_optimization_level": 0}} if on_cpu else {}
    inputs = feed.inputs(0)
    whole = jax.jit(initialize, out_shardings=layout.replicated, **options)
    shapes = whole.eval_shape(inputs)
    if layout.whole:
      self._jitted, shardings = whole, jax.tree.map(lambda _: layout.replicated, shapes)
    else:
      if task.axes is None:
        raise UserError(f"parallel: --parallel.strategy={layout.strategy} is not for this experiment; dp is")
      axes = task.axes(jax.eval_shape(first_batch, inputs, jax.random.key(0)))
      shardings = layout.shardings(shapes, axes)
      self._jitted = jax.jit(initialize, out_shardings=shardings, **options)
    place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
    self.abstract: State = jax.tree.map(place, shapes, shardings)

  def state(self) -> State:
    return self._jitted(self._feed.inputs(0))


def _shardings(abstract: State) -> State:
  return jax.tree.map(lambda x: x.sharding, abstract)


def training_call(
  task: Task,
  feed: Feed,
  transform: Transform,
  seed: int,
  layout: Layout,
  steps_per_call: int,
  *,
  abstract: State,
  begin: bool = True,
  rules: guard.Rules = guard.Rules(),  # noqa: B008  it is frozen
) -> TrainingCall:
  """The compiled training call.

  With steps_per_call > 1 the updates run in one compiled loop whose length is an argument, so calls that end early, at
  an evaluation or a checkpoint, need no program of their own.

  Compiling begins at once in a thread of its own, beside whatever else a start takes; without `begin`, with the first
  call. `abstract` is the state's, from `Initialization`; by `rules` updates are passed over.
  """
  if steps_per_call == 1:
    program = training_program(task, feed, transform, seed, layout, abstract, rules)
    compiled, *about = _begun(program, feed, abstract, begin)
    return TrainingCall(lambda state, inputs, count: compiled()(state, inputs), *about)

  update = _update(task, feed, transform, seed, layout, rules)

  def updates(state: State, inputs: Any, count: jax.Array) -> tuple[State, Metrics]:
    shapes = jax.eval_shape(update, state, inputs)[1]
    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.fori_loop(0, count, lambda _, carry: update(carry[0], inputs), (state, blank))

  counts = {}  # device scalars, made once for each length that occurs

  def device_count(count: int) -> jax.Array:
    if count not in counts:
      counts[count] = arrays.put(np.int32(count), layout.replicated)
    return counts[count]

  program = jax.jit(updates, donate_argnums=0, out_shardings=(_shardings(abstract), layout.replicated))
  compiled, *about = _begun(program, feed, abstract, begin, device_count(1))
  return TrainingCall(lambda state, inputs, count: compiled()(state, inputs, device_count(count)), *about)


def _begun(
  program: jax.stages.Wrapped, feed: Feed, abstract: State, begin: bool, *more: jax.Array
) -> tuple[Callable[[], Callable], Callable[[], dict[str, str]], Callable[[], jax.stages.Compiled | None]]:
  """Ways to what is called, to its kernels' forms and to the compiled program; with `begin` a thread begins now."""
  if not begin:
    return lambda: program, dict, lambda: None
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), feed.inputs(0))

  def trace() -> tuple[jax.stages.Traced, dict[str, str]]:
    with choice.recording() as forms:
      return program.trace(abstract, shapes, *more), forms

  pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="compile")
  traced = pool.submit(choice.carried(trace))
  compiled = pool.submit(lambda: traced.result()[0].lower().compile())
  return compiled.result, lambda: traced.result()[1], compiled.result


def training_program(
  task: Task,
  feed: Feed,
  transform: Transform,
  seed: int,
  layout: Layout,
  abstract: State,
  rules: guard.Rules = guard.Rules(),  # noqa: B008  it is frozen
) -> jax.stages.Wrapped:
  """(state, inputs) → (state after one update, its metrics), jitted; the state is donated."""
  update = _update(task, feed, transform, seed, layout, rules)
  return jax.jit(update, donate_argnums=0, out_shardings=(_shardings(abstract), layout.replicated))


def _update(
  task: Task, feed: Feed, transform: Transform, seed: int, layout: Layout, rules: guard.Rules
) -> Callable[[State, Any], tuple[State, Metrics]]:
  """(state, inputs) → (state after one update, its metrics), the step as the layout compiles it."""
  step = guard.guarded(from_data(task, transform, layout), rules)
  return lambda state, inputs: step(state, feed.batch(inputs, state.step), step_key(seed, state.step))


def from_data(
  task: Task, transform: Transform, layout: Layout
) -> Callable[[State, Batch, Key], tuple[State, Metrics]]:
  """(state, what a feed gives, the update's key) → the step, of what the transform makes of it."""

  def whole(state: State, given: Batch, key: Key) -> tuple[State, Metrics]:
    data_key, task_key = jax.random.split(key)
    return _step(task, layout)(state, transform(given, data_key), task_key)

  def by_shards(state: State, given: Batch, data_key: Key, task_key: Key) -> tuple[State, Metrics]:
    parts = collectives.each(lambda part: transform(part, data_key), collectives.split(given))
    return task.step(state, collectives.merge(parts), task_key)

  def in_parts(state: State, given: Batch, key: Key) -> tuple[State, Metrics]:
    return over_shards(layout, by_shards, PartitionSpec())(state, given, *jax.random.split(key))

  return in_parts if layout.shards else whole


def over_shards(layout: Layout, function: Callable[..., Any], out: PartitionSpec) -> Callable[..., Any]:
  """function(state, batch, *keys) as each device computes it of its own virtual shards."""

  def part(state: State, batch: Batch, *keys: Key) -> Any:
    zero = jnp.minimum(batch["index"][0], 0).astype(jnp.int32)  # which no compiler can know
    with collectives.sharded(Shards("data", layout.shards, zero)):
      return function(state, batch, *keys)

  def run(state: State, batch: Batch, *keys: Key) -> Any:
    specs = (PartitionSpec(), jax.tree.map(lambda _: PartitionSpec("data"), batch), *(PartitionSpec() for _ in keys))
    mapped = jax.shard_map(part, mesh=layout.mesh, in_specs=specs, out_specs=out, check_vma=False)
    return mapped(state, batch, *keys)

  return run


def _step(task: Task, layout: Layout) -> Callable[[State, Batch, Key], tuple[State, Metrics]]:
  """The task's step on the whole batch.

  By jit the program is that of one device, which XLA divides by where arrays lie. By shard_map and pmap each device
  runs the step on its own part of the batch, with the means across devices that the step names.
  """

  def whole(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
    with laid_out(layout):
      return task.step(state, batch, key)

  def part(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
    with collectives.mapped("data"):
      return task.step(state, batch, key)

  def by_shard_map(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
    specs = (PartitionSpec(), jax.tree.map(lambda _: PartitionSpec("data"), batch), PartitionSpec())
    return jax.shard_map(part, mesh=layout.mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)(
      state, batch, key
    )

  def by_pmap(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
    count = layout.ways
    batch = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
    mapped = jax.pmap(part, "data", in_axes=(None, 0, None), out_axes=None, devices=list(layout.mesh.devices.ravel()))
    return mapped(state, batch, key)

  return {"jit": whole, "shard_map": by_shard_map, "pmap": by_pmap}[layout.compile]
