"""A process that writes and reads checkpoints of a known state, laid out in each way; started by the tests beside it.

Usage: checkpoints_worker.py FOLDER '{"write": NAME, "read": [NAME, …]}'
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from research.checkpoint import Checkpoints
from research.parallel import arrays, processes
from research.parallel.mesh import make_mesh
from research.task import State

# Where a kernel (16, 8) lies by each strategy.
LAYOUTS = {
  "dp": ("data:8", PartitionSpec()),
  "fsdp": ("data:8", PartitionSpec("data")),
  "tp": ("data:2,model:4", PartitionSpec(None, "model")),
  "fsdp_tp": ("data:4,model:2", PartitionSpec("data", "model")),
}


def known(place):
  """The state, each array where `place` says: as many bits as float32 has, and NaN's."""
  rng = np.random.default_rng(7)
  kernel = rng.integers(0, 2**32, (16, 8), np.uint32).view(np.float32)
  moment = rng.standard_normal((16, 8)).astype(np.float32)
  return State(place(np.int32(3), False), {"kernel": place(kernel, True)}, {"mu": place(moment, True)}, {})


def placed(layout, abstract=False):
  mesh, spec = make_mesh(LAYOUTS[layout][0]), LAYOUTS[layout][1]

  def place(array, cut):
    sharding = NamedSharding(mesh, spec if cut else PartitionSpec())
    if abstract:
      return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
    return arrays.put(array, sharding)

  return known(place)


def write(folder, name):
  for layout in LAYOUTS:
    checkpoints = Checkpoints(Path(folder) / f"{name}-{layout}")
    checkpoints.save(3, placed(layout))
    checkpoints.close()


def read(folder, name):
  """How many pairs of layouts came back with all bits, on the devices that asked for them."""
  expected = jax.tree.leaves(known(lambda array, cut: np.asarray(array)))
  for written in LAYOUTS:
    checkpoints = Checkpoints(Path(folder) / f"{name}-{written}", read_only=True)
    for wanted in LAYOUTS:
      abstract = placed(wanted, abstract=True)
      restored = checkpoints.restore(3, abstract)
      for array, like, whole in zip(*map(jax.tree.leaves, (restored, abstract)), expected, strict=True):
        assert array.sharding == like.sharding
        for part in array.addressable_shards:
          assert np.asarray(part.data).tobytes() == whole[part.index].tobytes(), (name, written, wanted)
    checkpoints.close()
  return len(LAYOUTS) ** 2


if __name__ == "__main__":
  processes.join()
  what = json.loads(sys.argv[2])
  if what["write"]:
    write(sys.argv[1], what["write"])
  for name in what["read"]:
    read(sys.argv[1], name)
  processes.wait_for_all()
  sys.exit(processes.leave(0))
