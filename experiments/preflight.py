"""What a run would be, before it is one: parameters, memory and FLOPs of a device, what is sent, how long a step takes.

What is compiled is the step itself, for the devices at hand or for `--topology`'s; no array of the state is made.
"""

import dataclasses
import json
import math
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from experiments import inputs, preflight_page
from experiments.schema import Experiment
from research import flops as counting
from research import steps
from research.errors import UserError
from research.kernels import choice
from research.models.table import parameter_table
from research.parallel import hlo, pipeline, roofline, topology
from research.parallel.tables import STRATEGIES
from research.parallel.topology import Target

if TYPE_CHECKING:
  from experiments.command import Definition, Request
  from experiments.job import Job

TRIES = 5  # other flags that are compiled for where a run does not fit
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def run(definition: "Definition", request: "Request") -> int:
  """What the word preflight does: prints, trains and writes nothing. Raises UserError where the run would not fit."""
  from experiments import cluster, judge, work
  from experiments.job import make_job

  asked = request.asking.topology
  target = topology.target(asked) if asked else None
  if target is None:
    cluster.check_request(request)
  say = (lambda line: None) if request.asking.json else print
  device = None if target is None else target.devices[0]
  with (
    choice.compiling_for(target.platform if target else "", device),
    choice.configured(request.config.kernels),
    choice.noting() as notes,
  ):
    job = make_job(definition, request.config, say, request.workdir, target=target)
    judge.check(job, request.workdir)
    if target is None:
      work.first_arrays(definition, job, request.workdir)  # refused now if it would be later
    found = facts(job, target)
    if found["device memory"]["fits"] is False:
      found["device memory"]["would fit"] = advice(definition, job, target)
    found["run"]["kernels passed over"] = notes
  print(json.dumps(found, indent=1) if request.asking.json else preflight_page.text(found))
  if found["device memory"]["fits"] is False:
    raise UserError(preflight_page.refusal(found))
  return 0


def facts(job: "Job", target: Target | None = None) -> dict[str, Any]:
  """Everything that the page tells, as numbers in bytes, FLOPs and seconds; of one device where it says so."""
  config, plan, data, state = job.config, job.plan, job.data, job.abstract_state
  devices = job.mesh.size
  target = target or topology.here(devices)
  began = time.monotonic()
  with choice.recording() as forms:
    traced = trace(job)
  compiled, too_large = _compile(traced, target)
  seconds = time.monotonic() - began
  batch = jax.eval_shape(lambda x: data.augment(data.train.batch(x, jnp.int32(0)), jax.random.key(0)), _given(job))
  model_flops = None if job.task.flops is None else job.task.flops(batch)
  hardware_flops = counting.traced_flops(traced)
  memory = _memory(state, _given(job), compiled, too_large)
  collectives = hlo.collectives(compiled.as_text()) if compiled is not None and devices > 1 else []
  # Parameters and their gradients are read forward and backward, moments read and written, activations too.
  parameters, kept = memory["parameters"], memory["optimizer"] + memory["averages and statistics"]
  moved = 5 * parameters + 2 * kept + 2 * memory["activations"]
  sent, meetings = sum(each.sent for each in collectives), sum(each.count for each in collectives)
  work = roofline.Work(hardware_flops / devices, moved, sent, meetings)
  chip, dtype = target.chip, getattr(getattr(config, "model", None), "dtype", "float32")
  guess = roofline.estimate(work, chip, dtype)
  batch_bytes = sum(math.prod(x.shape) * x.dtype.itemsize for name, x in batch.items() if name not in ("index", "mask"))
  # Virtual devices of a CPU have no memory of their own, and of some devices it is not known.
  capacity = None if not chip.memory or (target.platform == "cpu" and devices > 1) else chip.memory
  tokens = batch["tokens"].shape[0] * (batch["tokens"].shape[1] - 1) if "tokens" in batch else None
  return {
    "parameters": [
      {"name": row.name, "dtype": row.dtype, "shape": list(row.shape), "count": row.count, "bytes": row.bytes,
       "device bytes": _bytes_each(leaf)}
      for row, leaf in zip(parameter_table(state.params), jax.tree.leaves(state.params), strict=True)
    ],
    "run": {
      "data": f"{config.data.source}: {inputs.sizes(data.splits)}",
      "batch": {name: f"{x.dtype}{[*x.shape]}" for name, x in batch.items() if name not in ("index", "mask")},
      "examples": config.data.batch_size,
      "tokens": tokens,
      "updates": plan.total_steps,
      "evaluation every": plan.eval_every,
      "optimizer": config.optim.name,
      "kernels": dict(sorted(forms.items())),
    },
    "devices": {
      "count": devices, "kind": target.devices[0].device_kind, "topology": target.name, "mesh": dict(job.mesh.shape),
      "strategy": job.layout.strategy, "compile": job.layout.compile,
      "bubble": pipeline.bubble(job.layout, config.data.batch_size // config.batch_parts),
    },
    "device memory": {**memory, "capacity": capacity, "fits": _fits(memory["total"], capacity, too_large)},
    "FLOPs": {"model": model_flops, "hardware": hardware_flops,
              "run": None if model_flops is None else model_flops * plan.total_steps},
    "collectives": [{**dataclasses.asdict(each), "sent": each.sent} for each in collectives],
    "estimate": {
      **dataclasses.asdict(guess), "seconds": guess.seconds, "bound": guess.bound,
      "work": dataclasses.asdict(work), "dtype": dtype,
      "mfu": None if model_flops is None else model_flops / devices / guess.seconds / chip.peak(dtype),
      "examples a second": config.data.batch_size / guess.seconds,
      "tokens a second": None if tokens is None else tokens / guess.seconds,
      "input bytes a second": batch_bytes / guess.seconds,
      "chip": dataclasses.asdict(chip),
    },
    "compiled in seconds": seconds,
  }  # fmt: skip


def advice(definition: "Definition", job: "Job", target: Target | None) -> list[str]:
  """Flags with which the run would fit, found by compiling for them; [] where none of the tried ones does."""
  from experiments.job import make_job

  config, changed = job.config, []
  for tries, (name, value) in enumerate(_remedies(config)):
    if tries == TRIES:
      break
    config, before = _with(config, name, value), config
    try:
      other = make_job(definition, config, lambda line: None, splits=job.data.splits, target=target)
      found = facts(other, target)
    except UserError:  # it does not go with the rest
      config = before
      continue
    changed = [each for each in changed if not each.startswith(f"--{name}=")] + [f"--{name}={value}"]
    if found["device memory"]["fits"]:
      return changed
  return []


def _remedies(config: Experiment) -> Iterator[tuple[str, Any]]:
  """What makes a step smaller, one after another: the cheapest first."""
  if "embed" not in dict(STRATEGIES[config.parallel.strategy].rules):
    cut = "fsdp_tp" if "model" in config.parallel.mesh else "fsdp"
    yield "parallel.strategy", cut
  if getattr(getattr(config, "model", None), "remat", None) in ("none", "dots"):
    yield "model.remat", "full"
  for times in (2, 4, 8):
    yield "optim.micro_batches", config.optim.micro_batches * times


def _with(config: Experiment, name: str, value: Any) -> Experiment:
  group, _, field = name.partition(".")
  return dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **{field: value})})


def trace(job: "Job") -> jax.stages.Traced:
  """One update, traced for the job's devices."""
  update = steps.training_program(
    job.task, job.data.train, job.data.augment, job.config.seed, job.layout, job.abstract_state, job.rules
  )
  return update.trace(job.abstract_state, _given(job))


def _compile(traced: jax.stages.Traced, target: Target) -> tuple[jax.stages.Compiled | None, float | None]:
  """→ (the program, None), or (None, bytes of its temporaries) where the compiler refuses it as too large."""
  try:
    return traced.lower().compile(compiler_options=dict(target.options) or None), None
  except jax.errors.JaxRuntimeError as error:
    used = re.search(r"temporaries \(([\d.]+)([KMGT]?)\) exceeds|[Uu]sed ([\d.]+)([KMGT]?)i?B? of", str(error))
    if used is None:
      raise
    number, unit = filter(None, used.groups())
    return None, float(number) * _UNITS[unit]


def _memory(state: Any, given: Any, compiled: jax.stages.Compiled | None, too_large: float | None) -> dict[str, float]:
  """Bytes on each device by what they are for, and "total" at the moment when it is most."""
  parts = {name: _bytes_each(getattr(state, name)) for name in ("params", "opt_state", "extra")}
  kept = sum(parts.values())
  if compiled is None:
    arguments, temporaries = kept + _bytes_each(given), too_large
    total = arguments + temporaries
  else:
    memory = compiled.memory_analysis()
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    total = arguments + temporaries + memory.output_size_in_bytes - memory.alias_size_in_bytes
  return {
    "parameters": parts["params"],
    "optimizer": parts["opt_state"],
    "averages and statistics": parts["extra"],
    "data": max(arguments - kept, 0),
    "gradients": min(parts["params"], temporaries),
    "activations": max(temporaries - parts["params"], 0),
    "total": total,
  }


def _fits(total: float, capacity: float | None, too_large: float | None) -> bool | None:
  if too_large is not None:
    return False
  return None if capacity is None else total <= capacity


def _given(job: "Job"):
  given = job.data.train.inputs(0)
  job.data.train.close()
  return given


def _bytes_each(tree: Any) -> int:
  """On each device, of a tree of shapes with shardings."""
  leaves = jax.tree.leaves(tree)
  return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
