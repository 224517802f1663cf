"""How long a step takes at least: the slowest of what it computes, what it moves in memory, and what it sends.

Williams et al. 2009 (Roofline). The three are taken to go on at once, which is what a good program comes near to. The
virtual devices of a CPU do all of it with the same cores, so theirs add up, and each collective costs them a meeting.
"""

import dataclasses
import functools
import os
import time

import jax
import jax.numpy as jnp

from research.parallel.chips import CHIPS, Chip

NAMES = {  # device_kind, as jax says it → chip
  "TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e",
  "TPU v6e": "v6e", "TPU7x": "tpu7x", "NVIDIA A100-SXM4-80GB": "a100", "NVIDIA H100 80GB HBM3": "h100",
  "NVIDIA H200": "h200",
}  # fmt: skip

_MEETINGS = 16  # in one program


@dataclasses.dataclass(frozen=True)
class Work:
  """What one device does in a step: FLOPs, bytes read and written in its memory, bytes that it sends, collectives."""

  flops: float
  moved: float
  sent: float
  collectives: int = 0


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Seconds of each part; whether they go on at once, or one after the other."""

  compute: float
  memory: float
  network: float
  at_once: bool = True

  @property
  def parts(self) -> dict[str, float]:
    return {"compute": self.compute, "memory": self.memory, "network": self.network}

  @property
  def seconds(self) -> float:
    return max(self.parts.values()) if self.at_once else sum(self.parts.values())

  @property
  def bound(self) -> str:
    """The slowest part's name."""
    return max(self.parts, key=self.parts.get)


def estimate(work: Work, chip: Chip, dtype: str) -> Estimate:
  """Of a device with a chip of its own; `dtype` is that of the products, "float32" or "bfloat16"."""
  network = work.sent / chip.network + work.collectives * chip.meeting
  return Estimate(work.flops / chip.peak(dtype), work.moved / chip.bandwidth, network, not chip.shared)


def here(devices: int) -> Chip:
  """The chip of this process' devices. One that is in no table is measured just now; a CPU is shared by its virtual
  devices."""
  device = jax.devices()[0]
  if device.device_kind in NAMES:
    return CHIPS[NAMES[device.device_kind]]
  return measured(devices if device.platform == "cpu" else 1)


def measured(sharing: int) -> Chip:
  """The first device: products of 1024×1024 and a copy of 256 MB, the fastest of a few, divided by how many share it.

  What virtual devices of a CPU send each other is a copy in memory; of another device nothing is known, and the same
  is taken. It is measured once, so that estimates of one process are by the same peaks.
  """
  chip = _alone()
  rates = {name: getattr(chip, name) / sharing for name in ("flops", "flops_f32", "memory", "bandwidth", "network")}
  return dataclasses.replace(chip, **rates, shared=chip.name == "cpu", meeting=_meeting(sharing))


@functools.cache
def _alone() -> Chip:
  one = jax.local_devices()[0]
  flops = {dtype: product_flops(one, dtype) for dtype in ("float32", "bfloat16")}
  y = jax.device_put(jnp.ones(2**26, jnp.float32), one)
  bandwidth = 2 * y.nbytes / _fastest(jax.jit(lambda y: y + 1.0), y)
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  if one.platform != "cpu":
    memory = (one.memory_stats() or {}).get("bytes_limit", 0)
  rates = (flops["bfloat16"], flops["float32"], memory, bandwidth, bandwidth)
  return Chip(one.device_kind, *rates, "measured here, just now")


@functools.cache
def _meeting(count: int) -> float:
  """Seconds of a collective of so many of these devices that sends next to nothing; 0.0 of one device alone."""
  devices = jax.local_devices()[:count]
  if len(devices) < 2 or devices[0].platform != "cpu":
    return 0.0
  mesh, axis = jax.make_mesh((len(devices),), ("all",), devices=devices), jax.P("all")

  @jax.jit
  @functools.partial(jax.shard_map, mesh=mesh, in_specs=axis, out_specs=axis)
  def meet(x: jax.Array) -> jax.Array:
    for _ in range(_MEETINGS):
      x += jax.lax.psum(x, "all")
    return x

  x = jax.device_put(jnp.zeros(len(devices)), jax.NamedSharding(mesh, axis))
  return _fastest(meet, x) / _MEETINGS


def product_flops(device: jax.Device, dtype: str, times: int = 5) -> float:
  """FLOP/s of a product of 1024×1024, the fastest of so many."""
  x = jax.device_put(jnp.ones((1024, 1024), dtype), device)
  return 2 * 1024**3 / _fastest(jax.jit(jnp.matmul), x, x, times=times)


def _fastest(function, *arguments, times: int = 5) -> float:
  jax.block_until_ready(function(*arguments))
  seconds = []
  for _ in range(times):
    began = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    seconds.append(time.perf_counter() - began)
  return min(seconds)
