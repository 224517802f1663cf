"""From a task and a feed to compiled calls: one training call and one evaluation call, whatever the family.

Nothing here reads a value back from the device or decides when to do something; the loop does.
"""

import concurrent.futures
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from research import metrics
from research.data.feeds import Feed
from research.data.transforms import Transform
from research.kernels import choice
from research.task import Metrics, State, Sums, Task, step_key

# Evaluation calls under way at most. Without a bound every batch of a split waits on the device at once, and eight
# virtual CPU devices came to wait for each other in their all-reduces after hundreds of calls.
AHEAD = 16


@dataclasses.dataclass(frozen=True)
class TrainingCall:
  """(state, inputs, count) → (state after `count` updates, metrics of the last). The state is donated.

  Attributes:
    program: (state, inputs, count) → the same, once it is compiled.
    forms: → {operation: form} of `research.kernels` in it, once it is traced; {} of one that is not compiled ahead.
  """

  program: Callable[[State, Any, int], tuple[State, Metrics]]
  forms: Callable[[], dict[str, str]] = dict

  def __call__(self, state: State, inputs: Any, count: int) -> tuple[State, Metrics]:
    return self.program(state, inputs, count)


def initialization(task: Task, feed: Feed, transform: Transform, seed: int, mesh: Mesh) -> jax.stages.Wrapped:
  """The feed's inputs → the state at step 0, replicated over the devices; jitted.

  One program for `abstract_state` and for the state itself, so that it is traced once.
  """

  def initialize(inputs: Any) -> State:
    parameters_key, data_key = jax.random.split(jax.random.key(seed))
    return task.init(parameters_key, transform(feed.batch(inputs, jnp.int32(0)), data_key))

  # It runs once, and its random numbers take LLVM longer to optimise (3 s on two cores) than unoptimised ones to draw.
  on_cpu = mesh.devices.ravel()[0].platform == "cpu"
  options = {"compiler_options": {"xla_backend_optimization_level": 0}} if on_cpu else {}
  return jax.jit(initialize, out_shardings=replicated(mesh), **options)


def abstract_state(initialize: jax.stages.Wrapped, feed: Feed, mesh: Mesh) -> State:
  """Shapes, dtypes and shardings of the state; nothing is allocated. What a checkpoint is restored into."""
  shapes = initialize.eval_shape(feed.inputs(0))
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), shapes)


def training_call(
  task: Task,
  feed: Feed,
  transform: Transform,
  seed: int,
  mesh: Mesh,
  steps_per_call: int,
  *,
  abstract: State | None = None,
) -> TrainingCall:
  """The compiled training call.

  With steps_per_call > 1 the updates run in one compiled loop whose length is an argument, so calls that end early, at
  an evaluation or a checkpoint, need no program of their own.

  With `abstract`, from `abstract_state`, compiling begins at once in a thread of its own, beside whatever else a start
  takes; without, it begins with the first call.
  """
  if steps_per_call == 1:
    compiled, forms = _begun(training_program(task, feed, transform, seed, mesh), feed, abstract)
    return TrainingCall(lambda state, inputs, count: compiled()(state, inputs), forms)

  update = _update(task, feed, transform, seed)

  def updates(state: State, inputs: Any, count: jax.Array) -> tuple[State, Metrics]:
    shapes = jax.eval_shape(update, state, inputs)[1]
    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.fori_loop(0, count, lambda _, carry: update(carry[0], inputs), (state, blank))

  counts = {}  # device scalars, made once for each length that occurs

  def device_count(count: int) -> jax.Array:
    if count not in counts:
      counts[count] = jax.device_put(np.int32(count), replicated(mesh))
    return counts[count]

  program = jax.jit(updates, donate_argnums=0, out_shardings=replicated(mesh))
  compiled, forms = _begun(program, feed, abstract, device_count(1))
  return TrainingCall(lambda state, inputs, count: compiled()(state, inputs, device_count(count)), forms)


def _begun(
  program: jax.stages.Wrapped, feed: Feed, abstract: State | None, *more: jax.Array
) -> tuple[Callable[[], Callable], Callable[[], dict[str, str]]]:
  """Ways to the compiled program and to its kernels' forms; a thread begins now where the abstract state is known."""
  if abstract is None:
    return lambda: program, dict
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), feed.inputs(0))


  def trace() -> tuple[jax.stages.Traced, dict[str, str]]:
    with choice.recording() as forms:
      return program.trace(abstract, shapes, *more), forms

  pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="compile")
  traced = pool.submit(choice.carried(trace))
  compiled = pool.submit(lambda: traced.result()[0].lower().compile())
  return compiled.result, lambda: traced.result()[1]


def training_program(task: Task, feed: Feed, transform: Transform, seed: int, mesh: Mesh) -> jax.stages.Wrapped:
  """(state, inputs) → (state after one update, its metrics), jitted; the state is donated."""
  return jax.jit(_update(task, feed, transform, seed), donate_argnums=0, out_shardings=replicated(mesh))


def evaluation_shapes(task: Task, feed: Feed, transform: Transform, state: State) -> Sums:
  """Shapes and dtypes of what evaluation sums up; nothing is computed."""
  shapes = jax.eval_shape(_batch_sums(task, feed, transform), state, feed.inputs(0), jnp.int32(0))
  feed.close()
  return shapes


def _batch_sums(task: Task, feed: Feed, transform: Transform) -> Callable[[State, Any, jax.Array], Sums]:
  def batch_sums(state: State, inputs: Any, number: jax.Array) -> Sums:
    return task.evaluate(state, transform(feed.batch(inputs, number), jax.random.key(0)))  # its transforms draw nothing

  return batch_sums


def evaluation_call(task: Task, feed: Feed, transform: Transform, mesh: Mesh) -> Callable[[State], Sums]:
  """state → the sums over every example of the feed's split, each counted once; host numbers."""

  batch_sums = _batch_sums(task, feed, transform)

  def add_batch(state: State, sums: Sums, inputs: Any, number: jax.Array) -> tuple[Sums, jax.Array]:
    return metrics.add(sums, batch_sums(state, inputs, number)), number + 1

  compiled = jax.jit(add_batch, out_shardings=replicated(mesh), donate_argnums=(1, 3))

  def evaluate(state: State) -> Sums:
    number = jax.device_put(np.int32(0), replicated(mesh))
    sums = None
    for step in range(len(feed.plan)):
      inputs = feed.inputs(step)
      if sums is None:
        shapes = jax.eval_shape(batch_sums, state, inputs, number)
        sums = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), replicated(mesh)), shapes)
      sums, number = compiled(state, sums, inputs, number)
      if step % AHEAD == AHEAD - 1:
        jax.block_until_ready(number)
    feed.close()
    return jax.device_get(sums)

  return evaluate


def examples(task: Task, feed: Feed, transform: Transform, state: State) -> dict[str, np.ndarray]:
  """Per-example values of the feed's whole split, in its order, for the report. {name: array_N}, with "index"."""

  @jax.jit
  def rows(state: State, inputs: Any, number: jax.Array):
    batch = transform(feed.batch(inputs, number), jax.random.key(0))
    return {**task.per_example(state, batch), "index": batch["index"]}, batch["mask"]

  parts = []
  for step in range(len(feed.plan)):
    values, mask_B = jax.device_get(rows(state, feed.inputs(step), jax.device_put(np.int32(step))))
    parts.append({name: value_B[mask_B > 0] for name, value_B in values.items()})
  feed.close()
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def replicated(mesh: Mesh) -> NamedSharding:
  """On every device of the mesh, whole."""
  return NamedSharding(mesh, PartitionSpec())


def _update(task: Task, feed: Feed, transform: Transform, seed: int) -> Callable[[State, Any], tuple[State, Metrics]]:
  def update(state: State, inputs: Any) -> tuple[State, Metrics]:
    data_key, task_key = jax.random.split(step_key(seed, state.step))
    return task.step(state, transform(feed.batch(inputs, state.step), data_key), task_key)

  return update
