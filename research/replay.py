"""A machine that lies: a call made twice from the same state has to give the same bits, and so have all the copies that
devices hold of one array. Neither needs a model of what is right.

It costs, where it is done, one more call and the memory of one more state.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from research.checkpoint import named
from research.recovery import BadNumbers
from research.steps import TrainingCall
from research.task import Metrics, State

ADVICE = "the machine does not compute the same twice: go on with the same command on another one"


def due(every: int, start: int, end: int) -> bool:
  """Whether a call from `start` to `end` is checked: it reaches a multiple of `every`; never, where that is 0."""
  return every > 0 and end // every > start // every


def checked(call: TrainingCall, state: State, inputs: Any, count: int) -> tuple[State, Metrics]:
  """What the call gives, once it has given the same a second time.

  Raises BadNumbers, with the step, the array and the devices, where the two differ in a bit, or copies of one array do.
  """
  copy = _copied(state)
  first = call(state, inputs, count)
  second = call(copy, inputs, count)
  step, names = int(jax.device_get(first[0].step)), list(_named(first))
  ours, theirs = (list(_named(each).values()) for each in (first, second))
  changed, sums = jax.device_get((differing(ours, theirs), checksums(ours)))
  for place, (name, leaf) in enumerate(zip(names, ours, strict=True)):
    devices = list(leaf.sharding.mesh.devices.ravel())
    if changed[:, place].any():
      where = _say([devices[each] for each in np.flatnonzero(changed[:, place])])
      raise BadNumbers(f"{name} at step {step} is another when its update is repeated, on {where}: stopped; {ADVICE}")
    if odd := _odd(leaf, dict(zip(devices, sums[:, place], strict=True))):
      raise BadNumbers(f"{name} at step {step} is not the same on all devices: not on {_say(odd)}: stopped; {ADVICE}")
  return first


def differing(ours: Sequence[jax.Array], theirs: Sequence[jax.Array]) -> jax.Array:
  """(devices, arrays) bool: whether a bit of the part that each device holds is another; on every device."""
  return _on_each(_differ, tuple(ours), tuple(theirs))


def checksums(leaves: Sequence[jax.Array]) -> jax.Array:
  """(devices, arrays) uint32: of the part of each array that each device holds, by itself; on every device.

  Devices are in the order of the arrays' mesh. Parts that differ in one element have different sums, others but for one
  case in 2³².
  """
  return _on_each(_checksum, tuple(leaves))


def _on_each(what: Callable[..., jax.Array], *arrays: tuple[jax.Array, ...]) -> jax.Array:
  """(devices, arrays): what each device says of the parts that it holds, one array of each tuple at a time."""
  specs = tuple(leaf.sharding.spec for leaf in arrays[0])
  return _program(what, len(arrays), arrays[0][0].sharding.mesh, specs)(*arrays)


@functools.cache
def _program(what: Callable[..., jax.Array], count: int, mesh: Mesh, specs: tuple[PartitionSpec, ...]) -> Callable:
  def own(*parts: tuple[jax.Array, ...]) -> jax.Array:
    return jnp.stack([what(*each) for each in zip(*parts, strict=True)])[None]

  # By shard_map, because to XLA the copies of an array are one array, and it looks at any of them.
  rows = jax.shard_map(
    own, mesh=mesh, in_specs=(specs,) * count, out_specs=PartitionSpec(mesh.axis_names), check_vma=False
  )
  return jax.jit(rows, out_shardings=NamedSharding(mesh, PartitionSpec()))


def _differ(a: jax.Array, b: jax.Array) -> jax.Array:
  return (_bits(a) != _bits(b)).any()


def _bits(x: jax.Array) -> jax.Array:
  """(elements,) unsigned integers."""
  if x.dtype == jnp.bool_:
    return x.reshape(-1).astype(jnp.uint8)
  return jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").reshape(-1)


def _checksum(x: jax.Array) -> jax.Array:
  """Σ word · odd(place) modulo 2³²: an odd factor maps no two words to one, so each change of one word is seen."""
  words = _bits(x).astype(jnp.uint32)
  place = jax.lax.iota(jnp.uint32, words.size)
  factor = (place * np.uint32(2654435761)) | np.uint32(1)  # spread, so that sums of several changes do not cancel
  return (words * factor).sum(dtype=jnp.uint32)


def _odd(leaf: jax.Array, sums: dict[jax.Device, np.uint32]) -> list[jax.Device]:
  """The devices whose copy of a part is not that of most others; all of them, where there is no most."""
  copies: dict[str, list[jax.Device]] = {}
  for device, part in leaf.sharding.devices_indices_map(leaf.shape).items():
    copies.setdefault(str(part), []).append(device)
  odd = []
  for devices in copies.values():
    values, counts = np.unique([sums[device] for device in devices], return_counts=True)
    if len(values) > 1:
      most = values[counts == counts.max()]
      odd += [device for device in devices if len(most) > 1 or sums[device] != most[0]]
  return odd


@jax.jit
def _copied(state: State) -> State:
  return jax.tree.map(jnp.copy, state)


def _named(result: tuple[State, Metrics]) -> dict[str, jax.Array]:
  return {**named(result[0]), **{f"train/{name}": value for name, value in result[1].items()}}


def _say(devices: Sequence[jax.Device]) -> str:
  return ", ".join(str(device) for device in devices)
