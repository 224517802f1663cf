"""What Google's clouds call their accelerators, and how many chips a host of each has. It knows no price."""

import dataclasses
import math
import re

from research import nearest
from research.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tpu:
  """A generation of TPUs.

  Attributes:
    gke: its value of the node label cloud.google.com/gke-tpu-accelerator.
    vm: how `gcloud compute tpus` begins its accelerator types; "": it has none there.
    runtime: the runtime version of such a machine.
    cores: what the number in an accelerator type counts, for each chip.
    flat: slices are rectangles, and those of up to 8 chips are one host; else they are boxes, and hosts have 4 chips.
  """

  gke: str
  vm: str
  runtime: str
  cores: int
  flat: bool


# cloud.google.com/tpu/docs (a page each, and runtimes), cloud.google.com/kubernetes-engine/docs/concepts/tpus
TPUS = {
  "v4": Tpu("tpu-v4-podslice", "v4", "tpu-ubuntu2204-base", 2, False),
  "v5e": Tpu("tpu-v5-lite-podslice", "v5litepod", "v2-alpha-tpuv5-lite", 1, True),
  "v5p": Tpu("tpu-v5p-slice", "v5p", "v2-alpha-tpuv5", 2, False),
  "v6e": Tpu("tpu-v6e-slice", "v6e", "v2-alpha-tpuv6e", 1, True),
  "tpu7x": Tpu("tpu7x", "", "", 2, False),
}
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
GPUS = {  # cloud.google.com/gke-accelerator
  "t4": "nvidia-tesla-t4",
  "l4": "nvidia-l4",
  "a100": "nvidia-tesla-a100",
  "a100-80gb": "nvidia-a100-80gb",
  "h100": "nvidia-h100-80gb",
  "h100-mega": "nvidia-h100-mega-80gb",
  "h200": "nvidia-h200-141gb",
  "b200": "nvidia-b200",
}


def tpu_hosts(name: str, topology: str) -> tuple[int, int]:
  """(hosts, chips of each) of a slice such as v5e's 4x4. Raises UserError for one that cannot be had."""
  tpu = TPUS[name]
  if tpu.flat:
    if topology not in FLAT:
      hint = nearest.hint(topology, FLAT)
      raise UserError(f"launch: --topology={topology} is none of {name}'s{hint}")
    chips = math.prod(map(int, topology.split("x")))
    return (1, chips) if chips <= 8 else (chips // 4, 4)
  if not re.fullmatch(r"\d+x\d+x\d+", topology):
    raise UserError(f"launch: --topology={topology} is none of {name}'s, which have three sides, as 2x2x4")
  sides = [int(side) for side in topology.split("x")]
  small = sides in ([2, 2, 1], [2, 2, 2], [2, 2, 4], [2, 4, 4])
  if not small and (any(side % 4 or not side for side in sides) or sides != sorted(sides)):
    raise UserError(
      f"launch: --topology={topology} is none of {name}'s: 2x2x1, 2x2x2, 2x2x4, 2x4x4, or three multiples of 4, the"
      " smallest first"
    )
  return math.prod(sides) // 4, 4


def vm_type(accelerator: str) -> Tpu:
  """The generation of `gcloud compute tpus`' accelerator type. Raises UserError for a name or a number it has not."""
  known = {tpu.vm: name for name, tpu in TPUS.items() if tpu.vm}
  prefix, dash, number = accelerator.rpartition("-")
  if prefix not in known or not number.isdecimal():
    examples = [f"{tpu.vm}-{8 * tpu.cores if not tpu.flat else 16}" for tpu in TPUS.values() if tpu.vm]
    meant = known.get(TPUS[prefix].vm if prefix in TPUS and dash else "")
    hint = f" (did you mean {TPUS[meant].vm}-{number}?)" if meant else nearest.hint(accelerator, examples)
    raise UserError(f"launch: --accelerator={accelerator} is no TPU's{hint}")
  tpu = TPUS[known[prefix]]
  chips = int(number) // tpu.cores
  good = {math.prod(map(int, each.split("x"))) for each in FLAT} if tpu.flat else {4, *range(8, 10_000, 8)}
  if int(number) % tpu.cores or chips not in good:
    near = min(good, key=lambda each: abs(each - chips)) * tpu.cores
    raise UserError(f"launch: --accelerator={accelerator}: there is no such slice; {prefix}-{near} is near")
  return tpu
