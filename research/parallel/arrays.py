"""Host arrays ↔ arrays that lie on the devices of several processes, each of which holds a part.

jax.device_put compares what all processes put, which sends it around; jax.device_get refuses what lies elsewhere. With
one process these are those.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding


def put(array: Any, sharding: Sharding) -> jax.Array:
  """The array laid out so; every process has the whole of it at hand, and must have the same."""
  if sharding.is_fully_addressable:
    return jax.device_put(array, sharding)
  array = np.asarray(array)
  return from_parts(array.shape, sharding, lambda place: array[place])


def from_parts(
  shape: tuple[int, ...], sharding: Sharding, part: Callable[[tuple[slice, ...]], np.ndarray]
) -> jax.Array:
  """A global array of which each process gives the parts of its own devices, by their places.

  It is jax.make_array_from_callback as an explicit transfer, which the loop's guard lets through.
  """
  places = sharding.addressable_devices_indices_map(shape)
  parts = jax.device_put([part(place) for place in places.values()], list(places))
  return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def get(tree: Any) -> Any:
  """Its arrays on the host, whole. Every process has to ask: what lies elsewhere is sent to all."""
  return jax.device_get(jax.tree.map(_here, tree))


def _here(leaf: Any) -> Any:
  if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
    return leaf
  from jax.experimental import multihost_utils

  return multihost_utils.process_allgather(leaf, tiled=True)
