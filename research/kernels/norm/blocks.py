"""What a block of the grid does beside arithmetic: it copies rows to shared memory some steps ahead of their use."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from research.kernels import mosaic
from research.kernels.norm.tiles import Plan

Carry = TypeVar("Carry")


@dataclasses.dataclass(frozen=True)
class Block:
  """One block of a kernel, as its body sees it.

  Attributes:
    plan: how rows are cut.
    rows: refs (G·N, D) in global memory.
    buffers: for each of them its steps in shared memory, (stages, rows of a step, D).
    arrived: a barrier for each stage.
    kept: for each parameter its (D,) in shared memory, where `plan.in_pieces`.
    kept_arrived: their barrier.
    held: for each parameter its (D,) in registers, elsewhere.
  """

  plan: Plan
  rows: Sequence[Any]
  buffers: Sequence[Any]
  arrived: Any
  kept: Sequence[Any] = ()
  kept_arrived: Any = None
  held: Sequence[jax.Array] = ()

  @property
  def place(self) -> jax.Array:
    """Its number among all blocks."""
    return lax.axis_index("groups") * self.plan.blocks + lax.axis_index("blocks")

  def row(self, turn: jax.Array | int) -> jax.Array:
    """The first row of its step at a turn; of its group's last step at turns beyond it."""
    step = jnp.minimum(lax.axis_index("blocks") + turn * self.plan.blocks, self.plan.steps - 1)
    return (lax.axis_index("groups") * self.plan.steps + step) * self.plan.rows

  def columns(self, column: int) -> list[jax.Array]:
    """Of each parameter the piece that begins at a column, as a piece of a tile."""
    tile = self.plan.tile
    if not self.plan.in_pieces:
      return [tile.over_rows(each) for each in self.held]
    parts = [each.at[pl.ds(column, tile.piece)] for each in self.kept]
    return [tile.over_rows(mosaic.load(each, tile.column_layout)) for each in parts]

  def each_step(self, step: Callable[[jax.Array, Sequence[Any], Carry], Carry], carry: Carry) -> Carry:
    """Calls step(turn, refs (rows of a step, D) in shared memory, carry) → carry for each of its steps."""
    plan = self.plan
    count = (plan.steps - lax.axis_index("blocks") + plan.blocks - 1) // plan.blocks

    def fetch(turn: jax.Array | int, stage: jax.Array | int) -> None:
      for ref, buffer in zip(self.rows, self.buffers, strict=True):
        mosaic.copy(ref.at[pl.ds(self.row(turn), plan.rows)], buffer.at[stage], self.arrived.at[stage])

    for stage in range(plan.stages):
      pl.when(stage < count)(lambda stage=stage: fetch(stage, stage))
    if self.kept:
      plgpu.barrier_wait(self.kept_arrived)

    def turned(turn: jax.Array, carry: Carry) -> Carry:
      stage = lax.rem(turn, jnp.int32(plan.stages))
      plgpu.barrier_wait(self.arrived.at[stage])
      carry = step(turn, [each.at[stage] for each in self.buffers], carry)
      plgpu.commit_smem()  # all threads have read the stage before it is written to again
      pl.when(turn + plan.stages < count)(lambda: fetch(turn + plan.stages, stage))
      return carry

    return lax.fori_loop(0, count, turned, carry)


def launch(
  body: Callable[..., None],
  name: str,
  plan: Plan,
  groups: int,
  *,
  rows: Sequence[jax.Array],
  parameters: Sequence[jax.Array],
  others: Sequence[jax.Array] = (),
  outputs: Sequence[jax.ShapeDtypeStruct],
) -> Sequence[jax.Array]:
  """Runs body(block, refs of `others`, refs of outputs) in every block.

  Args:
    body: writes the outputs.
    name: of the kernel, in profiles and compiled programs.
    plan: how rows are cut.
    groups: G, of which each has blocks of its own.
    rows: (G·N, D); a block gets them in shared memory.
    parameters: (1 or G, D) float32.
    others: what is left in global memory.
    outputs: shapes and dtypes.
  """
  width = plan.tile.width
  keeps = bool(plan.in_pieces and parameters)
  scratch = [plgpu.SMEM((plan.stages, plan.rows, width), each.dtype) for each in rows]
  scratch.append(plgpu.Barrier(num_arrivals=len(rows), num_barriers=plan.stages))
  if keeps:
    scratch += [plgpu.SMEM((width,), jnp.float32) for _ in parameters]
    scratch.append(plgpu.Barrier(num_arrivals=len(parameters)))

  def kernel(*refs: Any) -> None:
    counts = [len(rows), len(parameters), len(others), len(outputs), len(rows), 1, len(parameters) * keeps, keeps]
    parts = []
    for number in counts:
      parts.append(refs[:number])
      refs = refs[number:]
    row_refs, parameter_refs, other_refs, output_refs, buffers, (arrived,), kept, kept_arrived = parts
    own = [ref.at[lax.axis_index("groups") if ref.shape[0] > 1 else 0] for ref in parameter_refs]
    held = [] if keeps else [mosaic.load(ref, plan.tile.column_layout) for ref in own]
    for ref, row in zip(own, kept, strict=False):
      mosaic.copy(ref, row, kept_arrived[0])
    block = Block(plan, row_refs, buffers, arrived, kept, kept_arrived[0] if keeps else None, held)
    body(block, other_refs, output_refs)

  run = mosaic.kernel(kernel, outputs, scratch, {"groups": groups, "blocks": plan.blocks}, name)
  return run(*rows, *parameters, *others)
