"""Parameters that are cut over devices that share the batch (`fsdp`): whole while a layer uses them, cut elsewhere.

Written out, on each device's part: a layer's weights come together just before their use, in the dtype that it computes
in, and their gradient is summed and cut again in one, in that dtype (Zhao et al. 2023, section 3; the third stage of
ZeRO). What XLA puts in where only the parameters' places are known sends up to twice as much on TPUs: its compiler
sums whole gradients, and gathers by sums, wherever a group of devices is no line of the chips' network. So both go
along one direction of the network after the other (the multi-dimensional rings of Chan et al. 2007, section 7).
"""

from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh

from research.parallel.tables import STORED_OVER


def all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
  """A policy of `jax.checkpoint`: the backward pass has what it needs, but gathers once more what `whole` gives. So all
  layers' weights are never there at once."""
  return primitive.name not in ("all_gather", "reshape")


def whole(part: jax.Array, place: int, mesh: Mesh) -> jax.Array:
  """Inside a shard_map: all parts of a parameter, side by side along the axis at `place`."""
  shape, sizes = part.shape, directions(mesh)
  numbers = np.arange(mesh.shape[STORED_OVER]).reshape(sizes)
  for direction in reversed(range(len(sizes))):
    groups = np.moveaxis(numbers, direction, -1).reshape(-1, sizes[direction]).tolist()
    groups = None if len(groups) == 1 else groups
    part = lax.all_gather(part, STORED_OVER, axis_index_groups=groups, axis=place)
  return part.reshape(*shape[:place], -1, *shape[place + 1 :])


def directions(mesh: Mesh) -> tuple[int, ...]:
  """How many devices follow each other along each direction of a TPU's network, the axis "data" through, the last
  direction fastest; of other devices, and where they lie in no such order, their number alone."""
  devices = np.moveaxis(mesh.devices, mesh.axis_names.index(STORED_OVER), 0)
  line = devices.reshape(len(devices), -1)[:, 0]
  if line[0].platform != "tpu":
    return (len(line),)
  return _lines(np.array([(*device.coords, device.core_on_chip) for device in line])) or (1,)


def _lines(places_NC: np.ndarray) -> tuple[int, ...]:
  count = len(places_NC)
  if count == 1:
    return ()
  differs_NC = places_NC != places_NC[0]
  elsewhere_N = (differs_NC & ~differs_NC[1]).any(axis=1) | (differs_NC.sum(axis=1) > 1)
  run = int(elsewhere_N.argmax()) if elsewhere_N.any() else count
  if count % run or run == 1:
    return (count,)
  blocks = places_NC.reshape(-1, run, places_NC.shape[1])
  steps = blocks - blocks[:, :1]
  if (steps != steps[0]).any():
    return (count,)
  return (*_lines(places_NC[::run]), run)
