"""Mosaic GPU where its versions differ, and where a CPU interprets it: kernels for Hopper are written against this.

Pallas' door to it (`jax.experimental.pallas.mosaic_gpu`) changes between jax 0.10 and 0.12, and its interpreter, which
lets a CPU run a kernel warpgroup by warpgroup, does not know all of it. What has to be said in two ways is said here
and nowhere else. Importing this takes as long as half of jax, so a form imports it when it runs.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

ROWS = plgpu.Layout.WGMMA.reduce(1)  # how a vector lies that has an entry for each row of an accumulator
COLUMNS = plgpu.Layout.WGMMA.reduce(0)
GROUP = "group"  # the axis of a block's warpgroups

# Jax 0.10 asks for an index beside the reference, later ones do not want it.
_INDEX = {"idx": ()} if jax.__version_info__ < (0, 11) else {}
_INTERPRET = jax.make_user_context(None)  # part of every jit's cache key


@contextlib.contextmanager
def interpreted(races: bool = False) -> Iterator[None]:
  """Within it, kernels that this thread traces run on the CPU, with NaN in all memory that nothing was written to.

  A block's warpgroups are threads that wait for each other, so XLA has to
  have more threads than that: it does with `--xla_force_host_platform_device_count=8`, and with one device on two cores
  it stands still. Neither remat nor several devices at once can be interpreted.

  Args:
    races: whether to look for accesses that nothing orders, which takes longer; `races_found` tells of them. From jax
      0.12 on they raise.
  """
  from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams  # public from 0.12 on

  with _INTERPRET(InterpretGPUParams(detect_races=races, uninitialized_memory="nan")):
    yield


def is_interpreted() -> bool:
  """Whether what is traced now runs interpreted."""
  return _INTERPRET.value is not None


def races_found() -> bool:
  """Whether the last kernel that was interpreted had any."""
  from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call  # no public door tells

  return interpret_pallas_call.get_races().races_found


def kernel(
  body: Callable[..., None],
  outputs: Sequence[jax.ShapeDtypeStruct],
  scratch: Mapping[str, Any] | Sequence[Any],
  grid: Mapping[str, int],
  name: str,
  groups: int | None = None,
) -> Callable[..., Sequence[jax.Array]]:
  """`plgpu.kernel` for blocks of warpgroups on a named grid, whose last axis runs fastest.

  Args:
    body: (*references to arguments and outputs in global memory, and to scratch, by name if it has names) → None.
    outputs: their shapes.
    scratch: what a block's shared memory holds.
    grid: names and sizes.
    name: of the kernel, in a profile.
    groups: warpgroups of 128 threads that each run the body, which says how arrays lie in them (`lax.axis_index(GROUP)`
      tells which one it is); None: one, and the compiler infers how.
  """
  if groups is None:
    how = {"compiler_params": plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup)}
  else:
    # Powers and quotients by the hardware's own instructions; no sums over a whole warpgroup, which need memory.
    how = {"compiler_params": plgpu.CompilerParams(approx_math=True, reduction_scratch_bytes=0)}
    how |= {"num_threads": groups, "thread_name": GROUP}
  run = plgpu.kernel(
    body,
    out_type=list(outputs),
    scratch_types=scratch,
    grid=tuple(grid.values()),
    grid_names=tuple(grid),
    kernel_name=name,
    interpret=_INTERPRET.value,
    **how,
  )

  def varying(*arrays: jax.Array) -> list[jax.Array]:
    """Inside a `shard_map` a kernel forgets that what it gives varies as what it is given does."""
    axes = tuple({axis: None for each in arrays for axis in sorted(jax.typeof(each).manual_axis_type.varying)})
    return [lax.pcast(each, axes, to="varying") if axes else each for each in run(*arrays)]

  return varying


def tiles(shape: Sequence[int], dtype: Any) -> Any:
  """Shared memory for operands of `wgmma`: (…, rows, columns), columns of 16 bits and a multiple of 64."""
  transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
  return plgpu.SMEM(tuple(shape), dtype, transforms=transforms)


def wgmma(accumulator: Any, left: Any, right: Any, transposed: bool = False) -> None:
  """accumulator += left · right, or right's transpose; under way when this returns.

  Args:
    accumulator: of `plgpu.ACC`, float32.
    left: shared memory of `tiles`, or an array that was an accumulator's.
    right: shared memory of `tiles`.
    transposed: whether it is right's transpose that is meant.
  """
  if not is_interpreted():
    plgpu.wgmma(accumulator, left, right.T if transposed else right)
    return
  # The interpreters know no array on the left, and 0.10's no transpose.
  left = left if isinstance(left, jax.Array) else left[...]
  axes = (((1,), (1 if transposed else 0,)), ((), ()))
  product = lax.dot_general(left, right[...], axes, preferred_element_type=jnp.float32)
  plgpu.commit_smem()  # a wgmma reads as a copy does, and needs no fence before the next copy; this reading does
  put(accumulator, accumulator[...] + product)


def put(accumulator: Any, value: jax.Array) -> None:
  """Stores into an accumulator that no product is under way to."""
  if not is_interpreted():
    accumulator[...] = value
  else:
    jax.ref.set(accumulator, ..., value)  # the interpreters know no store to accumulators by that name


def load(ref: Any, layout: Any = None) -> jax.Array:
  """What is in shared or global memory, divided among threads as a layout says."""
  if layout is None or is_interpreted():
    return ref[...]  # 0.10's interpreter has no plgpu.load, and a layout means nothing to either
  return plgpu.load(ref, **_INDEX, layout=layout, optimized=False)


def store(ref: Any, values: jax.Array) -> None:
  """Writes an array to shared or global memory, also where its threads write less than whole sectors."""
  if hasattr(plgpu, "store") and not is_interpreted():
    plgpu.store(ref, values, optimized=False)
  else:
    ref[...] = values


def cast(values: jax.Array, layout: Any) -> jax.Array:
  """The same, divided among threads as a layout says."""
  return values if is_interpreted() else plgpu.layout_cast(values, layout)


def copy(source: Any, target: Any, arrived: Any) -> None:
  """Copies a contiguous part of global memory to shared memory; `arrived` is a barrier that then has one more arrival.

  All of it has to be there: only so it is one bulk copy, of any length.
  """
  plgpu.copy_gmem_to_smem(source, target, arrived, oob_mode=plgpu.OOBFillMode.PROMISE_IN_BOUNDS)


def full(shape: tuple[int, ...], value: float, layout: Any) -> jax.Array:
  """A constant vector, float32."""
  return cast(jnp.full(shape, value, jnp.float32), layout)


def places(count: int, layout: Any) -> jax.Array:
  """0 … count − 1 as an accumulator's `ROWS` or `COLUMNS`, int32, made where it is asked for.

  The compiler would else make what a loop compares with them before the loop, and run out of registers.
  """
  if is_interpreted():
    return lax.iota(jnp.int32, count)
  return lax.optimization_barrier(plgpu.broadcasted_iota(jnp.int32, (count,), 0, layout=layout))


def along(vector: jax.Array, shape: tuple[int, int], axis: int) -> jax.Array:
  """A vector of an entry for each row (axis 0) or column (1) as a matrix."""
  return lax.broadcast_in_dim(vector, shape, [axis])


@dataclasses.dataclass(frozen=True)
class Ring:
  """Buffers in shared memory that the last warpgroup refills as soon as all have read them.

  No warpgroup does only that: it would have to give its registers to the others by `setmaxnreg`, which is ignored
  where nvJitLink compiles a kernel, as it does where CUDA's libraries are all installed.

  Attributes:
    buffers: how many.
    ready: barriers, one a buffer, that a copy arrives at.
    free: barriers, one a buffer, that every warpgroup arrives at.
    copies: (buffer, step) → None, starts the copies for a step.
    steps: how many there are, int32; the buffer of a step is step mod buffers.
    groups: warpgroups of the block.
  """

  buffers: int
  ready: Any
  free: Any
  copies: Callable[[jax.Array, jax.Array], None]
  steps: jax.Array
  groups: int

  @staticmethod
  def barriers(buffers: int, copies: int, groups: int) -> tuple[Any, Any]:
    """(ready, free) to allocate: of so many copies a step."""
    return (
      plgpu.Barrier(num_barriers=buffers, num_arrivals=copies),
      plgpu.Barrier(num_barriers=buffers, num_arrivals=groups),
    )

  def fill(self) -> None:
    """Starts the copies of the first steps."""

    @pl.when(lax.axis_index(GROUP) == self.groups - 1)
    def _():
      for step in range(self.buffers):
        pl.when(step < self.steps)(lambda step=step: self.copies(jnp.int32(step), jnp.int32(step)))

  def buffer(self, step: jax.Array) -> jax.Array:
    return lax.rem(step, jnp.int32(self.buffers))

  def wait(self, step: jax.Array) -> jax.Array:
    """Waits for a step's copies; its buffer."""
    buffer = self.buffer(step)
    plgpu.barrier_wait(self.ready.at[buffer])
    return buffer

  def release(self, step: jax.Array) -> None:
    """Says that this warpgroup has read a step's buffer; the last one then has it refilled."""
    buffer = self.buffer(step)
    plgpu.barrier_arrive(self.free.at[buffer])

    @pl.when(lax.axis_index(GROUP) == self.groups - 1)
    def _():
      plgpu.barrier_wait(self.free.at[buffer])
      following = step + self.buffers
      pl.when(following < self.steps)(lambda: self.copies(buffer, following))

