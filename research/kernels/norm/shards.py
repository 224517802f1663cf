"""A kernel of (G, N, D) for rows of any leading axes, under vmap, and where these axes are divided over devices.

To XLA a kernel is a black box: it would gather all rows on every device. `custom_partitioning` says that each device
may work on its own rows, and that the sums over rows are to be added up. Columns are never divided.

Arrays are of three sorts: `ROWS` (…, D), `NUMBERS` (…), and `PARAMETERS` (D,), or under vmap, where some axes in front
have parameters of their own, (those axes, D). The first array is one of rows.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

ROWS, NUMBERS, PARAMETERS = "rows", "numbers", "parameters"

Kernel = Callable[..., Sequence[jax.Array]]


def run(
  kernel: Kernel, arrays: Sequence[jax.Array], sorts: Sequence[str], results: Sequence[str], apart: int = 0
) -> tuple[jax.Array, ...]:
  """Runs a kernel.

  Args:
    kernel: (rows (G, N, D), numbers (G, N), parameters (1 or G, D)) → the same, but parameters (G, sums, D), of which
      the sum over the second axis is wanted.
    arrays: to run it on.
    sorts: of arrays.
    results: sorts of what it gives.
    apart: how many axes in front have results of sort `PARAMETERS` of their own.
  """
  if arrays[0].ndim == 1:
    lone = [each if sort == PARAMETERS else each[None] for each, sort in zip(arrays, sorts, strict=True)]
    found = run(kernel, lone, sorts, results, apart)
    return tuple(each if sort == PARAMETERS else each[0] for each, sort in zip(found, results, strict=True))
  apart = max([apart, *(each.ndim - 1 for each, sort in zip(arrays, sorts, strict=True) if sort == PARAMETERS)])
  rank = arrays[0].ndim

  def here(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """On one device."""
    shape = arrays[0].shape
    groups, width = math.prod(shape[:apart]), shape[-1]
    flat = {ROWS: (groups, -1, width), NUMBERS: (groups, math.prod(shape[apart:-1])), PARAMETERS: (-1, width)}
    found = kernel(*(each.reshape(flat[sort]) for each, sort in zip(arrays, sorts, strict=True)))
    whole = {ROWS: shape, NUMBERS: shape[:-1], PARAMETERS: (*shape[:apart], width)}
    summed = [each.sum(axis=1) if sort == PARAMETERS else each for each, sort in zip(found, results, strict=True)]
    return tuple(each.reshape(whole[sort]) for each, sort in zip(summed, results, strict=True))

  def partition(mesh, shapes, result_shapes):
    del result_shapes
    sharding = shapes[0].sharding
    spec = [*sharding.spec] if isinstance(sharding, NamedSharding) else []
    front = (spec + [None] * rank)[: rank - 1]
    by_sort = {ROWS: (*front, None), NUMBERS: (*front,), PARAMETERS: (*front[:apart], None)}

    def placed(sort: str, axes: int) -> NamedSharding:
      names = by_sort[sort] if axes == len(by_sort[sort]) else (None,) * axes
      return NamedSharding(mesh, PartitionSpec(*names))

    added = tuple(
      name for names in front[apart:] if names for name in (names if isinstance(names, tuple) else (names,))
    )

    def on_each(*arrays: jax.Array) -> tuple[jax.Array, ...]:
      found = here(*arrays)
      return tuple(
        lax.psum(each, added) if added and sort == PARAMETERS else each
        for each, sort in zip(found, results, strict=True)
      )

    lengths = {ROWS: rank, NUMBERS: rank - 1, PARAMETERS: apart + 1}
    places = tuple(placed(sort, len(each.shape)) for each, sort in zip(shapes, sorts, strict=True))
    return mesh, on_each, tuple(placed(sort, lengths[sort]) for sort in results), places

  axes = [f"a{number}" for number in range(rank - 1)]
  names = {ROWS: [*axes, "d"], NUMBERS: axes, PARAMETERS: [*axes[:apart], "d"]}

  def rule() -> str:
    given = [names[sort][-each.ndim :] for each, sort in zip(arrays, sorts, strict=True)]
    sides = [", ".join(" ".join(each) for each in side) for side in (given, [names[sort] for sort in results])]
    return " -> ".join(sides)

  from research.kernels import mosaic

  if mosaic.is_interpreted():  # by callbacks in order, which a divided program has not
    divided = here
  else:
    divided = custom_partitioning(here)
    divided.def_partition(partition=partition, sharding_rule=rule(), need_replication_factors=("d",))
  whole = jax.custom_batching.custom_vmap(divided)

  @whole.def_vmap
  def mapped(size: int, batched: Sequence[bool], *arrays: jax.Array):
    """The new axis is one more in front. Parameters have it where one of them is batched, or has axes in front."""
    pairs = [*zip(arrays, batched, sorts, strict=True)]
    own = any(is_batched or each.ndim > 1 for each, is_batched, sort in pairs if sort == PARAMETERS)
    front = arrays[0].shape[batched[0] :][:apart]

    def widened(each: jax.Array, is_batched: bool, sort: str) -> jax.Array:
      one = each if is_batched else each[None]
      if sort != PARAMETERS:
        return jnp.broadcast_to(one, (size, *one.shape[1:]))
      if not own:
        return each
      missing = [1] * (apart + 2 - one.ndim)
      return jnp.broadcast_to(one.reshape(one.shape[0], *missing, *one.shape[1:]), (size, *front, one.shape[-1]))

    deeper = apart + 1 if own or PARAMETERS in results else 0
    return run(kernel, [widened(*pair) for pair in pairs], sorts, results, deeper), (True,) * len(results)

  return whole(*arrays)
