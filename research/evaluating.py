"""From a task and a feed to what looks at a state and leaves it as it is: an evaluation, values of examples, facts.

Training is in `steps.py`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from research import metrics
from research.data.feeds import Feed
from research.data.transforms import Transform
from research.parallel import arrays, collectives
from research.parallel.activations import laid_out
from research.parallel.tables import Layout, parts
from research.signals import Stopped
from research.steps import from_data, over_shards
from research.task import Batch, State, Sums, Task, step_key

# Evaluation calls under way at most. Without a bound every batch of a split waits on the device at once, and eight
# virtual CPU devices came to wait for each other in their all-reduces after hundreds of calls.
AHEAD = 16


def evaluation_shapes(task: Task, feed: Feed, transform: Transform, state: State) -> Sums:
  """Shapes and dtypes of what evaluation sums up; nothing is computed."""
  shapes = jax.eval_shape(_batch_sums(task, feed, transform, None), state, feed.inputs(0), jnp.int32(0))
  feed.close()
  return shapes


def _batch_sums(
  task: Task, feed: Feed, transform: Transform, layout: Layout | None
) -> Callable[[State, Any, jax.Array], Sums]:
  def prepared(batch: Batch) -> Batch:
    return transform(batch, jax.random.key(0))  # evaluation's transforms draw nothing

  def by_shards(state: State, batch: Batch) -> Sums:
    return collectives.total_of(lambda batch: task.evaluate(state, prepared(batch)), collectives.split(batch))

  def batch_sums(state: State, inputs: Any, number: jax.Array) -> Sums:
    batch = feed.batch(inputs, number)
    if layout is not None and layout.shards:
      return over_shards(layout, by_shards, PartitionSpec())(state, batch)
    batch = prepared(batch)
    with laid_out(layout):
      return task.evaluate(state, batch)

  return batch_sums


def evaluation_call(
  task: Task, feed: Feed, transform: Transform, layout: Layout
) -> Callable[[State, Callable[[], bool]], Sums]:
  """(state, stop) → the sums over every example of the feed's split, each counted once; host numbers.

  `stop` is asked between batches; Stopped is raised where it says so.
  """

  batch_sums = _batch_sums(task, feed, transform, layout)

  def add_batch(state: State, sums: Sums, inputs: Any, number: jax.Array) -> tuple[Sums, jax.Array]:
    return metrics.add(sums, batch_sums(state, inputs, number)), number + 1

  compiled = jax.jit(add_batch, out_shardings=layout.replicated, donate_argnums=(1, 3))

  def evaluate(state: State, stop: Callable[[], bool] = lambda: False) -> Sums:
    number = arrays.put(np.int32(0), layout.replicated)
    sums = None
    for step in range(len(feed.plan)):
      if stop():
        feed.close()
        raise Stopped
      inputs = feed.inputs(step)
      if sums is None:
        shapes = jax.eval_shape(batch_sums, state, inputs, number)
        sums = jax.tree.map(lambda x: arrays.put(np.zeros(x.shape, x.dtype), layout.replicated), shapes)
      sums, number = compiled(state, sums, inputs, number)
      if step % AHEAD == AHEAD - 1:
        jax.block_until_ready(number)
    feed.close()
    return jax.device_get(jax.block_until_ready(sums))  # on every device: to read them waits for one

  return evaluate


def examples(
  task: Task, feed: Feed, transform: Transform, state: State, layout: Layout | None = None
) -> dict[str, np.ndarray]:
  """Per-example values of the feed's whole split, in its order, for the report. {name: array_N}, with "index"."""

  def whole(state: State, batch: Batch) -> dict[str, jax.Array]:
    batch = transform(batch, jax.random.key(0))
    return {**task.per_example(state, batch), "index": batch["index"]}

  def by_shards(state: State, batch: Batch) -> dict[str, jax.Array]:
    parts = collectives.split(batch)
    return collectives.merge(collectives.each(lambda batch: whole(state, batch), parts))

  @jax.jit
  def rows(state: State, inputs: Any, number: jax.Array):
    batch = feed.batch(inputs, number)
    if layout is not None and layout.shards:
      return over_shards(layout, by_shards, PartitionSpec("data"))(state, batch), batch["mask"]
    return whole(state, batch), batch["mask"]

  parts = []
  for step in range(len(feed.plan)):
    values, mask_B = arrays.get(rows(state, feed.inputs(step), jax.device_put(np.int32(step))))
    parts.append({name: value_B[mask_B > 0] for name, value_B in values.items()})
  feed.close()
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def facts_call(
  task: Task, feed: Feed, transform: Transform, seed: int, layout: Layout
) -> Callable[[State, Any], dict[str, Any]]:
  """(state, inputs) → what the update that starts from `state` is made of and would make, unguarded; host values.

  {"index": ids_B, "data": {name: whether all of each example is finite_B} of what the feed gives as floats, "metrics":
  {name: value}, "params": {path: whether all is finite} after it}. The state is not donated.
  """

  def facts(state: State, inputs: Any) -> dict[str, Any]:
    given = feed.batch(inputs, state.step)
    new, found = from_data(task, transform, layout)(state, given, step_key(seed, state.step))
    floats = {name: x for name, x in given.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    return {
      "index": given["index"],
      "data": {name: jnp.isfinite(x).reshape(len(x), -1).all(axis=1) for name, x in floats.items()},
      "metrics": found,
      "params": {"/".join(parts(path)): jnp.isfinite(leaf).all() for path, leaf in flat(new.params)},
    }

  flat = lambda tree: jax.tree_util.tree_flatten_with_path(tree)[0]  # noqa: E731
  compiled = jax.jit(facts, out_shardings=layout.replicated)
  return lambda state, inputs: jax.device_get(jax.block_until_ready(compiled(state, inputs)))
