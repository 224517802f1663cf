"""Two ways of giving a compiled step its batch: from data that live on the device, or through Grain's threads.

A feed has two halves: `inputs(step)` on the host says what to hand to the compiled call, and `batch(inputs, step)` runs
inside it. Both feeds give the same batches, bit for bit. A feed keeps no state that a checkpoint would need.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from research.data import order
from research.data.source import Source
from research.parallel import arrays
from research.task import Batch


@dataclasses.dataclass(frozen=True)
class Shuffled:
  """Training's plan: batch `step` of the keyed permutations; endless, every batch full."""

  seed: int
  batch_size: int
  size: int

  def rows(self, step):
    """→ (indices_B int32, mask_B float32), in numpy for an int step and in jax for a traced one."""
    indices_B = order.batch_indices(self.seed, step, self.batch_size, self.size)
    xp = np if isinstance(indices_B, np.ndarray) else jnp
    return indices_B, xp.ones(self.batch_size, xp.float32)


@dataclasses.dataclass(frozen=True)
class InOrder:
  """Evaluation's plan: every example once, in order; the last batch is filled up with masked copies of example 0."""

  batch_size: int
  size: int

  def __len__(self) -> int:
    return -(-self.size // self.batch_size)

  def rows(self, step):
    """→ (indices_B int32, mask_B float32): the mask is 0 where there is no example left."""
    xp = np if isinstance(step, int) else jnp
    place_B = xp.asarray(step * self.batch_size, xp.int32) + xp.arange(self.batch_size, dtype=xp.int32)
    real_B = place_B < self.size
    return xp.where(real_B, place_B, xp.int32(0)), real_B.astype(xp.float32)


class Feed(Protocol):
  """What the loop needs: host inputs for a call, and the batch made of them inside it."""

  plan: Shuffled | InOrder
  resident: bool

  def inputs(self, step: int) -> Any: ...
  def batch(self, inputs: Any, step: jax.Array) -> Batch: ...
  def close(self) -> None: ...


class DeviceFeed:
  """The whole split on the device; the gather is part of the compiled step, and a call transfers nothing."""

  resident = True

  def __init__(
    self, plan: Shuffled | InOrder, source: Source, arrays: Mapping[str, jax.Array], sharding: NamedSharding
  ):
    self.plan, self._source, self._arrays, self._sharding = plan, source, arrays, sharding

  def inputs(self, step: int) -> Mapping[str, jax.Array]:
    del step  # the compiled call reads it from the state
    return self._arrays

  def batch(self, inputs: Mapping[str, jax.Array], step: jax.Array) -> Batch:
    indices_B, mask_B = self.plan.rows(step)
    indices_B = jax.lax.with_sharding_constraint(indices_B, self._sharding)
    rows = self._source.take(inputs, indices_B)
    return {**rows, "index": indices_B, "mask": mask_B}

  def close(self) -> None:
    pass


class GrainFeed:
  """Grain's threads gather the batches ahead of the step, each process its own rows of them."""

  resident = False

  def __init__(self, plan: Shuffled | InOrder, source: Source, sharding: NamedSharding, *, threads: int = 4):
    self.plan, self._source, self._threads = plan, source, threads
    self._share = Share(sharding, plan.batch_size)
    self._next_step, self._batches = None, None

  def inputs(self, step: int) -> Mapping[str, jax.Array]:
    if step != self._next_step:
      self.close()
      self._batches = self._from(step)
    self._next_step = step + 1
    return next(self._batches)

  def batch(self, inputs: Mapping[str, jax.Array], step: jax.Array) -> Batch:
    del step
    return inputs

  def close(self) -> None:
    self._batches = None
    self._next_step = None

  def _from(self, step: int) -> Iterator[Mapping[str, jax.Array]]:
    import grain

    last = len(self.plan) if isinstance(self.plan, InOrder) else np.iinfo(np.int32).max
    read = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=2 * self._threads)
    batches = grain.MapDataset.range(step, last).map(self._rows).to_iter_dataset(read)
    ahead = None
    for host_batch in batches:  # one batch ahead, so that its copy overlaps the step before it
      ready, ahead = ahead, jax.tree.map(self._to_devices, host_batch)
      if ready is not None:
        yield ready
    if ahead is not None:
      yield ahead

  def _rows(self, step: int) -> dict[str, np.ndarray]:
    indices_B, mask_B = self.plan.rows(int(step))
    mine_R = indices_B[self._share.rows_R]
    return {**self._source.gather(mine_R), "index": mine_R, "mask": mask_B[self._share.rows_R]}

  def _to_devices(self, rows_R: np.ndarray) -> jax.Array:
    return self._share.to_devices(rows_R)


class PromisedFeed:
  """A feed to compile for: what it gives are shapes. `resident` says where its data would be."""

  def __init__(self, plan: Shuffled | InOrder, source: Source, sharding: NamedSharding, *, resident: bool):
    self.plan, self.resident = plan, resident
    self._whole = DeviceFeed(plan, source, {}, sharding)
    everywhere = NamedSharding(sharding.mesh, PartitionSpec())
    if resident:
      self._inputs = {name: _promised(x.shape, x.dtype, everywhere) for name, x in source.stored().items()}
    else:
      one = {**source.gather(np.zeros(1, np.int64)), "index": np.zeros(1, np.int32), "mask": np.zeros(1, np.float32)}
      batch = plan.batch_size
      self._inputs = {name: _promised((batch, *x.shape[1:]), x.dtype, sharding) for name, x in one.items()}

  def inputs(self, step: int) -> Mapping[str, jax.ShapeDtypeStruct]:
    del step
    return self._inputs

  def batch(self, inputs: Mapping[str, jax.Array], step: jax.Array) -> Batch:
    return self._whole.batch(inputs, step) if self.resident else inputs

  def close(self) -> None:
    pass


def _promised(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


class Share:
  """The rows of a batch that this process' devices hold, wherever in the mesh they stand.

  Attributes:
    rows_R: their places in the batch, ascending.
  """

  def __init__(self, sharding: NamedSharding, batch_size: int):
    self._sharding, self._batch_size = sharding, batch_size
    places = sharding.addressable_devices_indices_map((batch_size,)).values()
    starts = {rows.start or 0: batch_size if rows.stop is None else rows.stop for (rows,) in places}
    self.rows_R = np.concatenate([np.arange(start, stop) for start, stop in sorted(starts.items())])

  def to_devices(self, rows_R: np.ndarray) -> jax.Array:
    """The batch's global array, given this process' rows of it."""
    if self._sharding.is_fully_addressable:
      return jax.device_put(rows_R, self._sharding)

    def part(place: tuple[slice, ...]) -> np.ndarray:
      start, stop, _ = place[0].indices(self._batch_size)
      first = np.searchsorted(self.rows_R, start)
      return rows_R[first : first + stop - start]

    return arrays.from_parts((self._batch_size, *rows_R.shape[1:]), self._sharding, part)


def place(source: Source, mesh: jax.sharding.Mesh) -> Mapping[str, jax.Array]:
  """Reads a whole split and puts it on every device of the mesh."""
  everywhere = NamedSharding(mesh, PartitionSpec())
  return {name: arrays.put(array, everywhere) for name, array in source.stored().items()}


def make_feeds(
  source: Source,
  mesh: jax.sharding.Mesh,
  plans: list[Shuffled | InOrder],
  *,
  kind: str,
  budget_bytes: int,
  axes: tuple[str, ...] = ("data",),
  promised: bool = False,
) -> list[Feed]:
  """A feed for each plan over one split, sharing its memory.

  Args:
    source: the split.
    mesh: the devices.
    plans: which rows each feed takes.
    kind: "device", "grain", or "auto": on the device when the split fits `budget_bytes`.
    budget_bytes: device memory that the split may take, on each device.
    axes: of the mesh that divide the batch.
    promised: the devices are not here: feeds of shapes.
  """
  sharding = NamedSharding(mesh, PartitionSpec(axes))
  resident = kind == "device" or (kind == "auto" and source.nbytes <= budget_bytes)
  if promised:
    return [PromisedFeed(plan, source, sharding, resident=resident) for plan in plans]
  if resident:
    stored = place(source, mesh)
    return [DeviceFeed(plan, source, stored, sharding) for plan in plans]
  return [GrainFeed(plan, source, sharding) for plan in plans]
