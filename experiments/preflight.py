"""What a run would be, before it is one: parameters, shapes, FLOPs, and the memory of a compiled step."""

import time
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from experiments import inputs
from research import steps
from research.kernels import choice
from research.models.table import parameter_table

if TYPE_CHECKING:
  from experiments.work import Job


def text(job: "Job") -> str:
  """The page that `preflight` prints."""
  config, plan, data = job.config, job.plan, job.data
  state = job.abstract_state
  rows = parameter_table(state.params)
  count, size = sum(row.count for row in rows), sum(row.bytes for row in rows)
  began = time.monotonic()
  with choice.recording() as forms:
    lowered = lower(job, state)
  compiled = lowered.compile()
  seconds = time.monotonic() - began
  memory = compiled.memory_analysis()
  batch = jax.eval_shape(lambda x: data.augment(data.train.batch(x, jnp.int32(0)), jax.random.key(0)), _given(job))
  flops = job.task.flops(batch) if job.task.flops is not None else None
  name = max((len(row.name) for row in rows), default=0)
  shapes = {key: f"{value.dtype}{list(value.shape)}" for key, value in batch.items() if key not in ("index", "mask")}
  lines = [
    f"parameters ({count:,}, {_bytes(size)})",
    *(f"  {row.name:<{name}}  {row.dtype}{list(row.shape)!s:<20} {row.count:>12,}" for row in rows),
    "",
    "the run",
    f"  data                 {config.data.source}: {inputs.sizes(data.splits)}",
    f"  a batch              {', '.join(f'{key} {shape}' for key, shape in shapes.items())}",
    f"  updates              {plan.total_steps:,}; evaluation every {plan.eval_every:,}",
    *([f"  kernels              {choice.say(forms)}"] * bool(forms)),
    f"  optimizer            {config.optim.name}, {_bytes(_tree_bytes(state.opt_state))} of state",
  ]
  if flops is not None:
    lines += [
      f"  FLOPs, an update     {flops:.4g} (model FLOPs: matrix products of its forward and backward passes)",
      f"  FLOPs, the run       {flops * plan.total_steps:.4g}",
    ]
  devices = f"{job.mesh.devices.size} × {jax.devices()[0].device_kind}"
  lines += [
    "",
    f"the compiled update, {devices} (compiled in {seconds:.1f} s)",
    f"  arguments            {_bytes(memory.argument_size_in_bytes)} a device: state, and data where they live there",
    f"  temporaries          {_bytes(memory.temp_size_in_bytes)} a device: activations and gradients",
    f"  outputs              {_bytes(memory.output_size_in_bytes)} a device,"
    f" {_bytes(memory.alias_size_in_bytes)} of them in place of arguments",
  ]
  return "\n".join(lines)


def lower(job: "Job", state) -> jax.stages.Lowered:
  """One update, traced and lowered for the job's devices; no array of the state is made."""
  update = steps.training_program(job.task, job.data.train, job.data.augment, job.config.seed, job.layout, state)
  return update.lower(state, _given(job))


def _given(job: "Job"):
  given = job.data.train.inputs(0)
  job.data.train.close()
  return given


def _tree_bytes(tree) -> int:
  return sum(row.bytes for row in parameter_table(tree))


def _bytes(count: float) -> str:
  for unit in ("B", "kB", "MB", "GB"):
    if count < 1000 or unit == "GB":
      return f"{count:.3g} {unit}" if unit != "B" else f"{int(count)} B"
    count /= 1000
  raise AssertionError
