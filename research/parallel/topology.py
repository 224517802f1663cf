"""Devices to compile for, from their written form: "v5e:16x16", "h100:8", "cpu:8". None of them need be here."""

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from research import aot, nearest
from research.errors import UserError
from research.parallel import roofline
from research.parallel.chips import CHIPS, Chip
from research.parallel.threads import EACH, VARIABLE

# Slices that are let, by Google's tables; libtpu knows more of the three-dimensional ones.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
GPUS_OF_A_HOST = 8  # NVIDIA's HGX and DGX
MOST_CPUS = 512  # virtual devices: each has threads of its own
SLICES = {"v5e": _FLAT, "v6e": _FLAT, "v4": _CUBES, "v5p": _CUBES, "tpu7x": _CUBES}


@dataclasses.dataclass(frozen=True)
class Target:
  """What a program is compiled for.

  Attributes:
    name: as it was asked for; "" for the devices at hand.
    devices: in jax's order.
    chip: the peaks of one device.
    platform: "cpu", "cuda" or "tpu".
    options: the compiler's.
  """

  name: str
  devices: Sequence[jax.Device]
  chip: Chip
  platform: str
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def check(self, used: int) -> None:
    """Raises UserError for a mesh that leaves chips of a TPU slice out: its compiler takes whole ones only."""
    if self.platform == "tpu" and used != len(self.devices):
      raise UserError(
        f"preflight: a mesh of {used} devices does not fill the {len(self.devices)} of {self.name}; give a"
        " --parallel.mesh and a --data.batch_size that do, or a smaller --topology"
      )


def target(name: str) -> Target:
  """Raises UserError for a topology that there is not, or that cannot be compiled for on this machine."""
  kind, _, size = name.partition(":")
  if kind == "cpu":
    return _cpu(name, size)
  if kind not in CHIPS:
    near = nearest.meant(kind, [*CHIPS, "cpu"])
    raise UserError(f"preflight: no chip {kind!r} in --topology={name}{near}; {_known()}")
  if kind in SLICES:
    if not re.fullmatch(r"\d+(x\d+)+", size):
      raise UserError(f"preflight: --topology={name} is no CHIP:SHAPE, such as {kind}:{SLICES[kind][3]}")
    near = min(SLICES[kind], key=lambda each: abs(math.log(_count(each) / max(_count(size), 1))))
    there_is_none = UserError(
      f"preflight: there is no topology {name} (did you mean {kind}:{near}?); {kind} has {', '.join(SLICES[kind])}"
    )
    if SLICES[kind] is _FLAT and size not in _FLAT:
      raise there_is_none
    prepare()
    try:
      devices = aot.tpu(name)
    except UserError as error:
      if "install" in str(error):
        raise UserError(f"{error}; pip install '.[aot]' (or make test-aot) brings the compilers") from error
      raise there_is_none from error
    return Target(name, devices, _part_of(CHIPS[kind], _count(size) / len(devices)), "tpu")
  if not (size.isascii() and size.isdigit() and int(size)):
    raise UserError(f"preflight: --topology={name} is no GPU:COUNT, such as {kind}:8")
  if (count := int(size)) > GPUS_OF_A_HOST and count % GPUS_OF_A_HOST:
    fewer = count // GPUS_OF_A_HOST * GPUS_OF_A_HOST
    raise UserError(
      f"preflight: --topology={name}: hosts have {GPUS_OF_A_HOST} GPUs each, so {kind}:{fewer} and"
      f" {kind}:{fewer + GPUS_OF_A_HOST} are near"
    )
  prepare()
  return Target(name, aot.gpu(kind, count), CHIPS[kind], "cuda", aot.OPTIONS)


def here(devices: int) -> Target:
  """The devices at hand, of which so many are used."""
  platform = jax.devices()[0].platform
  return Target("", jax.devices(), roofline.here(devices), "cuda" if platform == "gpu" else platform)


def prepare() -> None:
  """Sets what `aot` wants of the environment. Nothing on this machine's own accelerators can run afterwards."""
  os.environ.update(aot.ENVIRONMENT)
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_enable_compilation_cache", False)  # of others' programs, which cannot be loaded here


def _cpu(name: str, size: str) -> Target:
  if not (size.isascii() and size.isdigit() and int(size)):
    raise UserError(f"preflight: --topology={name} is no cpu:COUNT, such as cpu:8")
  if (count := int(size)) > MOST_CPUS:
    raise UserError(f"preflight: --topology={name} wants {count:,} virtual devices; {MOST_CPUS} at most")
  if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ.setdefault(VARIABLE, str(EACH * count))
    with contextlib.suppress(RuntimeError):  # there are devices already, which may do
      jax.config.update("jax_num_cpu_devices", count)
  devices = jax.devices("cpu")
  if len(devices) < count:
    raise UserError(f"preflight: --topology={name} wants {count} devices, and this process has {len(devices)} already")
  return Target(name, devices[:count], roofline.measured(count), "cpu")


def _count(size: str) -> int:
  return math.prod(map(int, size.split("x")))


def _part_of(chip: Chip, share: float) -> Chip:
  """A device of a chip that has several."""
  rates = {name: getattr(chip, name) * share for name in ("flops", "flops_f32", "memory", "bandwidth", "network")}
  return dataclasses.replace(chip, **rates)


def _known() -> str:
  return f"there are {', '.join(CHIPS)} and cpu, as in v5e:4x4, h100:8, cpu:8"
