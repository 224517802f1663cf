"""What a run would be, before it is one: parameters, memory and FLOPs of a device, what is sent, how long a step takes.

What is compiled is the step itself, for the devices at hand; no array of the state is made.
"""

import dataclasses
import json
import math
import time
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from experiments import inputs
from experiments.schema import Asking
from research import flops as counting
from research import steps
from research.kernels import choice
from research.models.table import parameter_table
from research.parallel import hlo, roofline

if TYPE_CHECKING:
  from experiments.job import Job


def text(job: "Job", asking: Asking) -> str:
  """What `preflight` prints."""
  found = facts(job)
  return json.dumps(found, indent=1) if asking.json else page(found)


def facts(job: "Job") -> dict[str, Any]:
  """Everything that the page tells, as numbers in bytes, FLOPs and seconds; of one device where it says so."""
  config, plan, data, state = job.config, job.plan, job.data, job.abstract_state
  began = time.monotonic()
  with choice.recording() as forms:
    traced = trace(job)
  compiled = traced.lower().compile()
  seconds = time.monotonic() - began
  memory = compiled.memory_analysis()
  batch = jax.eval_shape(lambda x: data.augment(data.train.batch(x, jnp.int32(0)), jax.random.key(0)), _given(job))
  devices = job.mesh.size
  model_flops = None if job.task.flops is None else job.task.flops(batch)
  hardware_flops = counting.traced_flops(traced)
  parts = {name: _bytes_each(getattr(state, name)) for name in ("params", "opt_state", "extra")}
  gradients = parts["params"]
  kept = sum(parts.values())
  temporaries = memory.temp_size_in_bytes
  memory_of = {
    "parameters": parts["params"],
    "optimizer": parts["opt_state"],
    "averages and statistics": parts["extra"],
    "data": max(memory.argument_size_in_bytes - kept, 0),
    "gradients": min(gradients, temporaries),
    "activations": max(temporaries - gradients, 0),
  }
  total = memory.argument_size_in_bytes + temporaries + memory.output_size_in_bytes - memory.alias_size_in_bytes
  collectives = hlo.collectives(compiled.as_text()) if devices > 1 else []
  chip = roofline.here(devices)
  # Parameters and their gradients are read forward and backward, moments read and written, activations too.
  moved = 3 * parts["params"] + 2 * (gradients + parts["opt_state"] + parts["extra"]) + 2 * memory_of["activations"]
  work = roofline.Work(hardware_flops / devices, moved, sum(each.sent for each in collectives))
  dtype = getattr(getattr(config, "model", None), "dtype", "float32")
  guess = roofline.estimate(work, chip, dtype)
  batch_bytes = sum(math.prod(x.shape) * x.dtype.itemsize for name, x in batch.items() if name not in ("index", "mask"))
  # Virtual devices of a CPU have no memory of their own, and of some devices it is not known.
  capacity = None if not chip.memory or (chip.name == "cpu" and devices > 1) else chip.memory
  return {
    "parameters": [
      {"name": row.name, "dtype": row.dtype, "shape": list(row.shape), "count": row.count, "bytes": row.bytes,
       "device bytes": _bytes_each(leaf)}
      for row, leaf in zip(parameter_table(state.params), jax.tree.leaves(state.params), strict=True)
    ],
    "run": {
      "data": f"{config.data.source}: {inputs.sizes(data.splits)}",
      "batch": {name: f"{x.dtype}{[*x.shape]}" for name, x in batch.items() if name not in ("index", "mask")},
      "updates": plan.total_steps,
      "evaluation every": plan.eval_every,
      "optimizer": config.optim.name,
      "kernels": dict(sorted(forms.items())),
    },
    "devices": {
      "count": devices, "kind": jax.devices()[0].device_kind, "mesh": dict(job.mesh.shape),
      "strategy": job.layout.strategy, "compile": job.layout.compile,
    },
    "device memory": {**memory_of, "total": total, "capacity": capacity,
                      "fits": None if capacity is None else total <= capacity},
    "FLOPs": {"model": model_flops, "hardware": hardware_flops,
              "run": None if model_flops is None else model_flops * plan.total_steps},
    "collectives": [{**dataclasses.asdict(each), "sent": each.sent} for each in collectives],
    "estimate": {
      **dataclasses.asdict(guess), "seconds": guess.seconds, "bound": guess.bound,
      "mfu": None if model_flops is None else model_flops / devices / guess.seconds / chip.peak(dtype),
      "input bytes a second": batch_bytes / guess.seconds,
      "chip": dataclasses.asdict(chip),
    },
    "compiled in seconds": seconds,
  }  # fmt: skip


def page(found: dict[str, Any]) -> str:
  """The facts for people to read."""
  rows, run, devices, flops = found["parameters"], found["run"], found["devices"], found["FLOPs"]
  memory, guess = found["device memory"], found["estimate"]
  count, size = sum(row["count"] for row in rows), sum(row["bytes"] for row in rows)
  name = max((len(row["name"]) for row in rows), default=0)
  lines = [
    f"parameters ({count:,}, {_say(size)})",
    *(f"  {row['name']:<{name}}  {row['dtype']}{row['shape']!s:<20} {row['count']:>12,}" for row in rows),
    "",
    "the run",
    f"  data                 {run['data']}",
    f"  a batch              {', '.join(f'{key} {shape}' for key, shape in run['batch'].items())}",
    f"  updates              {run['updates']:,}; evaluation every {run['evaluation every']:,}",
    *([f"  kernels              {choice.say(run['kernels'])}"] * bool(run["kernels"])),
  ]
  if flops["model"] is not None:
    lines += [
      f"  FLOPs, an update     {flops['model']:.4g} (model FLOPs: matrix products of its forward and backward passes)",
      f"  FLOPs, the run       {flops['run']:.4g}",
    ]
  lines += [f"  FLOPs, the program   {flops['hardware']:.4g} an update (all products that it does)"]
  axes = ",".join(f"{axis}:{size}" for axis, size in devices["mesh"].items() if size > 1)
  how = f", {axes}, {devices['strategy']} by {devices['compile']}" if devices["count"] > 1 else ""
  seconds = found["compiled in seconds"]
  lines += [
    "",
    f"memory of a device: {devices['count']} × {devices['kind']}{how} (compiled in {seconds:.1f} s)",
    *(f"  {part:<25}{_say(memory[part]):>10}" for part in memory if part not in ("total", "capacity", "fits")),
    f"  {'at once':<25}{_say(memory['total']):>10}{_fits(memory)}",
  ]
  if found["collectives"]:
    lines += ["", "sent between devices in an update, by each"]
    lines += [
      f"  {each['kind']:<20} {each['count']:>5,} times over {each['devices']:>3} devices {_say(each['sent']):>10}"
      for each in found["collectives"]
    ]
  mfu = "" if guess["mfu"] is None else f", {guess['mfu']:.0%} of the peak used"
  lines += [
    "",
    f"an update takes at least {1000 * guess['seconds']:.3g} ms, bound by {guess['bound']}{mfu}",
    f"  compute {1000 * guess['compute']:.3g} ms, memory {1000 * guess['memory']:.3g} ms,"
    f" network {1000 * guess['network']:.3g} ms, by the peaks of {guess['chip']['name']} ({guess['chip']['source']})",
    f"  input at that speed: {_say(guess['input bytes a second'])}/s",
  ]
  return "\n".join(lines)


def trace(job: "Job") -> jax.stages.Traced:
  """One update, traced for the job's devices."""
  update = steps.training_program(
    job.task, job.data.train, job.data.augment, job.config.seed, job.layout, job.abstract_state
  )
  return update.trace(job.abstract_state, _given(job))


def _given(job: "Job"):
  given = job.data.train.inputs(0)
  job.data.train.close()
  return given


def _bytes_each(tree: Any) -> int:
  """On each device, of a tree of shapes with shardings."""
  leaves = jax.tree.leaves(tree)
  return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def _fits(memory: dict[str, Any]) -> str:
  if memory["capacity"] is None:
    return ""
  verdict = "fits" if memory["fits"] else f"{_say(memory['total'] - memory['capacity'])} too much"
  return f" of {_say(memory['capacity'])}: {verdict}"


def _say(count: float) -> str:
  for unit in ("B", "kB", "MB", "GB", "TB"):
    if count < 1000 or unit == "TB":
      return f"{count:.3g} {unit}" if unit != "B" else f"{int(count)} B"
    count /= 1000
  raise AssertionError
