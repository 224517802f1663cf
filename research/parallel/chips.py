"""Peak figures of accelerators, from their makers' tables: the one place where they stand.

Rates are per chip: `flops` of dense bfloat16 products, `memory` in bytes, `bandwidth` of that memory in bytes a second,
`network` what a chip sends at most, in one direction, over all of its links to the others of its slice or server.
"""

import dataclasses

from research import nearest
from research.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """A chip's peaks.

  Attributes:
    name: as `--topology` says it.
    flops: FLOP/s in bfloat16, dense, accumulated in float32.
    flops_f32: FLOP/s of float32 operands as jax multiplies them unless told otherwise (TPU: bfloat16; NVIDIA: TF32).
    memory: bytes.
    bandwidth: bytes/s of the memory.
    network: bytes/s out of a chip.
    source: where the figures are from.
    shared: it is a part of a processor that computes, moves and sends with the same cores, one after the other.
    meeting: seconds of a collective besides what it sends; 0 where it is not known.
  """

  name: str
  flops: float
  flops_f32: float
  memory: float
  bandwidth: float
  network: float
  source: str
  shared: bool = False
  meeting: float = 0.0

  def peak(self, dtype: str) -> float:
    """FLOP/s of products of "float32" or "bfloat16" operands."""
    return self.flops if dtype == "bfloat16" else self.flops_f32


_TPU, _NVIDIA = "cloud.google.com/tpu/docs/{}", "NVIDIA's data sheet of the {}"

CHIPS = {
  chip.name: chip
  for chip in (
    # Google tells both directions together; half of that goes out.
    Chip("v4", 275e12, 275e12, 32 * GIB, 1228e9, 300e9, _TPU.format("v4")),
    Chip("v5e", 197e12, 197e12, 16e9, 819e9, 200e9, _TPU.format("v5e")),
    Chip("v5p", 459e12, 459e12, 95 * GIB, 2765e9, 600e9, _TPU.format("v5p")),
    Chip("v6e", 918e12, 918e12, 32 * GIB, 1638e9, 400e9, _TPU.format("v6e")),
    Chip("tpu7x", 2307e12, 2307e12, 192 * GIB, 7380e9, 600e9, _TPU.format("tpu7x")),
    # NVLink's figure is of both directions as well. Rates without sparsity.
    Chip("a100", 312e12, 156e12, 80e9, 2039e9, 300e9, _NVIDIA.format("A100 80GB SXM")),
    Chip("h100", 989e12, 494e12, 80e9, 3350e9, 450e9, _NVIDIA.format("H100 SXM")),
    Chip("h200", 989e12, 494e12, 141e9, 4800e9, 450e9, _NVIDIA.format("H200 SXM")),
  )
}


def chip(name: str) -> Chip:
  """Raises UserError for a name that is not here."""
  if name not in CHIPS:
    raise UserError(f"preflight: no chip {name!r}{nearest.meant(name, CHIPS)}; there are {', '.join(CHIPS)} and cpu")
  return CHIPS[name]
