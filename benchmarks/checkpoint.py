"""What it costs that a run is saved, and that nothing damaged is ever loaded.

  python -m benchmarks.checkpoint [--rounds=5] [--steps=100]

An MLP with Adam whose state is about 100 MB is trained for STEPS updates at a time: without saving, saved once in them
by Orbax alone (its own Checkpointer, asynchronous), and by ours (Orbax, SHA-256 of every file, fsync, manifest,
rename). The three take turns; each turn ends when its save is committed. What is told are ratios to the turn without
saving in the same round: median, least and greatest. Then how long a restore takes with and without the check of all
files, and how much the process' peak of memory grows while it saves. The directory has to be on a disk whose speed
means something: --folder=DIR.
"""

import argparse
import contextlib
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from research.allocator import keep_freed_memory
from research.checkpoint import Checkpoints
from research.models.mlp import MLP
from research.supervised import supervised

BATCH, WIDTHS = 256, (2048, 2048, 1024)


def job():
  """(state, one update of it, its size in MB)."""
  task = supervised(MLP(outputs=10, widths=WIDTHS), optax.adam(1e-4), loss="softmax")
  rng = np.random.default_rng(0)
  batch = {
    "features": jnp.asarray(rng.standard_normal((BATCH, 784)), jnp.float32),
    "label": jnp.asarray(rng.integers(0, 10, BATCH), jnp.int32),
    "mask": jnp.ones(BATCH, jnp.float32),
  }
  state = task.init(jax.random.key(0), batch)
  update = jax.jit(lambda state: task.step(state, batch, jax.random.key(1)), donate_argnums=0)
  return state, update, sum(x.nbytes for x in jax.tree.leaves(state)) / 1e6


class Nothing:
  """No saving."""

  def save(self, step, state):
    pass

  def wait(self):
    pass

  def close(self):
    pass


class Orbax(Nothing):
  """Orbax' own checkpointer, as it is without anything of ours but the setting that spares small arrays."""

  def __init__(self, folder):
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.array.saving.min_slice_bytes_for_replica_parallel = 2**20
    policies = ocp.training.preservation_policies
    self._orbax = ocp.training.Checkpointer(
      folder, context=context, preservation_policy=policies.LatestN(2),
      save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
    )  # fmt: skip
    self._pending = None

  def save(self, step, state):
    self._pending = self._orbax.save_async(step, state)

  def wait(self):
    if self._pending is not None:
      self._pending.result()

  def close(self):
    self._orbax.close()

  def restore(self, step, abstract):
    return self._orbax.load(step, abstract)


def turn(kind, state, update, steps, number):
  """(state, seconds of so many updates with one save, seconds for which the loop stood still to save)."""
  began = time.perf_counter()
  state, _ = update(state)
  jax.block_until_ready(state)
  saving = time.perf_counter()
  kind.save(number, state)
  stood = time.perf_counter() - saving
  for _ in range(steps - 1):
    state, metrics = update(state)
    jax.block_until_ready(metrics["loss"])
  kind.wait()
  return state, time.perf_counter() - began, stood


def peak(act):
  """How much the process' greatest memory grows by `act`, in MB."""
  Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
  before = _memory("VmRSS")
  act()
  return _memory("VmHWM") - before


def _memory(name):
  lines = Path("/proc/self/status").read_text().splitlines()
  return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1e3


def spread(ratios):
  return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} – {max(ratios):.3f})"


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--steps", type=int, default=100)
  parser.add_argument("--folder", default=None)
  options = parser.parse_args()
  keep_freed_memory()
  state, update, megabytes = job()
  with contextlib.ExitStack() as stack:
    folder = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=options.folder))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    kinds = {"none": Nothing(), "Orbax": Orbax(folder / "orbax"), "ours": Checkpoints(folder / "ours")}
    for kind in kinds.values():
      stack.callback(kind.close)
    times, stood = {name: [] for name in kinds}, {name: [] for name in kinds}
    order = list(kinds)
    for number in range(options.rounds + 1):
      for name in order[number % 3 :] + order[: number % 3]:
        state, seconds, still = turn(kinds[name], state, update, options.steps, number + 1)
        if number:  # the first round compiles and warms
          times[name].append(seconds)
          stood[name].append(still)
    step = statistics.median(times["none"]) / options.steps
    print(f"state {megabytes:.0f} MB, saved every {options.steps} updates of {1e3 * step:.1f} ms")
    print(f"{options.rounds} rounds, jax {jax.__version__}, {jax.devices()[0].device_kind}")
    for name in ("Orbax", "ours"):
      ratios = [mine / none for mine, none in zip(times[name], times["none"], strict=True)]
      still = 1e3 * statistics.median(stood[name])
      print(f"{name:<5} {spread(ratios)} times the turn without saving; the loop stood still for {still:.0f} ms a save")
    ratios = [ours / orbax for ours, orbax in zip(times["ours"], times["Orbax"], strict=True)]
    print(f"integrity alone: {spread(ratios)} times Orbax's turn")
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    last, restores = options.rounds + 1, {"Orbax": [], "ours": []}
    for _ in range(options.rounds):
      for name in restores:
        began = time.perf_counter()
        jax.block_until_ready(kinds[name].restore(last, abstract))
        restores[name].append(time.perf_counter() - began)
    for name, seconds in restores.items():
      print(f"restore by {name:<6} {statistics.median(seconds):.2f} s ({min(seconds):.2f} – {max(seconds):.2f})")
    for name in ("Orbax", "ours"):
      grown = peak(lambda name=name: (kinds[name].save(last + 1, state), kinds[name].wait()))
      print(f"memory's peak while {name} saves: {grown:.0f} MB more")


if __name__ == "__main__":
  main()
