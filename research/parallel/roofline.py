"""How long a step takes at least: the slowest of what it computes, what it moves in memory, and what it sends.

Williams et al. 2009 (Roofline). The three are taken to go on at once, which is what a good program comes near to.
"""

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Work:
  """What one device does in a step: FLOPs, bytes read and written in its memory, bytes that it sends."""

  flops: float
  moved: float
  sent: float


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Seconds of each part, the slowest of them and its name: "compute", "memory" or "network"."""

  compute: float
  memory: float
  network: float

  @property
  def seconds(self) -> float:
    return max(self.compute, self.memory, self.network)

  @property
  def bound(self) -> str:
    parts = dataclasses.asdict(self)
    return max(parts, key=parts.get)


def estimate(work: Work, chip: Chip, dtype: str) -> Estimate:
  """Of a device with a chip of its own; `dtype` is that of the products, "float32" or "bfloat16"."""
  return Estimate(work.flops / chip.peak(dtype), work.moved / chip.bandwidth, work.sent / chip.network)


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
  is taken.
  """
  one = jax.local_devices()[0]
  flops = {dtype: product_flops(one, dtype) for dtype in ("float32", "bfloat16")}
  y = jax.device_put(jnp.ones(2**26, jnp.float32), one)
  bandwidth = 2 * y.nbytes / _fastest(jax.jit(lambda y: y + 1.0), y)
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  if one.platform != "cpu":
    memory = (one.memory_stats() or {}).get("bytes_limit", 0)
  rates = (flops["bfloat16"], flops["float32"], memory, bandwidth, bandwidth)
  return Chip(one.device_kind, *(rate / sharing for rate in rates), "measured here, just now")


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
