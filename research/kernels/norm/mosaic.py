"""Mosaic GPU as jax 0.10.2 to 0.12 have it: the one place that knows how their `plgpu` differ.

`interpreted` runs kernels on a CPU. The interpreter of 0.10.2 knows no loads with a layout, and knows no stores at all
but plain ones; interpreted kernels have no layouts, so there both are plain.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu

try:
  InterpretParams = plgpu.InterpretGPUParams
except AttributeError:  # 0.10.2 has it, and does not export it
  from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams as InterpretParams

_LOAD_INDEX = () if jax.__version_info__ >= (0, 11) else ((),)  # where it is still to be said
_INTERPRET = jax.make_user_context(None)  # part of every jit's cache key


@contextlib.contextmanager
def interpreted(*, detect_races: bool = False) -> Iterator[None]:
  """Within it, what is traced runs interpreted; memory that nothing was written to holds NaN."""
  with _INTERPRET(InterpretParams(detect_races=detect_races)):
    yield


def is_interpreted() -> bool:
  """Whether what is traced now runs interpreted."""
  return _INTERPRET.value is not None


def kernel(
  body: Callable[..., None],
  name: str,
  *,
  outputs: Sequence[jax.ShapeDtypeStruct],
  grid: tuple[int, ...],
  grid_names: tuple[str, ...],
  scratch: Sequence[Any] = (),
) -> Callable[..., Any]:
  """`plgpu.kernel` with layouts inferred for whole warpgroups, which is the default from 0.11 on."""
  return plgpu.kernel(
    body,
    out_type=list(outputs),
    scratch_types=list(scratch),
    grid=grid,
    grid_names=grid_names,
    interpret=_INTERPRET.value,
    kernel_name=name,
    compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
  )


def load(ref: Any, layout: Any = None) -> jax.Array:
  """The array that a ref holds, divided among threads as `layout` says."""
  if layout is None or is_interpreted():
    return ref[...]
  return plgpu.load(ref, *_LOAD_INDEX, layout=layout, optimized=False)


def cast(values: jax.Array, layout: Any) -> jax.Array:
  """The same, divided among threads as `layout` says."""
  return values if is_interpreted() else plgpu.layout_cast(values, layout)


def copy(source: Any, target: Any, arrived: Any) -> None:
  """Copies a contiguous part of global memory to shared memory; `arrived` is a barrier that then has one more arrival.

  All of it has to be there: only so it is one bulk copy, of any length.
  """
  plgpu.copy_gmem_to_smem(source, target, arrived, oob_mode=plgpu.OOBFillMode.PROMISE_IN_BOUNDS)


def store(ref: Any, values: jax.Array) -> None:
  """Writes an array to a ref, of global memory also where its threads write less than whole sectors."""
  if hasattr(plgpu, "store") and not is_interpreted():
    plgpu.store(ref, values, optimized=False)
  else:
    ref[...] = values
