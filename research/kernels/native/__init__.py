"""Kernels in C++ for the CPU, called by compiled programs through XLA's foreign function interface.

`build.py` compiles them where there is a g++; without, or on a processor that has neither AVX2 nor AVX-512, `missing`
says why and operations have their other forms.
"""

import ctypes
import functools
import hashlib
import struct
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research.kernels import choice

_FOLDER = Path(__file__).parent
TARGETS = (
  "attention",
  "attention_gradients",
  "conv_forward",
  "conv_input_gradient",
  "conv_weight_gradient",
  "norm",
  "norm_gradients",
)


def _sources() -> str:
  """What the library was made of: another source or another jaxlib, whose headers are in it, is another library."""
  digest = hashlib.sha256(version("jaxlib").encode())
  for path in sorted((_FOLDER / "src").iterdir()):
    digest.update(path.read_bytes())
  return digest.hexdigest()[:12]


PATH = _FOLDER / "build" / f"kernels-{_sources()}.so"


@functools.cache
def missing() -> str | None:
  """Why there are no such kernels here, or None. The first call loads the library and tells XLA of it."""
  if not PATH.exists():
    return "it is not compiled; run python -m research.kernels.native.build"
  if _cut_off(PATH):
    return "its library is damaged; run python -m research.kernels.native.build"
  try:
    library = ctypes.CDLL(str(PATH))
  except OSError as error:
    return f"its library does not load: {error}"
  library.flagship_instructions.restype = ctypes.c_char_p
  if not library.flagship_instructions():
    return "this processor has neither AVX2 nor AVX-512"
  for name in TARGETS:
    handler = jax.ffi.pycapsule(getattr(library, f"flagship_{name}"))
    jax.ffi.register_ffi_target(f"flagship_{name}", handler, platform="cpu")
  return None


def _cut_off(path: Path) -> bool:
  """Whether the end of an ELF file is missing, of which the loader would die: its table of sections stands there."""
  with path.open("rb") as file:
    header = file.read(64)
  if len(header) < 64 or header[:4] != b"\x7fELF":
    return False  # the loader says what it is not
  (table,), (entry, count) = struct.unpack_from("<Q", header, 40), struct.unpack_from("<HH", header, 58)
  return path.stat().st_size < table + entry * count


def whole() -> bool:
  """Whether what is traced now runs on one device: XLA cannot divide a call over several, and would gather its
  operands. Inside a shard_map over all axes each device makes a call of its own."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh.are_all_axes_manual if not mesh.empty else jax.device_count() == 1


def call(name: str, shape: jax.ShapeDtypeStruct | list[jax.ShapeDtypeStruct], *arrays: jax.Array, **numbers: Any):
  """Calls a kernel; numbers are int64, tuples of them, or float32. Under vmap it is called once for each.

  Inside a shard_map results differ from device to device where an operand does.
  """
  arrays = choice.together(*arrays)
  varying = tuple(sorted(jax.typeof(arrays[0]).manual_axis_type.varying))
  attributes = {
    name: np.float32(value) if isinstance(value, float) else np.array(value, np.int64)[()]
    for name, value in numbers.items()
  }
  found = jax.ffi.ffi_call(f"flagship_{name}", shape, vmap_method="sequential")(*arrays, **attributes)
  return jax.lax.pcast(found, varying, to="varying") if varying else found
