"""What it costs that a run is saved, and that nothing damaged is ever loaded.

  python -m benchmarks.checkpoint [--rounds=5] [--steps=100]

An MLP with Adam whose state is about 100 MB is trained for STEPS updates at a time: without saving, saved once in them
by Orbax alone (its own Checkpointer, asynchronous), and by ours (Orbax, SHA-256 of every file, fsync, manifest,
rename). The three take turns; each turn ends when its save is committed. What is told are ratios to the turn without
saving in the same round: median, least and greatest. Beside the time by the clock stands that of the processors, for
the updates keep all cores busy. Then how long a restore takes with and without the check of all files, and how much
more memory than before a process of its own has at its peak, in its first save; what updates have freed it may use. The
directory has to be on a disk whose speed means something: --folder=DIR.
"""

import argparse
import contextlib
import shutil
import statistics
import subprocess
import sys
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
  """(state, seconds of so many updates with one save, seconds of processors, and those that the loop stood still)."""
  began, worked = time.perf_counter(), time.process_time()
  state, _ = update(state)
  jax.block_until_ready(state)
  saving = time.perf_counter()
  kind.save(number, state)
  stood = time.perf_counter() - saving
  for _ in range(steps - 1):
    state, metrics = update(state)
    jax.block_until_ready(metrics["loss"])
  kind.wait()
  return state, time.perf_counter() - began, time.process_time() - worked, stood


KINDS = {"Orbax": Orbax, "ours": Checkpoints}


def peak(name, folder):
  """How much more memory than before this process has at its peak while it saves for the first time, in MB."""
  state, update, _ = job()
  for _ in range(3):
    state, _ = update(state)
  jax.block_until_ready(state)
  with contextlib.closing(KINDS[name](Path(folder))) as kind:
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _memory("VmRSS")
    kind.save(1, state)
    kind.wait()
  return _memory("VmHWM") - before


def peaks(name, folder, times=3):
  """The same in processes of their own."""
  found = []
  for number in range(times):
    own = [f"--peak={name}", f"--folder={folder / f'{name}{number}'}"]
    command = [sys.executable, "-m", "benchmarks.checkpoint", *own]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found.append(float(done.stdout.splitlines()[-1]))
  return found


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
  parser.add_argument("--peak", choices=list(KINDS), help=argparse.SUPPRESS)
  options = parser.parse_args()
  keep_freed_memory()
  if options.peak:
    print(peak(options.peak, options.folder))
    return
  state, update, megabytes = job()
  with contextlib.ExitStack() as stack:
    folder = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=options.folder))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    kinds = {"none": Nothing(), "Orbax": Orbax(folder / "orbax"), "ours": Checkpoints(folder / "ours")}
    for kind in kinds.values():
      stack.callback(kind.close)
    times, work, stood = ({name: [] for name in kinds} for _ in range(3))
    order = list(kinds)
    for number in range(options.rounds + 1):
      for name in order[number % 3 :] + order[: number % 3]:
        state, seconds, worked, still = turn(kinds[name], state, update, options.steps, number + 1)
        if number:  # the first round compiles and warms
          times[name].append(seconds)
          work[name].append(worked)
          stood[name].append(still)
    step = statistics.median(times["none"]) / options.steps
    print(f"state {megabytes:.0f} MB, saved every {options.steps} updates of {1e3 * step:.1f} ms")
    print(f"{options.rounds} rounds, jax {jax.__version__}, {jax.devices()[0].device_kind}")
    for name in ("Orbax", "ours"):
      clock, worked = (
        [mine / none for mine, none in zip(found[name], found["none"], strict=True)] for found in (times, work)
      )
      more = statistics.median(work[name]) - statistics.median(work["none"])
      print(f"{name:<5} {spread(clock)} times the turn without saving, of processors' time {spread(worked)}")
      still = 1e3 * statistics.median(stood[name])
      print(f"      {more:.2f} s of processors a save; the loop stood still for {still:.0f} ms")
    ratios = [ours / orbax for ours, orbax in zip(times["ours"], times["Orbax"], strict=True)]
    print(f"ours beside Orbax's turn: {spread(ratios)}")
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    last, restores = options.rounds + 1, {"Orbax": [], "ours": []}
    for _ in range(options.rounds):
      for name in restores:
        began = time.perf_counter()
        jax.block_until_ready(kinds[name].restore(last, abstract))
        restores[name].append(time.perf_counter() - began)
    for name, seconds in restores.items():
      print(f"restore by {name:<6} {statistics.median(seconds):.2f} s ({min(seconds):.2f} – {max(seconds):.2f})")
    for name in KINDS:
      low, median, high = sorted(peaks(name, folder))
      print(f"memory's peak while {name} saves: {median:.0f} MB more ({low:.0f} – {high:.0f})")


if __name__ == "__main__":
  main()
