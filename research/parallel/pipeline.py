"""A stack of layers in groups on several devices, through which a batch goes in parts (Huang et al. 2019, GPipe).

Each device of the axis `stage` has some layers. In each turn it computes them for one part of the batch and hands the
result on; at a run's beginning and end some devices have nothing to do, which is the bubble. Differentiating the turns
runs them backwards.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from research.errors import UserError
from research.parallel.activations import current, laid_out
from research.parallel.tables import Layout

AXIS = "stage"
EACH = 4  # parts for each stage, where nobody says otherwise: a bubble of a fifth


def stages(layout: Layout | None) -> int:
  """How many groups the layers are in; 1 where there is no pipeline."""
  return layout.mesh.shape[AXIS] if layout is not None and layout.strategy == "pp" else 1


def parts(layout: Layout, batch: int) -> int:
  """How many parts a batch of so many examples goes through in. Raises UserError where the flag's do not divide it."""
  rows = batch // layout.mesh.shape["data"]
  if asked := layout.micro_batches:
    if rows % asked:
      raise UserError(
        f"parallel: --parallel.micro_batches={asked} does not divide the {rows} examples that a pipeline has of a batch"
      )
    return asked
  return max(each for each in range(1, EACH * stages(layout) + 1) if rows % each == 0)


def bubble(layout: Layout, batch: int) -> float:
  """The share of time in which a device waits: (S − 1) / (M + S − 1), S stages and M parts (Huang et al., 2.3)."""
  count = stages(layout)
  return (count - 1) / (parts(layout, batch) + count - 1)


def pipelined(
  run: Callable[[Any, jax.Array, Any, jax.Array | None], jax.Array],
  layers: Any,
  x_BLD: jax.Array,
  more: Any,
  key: jax.Array | None,
) -> jax.Array:
  """run(layers, x_BLD, more, key) → x_BLD, a group of layers on each stage.

  Args:
    run: (some layers, x_bLD, more of these rows, key) → x_bLD.
    layers: a tree of arrays, stacked by layers on their first axis.
    x_BLD: the batch.
    more: a tree of arrays whose first axis is the batch's.
    key: of dropout; folded with the part, the stage and the place of the rows.
  """
  layout = current()
  count, number = stages(layout), parts(layout, x_BLD.shape[0])

  def stage(layers: Any, x_BLD: jax.Array, more: Any, key: jax.Array | None) -> jax.Array:
    here = lax.axis_index(AXIS)
    if key is not None:
      key = jax.random.fold_in(key, here * layout.mesh.shape["data"] + lax.axis_index("data"))
    x_MbLD, more_M = jax.tree.map(lambda x: x.reshape(number, -1, *x.shape[1:]), (x_BLD, more))
    onward = [(place, place + 1) for place in range(count - 1)]

    def turn(arrived_bLD: jax.Array, time: jax.Array) -> tuple[jax.Array, jax.Array]:
      part = jnp.clip(time - here, 0, number - 1)  # before its first and after its last a stage computes in vain
      mine = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, part, keepdims=False), more_M)
      x_bLD = jnp.where(here == 0, lax.dynamic_index_in_dim(x_MbLD, part, keepdims=False), arrived_bLD)
      with laid_out(None):
        made_bLD = run(layers, x_bLD, mine, None if key is None else jax.random.fold_in(key, part))
      return lax.ppermute(made_bLD, AXIS, onward), made_bLD

    _, made_TbLD = lax.scan(turn, jnp.zeros_like(x_MbLD[0]), jnp.arange(number + count - 1))
    last_BLD = jnp.where(here == count - 1, made_TbLD[count - 1 :], 0).reshape(x_BLD.shape)
    # What follows is shared by the stages: each takes its rows.
    return lax.psum_scatter(last_BLD, AXIS, scatter_dimension=0, tiled=True)

  rows, groups, whole = PartitionSpec("data"), PartitionSpec(AXIS), PartitionSpec()
  return jax.shard_map(
    stage,
    mesh=layout.mesh,
    in_specs=(groups, rows, rows, whole),
    out_specs=PartitionSpec(("data", AXIS)),
    check_vma=False,
  )(layers, x_BLD, more, key)
