"""Devices that are not here, to compile for: TPU topologies and GPUs, on a machine that has neither.

Needs the extra `aot`, and the environment that `ENVIRONMENT` names, set before jax is imported. What is compiled on
such devices tells memory, collectives and custom calls; it cannot run.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import jax

from research import nearest
from research.errors import UserError

ENVIRONMENT: Mapping[str, str] = {
  "JAX_PLATFORMS": "cpu",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no device is held, so no lock file keeps other processes out
  "TPU_SKIP_MDS_QUERY": "1",  # no metadata server is asked which TPU this is
  "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",  # no driver is there
}
# What libtpu complains of else, on machines that are no TPU's; a topology's name says what is compiled for.
QUIET: Mapping[str, str] = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}
GPUS = Path(__file__).parent / "gpu_specs"
OPTIONS = {"xla_gpu_autotune_level": 0}  # compiler options for a GPU: there is none to time candidates on


def tpu(topology: str) -> list[jax.Device]:
  """The devices of a TPU topology such as "v5e:2x2" or "v6e:4x4". Raises UserError where it, or libtpu, is unknown."""
  return _devices("tpu", topology_name=topology)


def gpu(name: str, count: int = 1) -> list[jax.Device]:
  """Devices of a GPU in `gpu_specs/`, such as "h100". Raises UserError for another, or without the plugin."""
  known = sorted(path.stem for path in GPUS.glob("*.txtpb"))
  if name not in known:
    raise UserError(f"aot: no GPU {name!r}{nearest.hint(name, known)}")
  target = (GPUS / f"{name}.txtpb").read_text()
  return _devices("cuda", target_config=target, topology=f"1x1x{count}")


def _devices(platform: str, **options: str) -> list[jax.Device]:
  from jax.experimental import topologies

  missing = [f"{name}={value}" for name, value in ENVIRONMENT.items() if os.environ.get(name) != value]
  if missing:
    raise UserError(f"aot: set {' '.join(missing)} before jax is imported")
  for name, value in QUIET.items():
    os.environ.setdefault(name, value)
  try:
    return topologies.get_topology_desc(platform=platform, **options).devices
  except Exception as error:  # jaxlib's own, of several kinds
    name, reason = options.get("topology_name", platform), str(error).splitlines()[0]
    raise UserError(f"aot: no devices of {name}: {reason}") from error
