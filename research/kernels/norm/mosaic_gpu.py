"""On NVIDIA GPUs from Hopper on: one kernel for the forward pass, and for the backward pass one and XLA's sum over it.

XLA reads rows three times forward (mean, variance, result) and twice backward; these kernels read them once.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from research.kernels import choice
from research.kernels.norm import how as of
from research.kernels.norm import tiles, xla
from research.kernels.norm.how import How
from research.kernels.norm.shards import NUMBERS, PARAMETERS, ROWS, run
from research.kernels.tuning import Tunable

SM = 9.0  # compute capability from which there are bulk copies to shared memory
NARROW = 256  # columns below which a warp has little to read at a time
BYTES_OF_A_STEP = 4096  # below which copies are too small to keep memory busy
WIDTHS = (768, 1024, 2048, 4096, 8192)
CASES = [(way, dtype, width) for way in ("forward", "backward") for dtype in of.DTYPES for width in WIDTHS]


def _case(way: str, dtype: str, width: int) -> tuple[Callable[..., Any], tuple[jax.Array, ...]]:
  """2²⁵ values without a residual, for the tuner."""
  how = How("layer", 1e-5, dtype, False, True, True)
  x, to_y = (jax.random.normal(jax.random.key(n), (2**25 // width, width), dtype) for n in range(2))
  scale_D, number_N = jnp.ones(width), jnp.ones(len(x))
  if way == "forward":
    return functools.partial(forward, how=how), (x, scale_D, scale_D)
  return functools.partial(backward, how=how), (x, number_N, number_N, scale_D, to_y)


SIZES = Tunable(
  "norm",
  "mosaic_gpu",
  default={"kilobytes": 16, "stages": 4, "blocks": 264},  # two blocks for each of an H100's 132 multiprocessors
  candidates=[{"kilobytes": k, "stages": s, "blocks": b} for k in (8, 16, 32) for s in (2, 3, 4) for b in (264, 528)],
  cases={", ".join(map(str, case)): functools.partial(_case, *case) for case in CASES},
)


def forward(*arrays: jax.Array, how: How) -> tuple[jax.Array, ...]:
  """`Forward` → (y, x + residual where there is one, the mean if there is one, the inverse deviation)."""
  sorts = [ROWS] * (1 + how.residual) + [PARAMETERS] * (how.scale + how.bias)
  results = [ROWS] * (1 + how.residual) + [NUMBERS] * how.statistics

  def kernel(*arrays: jax.Array) -> Sequence[jax.Array]:
    groups, *rows = arrays[0].shape
    plan = _plan("forward", tuple(rows), arrays[0].dtype, how, len(arrays), groups)
    if isinstance(plan, str):
      return _by_formulas(xla.forward, arrays, sorts, results, how)
    from research.kernels.norm import passes  # Mosaic takes a third of a second to import

    return passes.forward(*arrays, how=how, plan=plan)

  return run(kernel, arrays, sorts, results)


def backward(*arrays: jax.Array, how: How) -> tuple[jax.Array, ...]:
  """`Backward` → gradients to x, and to scale and bias where there are any."""
  more = len(arrays) - 2 - how.statistics - how.scale
  sorts = [ROWS, *[NUMBERS] * how.statistics, *[PARAMETERS] * how.scale, ROWS, *[ROWS] * more]
  results = [ROWS] + [PARAMETERS] * (how.scale + how.bias)

  def kernel(*arrays: jax.Array) -> Sequence[jax.Array]:
    groups, *rows = arrays[0].shape
    plan = _plan("backward", tuple(rows), arrays[0].dtype, how, len(arrays), groups)
    if isinstance(plan, str):
      return _by_formulas(xla.backward, arrays, sorts, results, how)
    from research.kernels.norm import passes

    return passes.backward(*arrays, how=how, plan=plan)

  return run(kernel, arrays, sorts, results)


def _plan(way: str, shape: tuple, dtype: Any, how: How, arrays: int, groups: int = 1) -> tiles.Plan | str:
  """For x of (…, D), or why there is none. `arrays` is how many there are."""
  *leading, width = shape
  own, other = jnp.dtype(dtype).itemsize, jnp.dtype(how.dtype).itemsize
  if way == "forward":
    sizes, parameters = [own] * (1 + how.residual), how.scale + how.bias
  else:
    sizes, parameters = [own, other] + [own] * (arrays - 2 - how.statistics - how.scale), how.scale
  near = min(WIDTHS, key=lambda each: abs(each - width))
  tuned = SIZES.parameters(f"{way}, {jnp.dtype(dtype).name}, {near}")
  return tiles.plan(math.prod(leading), width, sizes, parameters=parameters, groups=groups, **tuned)


def _by_formulas(formula: Any, arrays: Sequence[jax.Array], sorts: Sequence[str], results: Sequence[str], how: How):
  """A kernel's results where a device's own rows are too few for it, which only the division over devices tells."""
  alone = [sort == PARAMETERS and len(each) == 1 for each, sort in zip(arrays, sorts, strict=True)]
  arrays = [each[0] if is_alone else each for each, is_alone in zip(arrays, alone, strict=True)]
  places = [None if is_alone else 0 for is_alone in alone]
  found = jax.vmap(functools.partial(formula, how=how), in_axes=places)(*arrays)
  return [each[:, None] if sort == PARAMETERS else each for each, sort in zip(found, results, strict=True)]


def _limits(way: str, shapes: Sequence[tuple], dtypes: Sequence[Any], platform: str, *, how: How) -> str | None:
  del platform
  if choice.platform() == "cuda" and (have := float(getattr(choice.device(), "compute_capability", SM))) < SM:
    return f"it needs compute capability {SM}, and this is {have}"
  if not math.prod(shapes[0][:-1]):
    return "there are no rows"
  plan = _plan(way, shapes[0], dtypes[0], how, len(shapes))
  return plan if isinstance(plan, str) else None


def _worth(way: str, shapes: Sequence[tuple], dtypes: Sequence[Any], platform: str, *, how: How) -> bool:
  """Whether rows are wide, and copies long; reasoned, not measured."""
  del platform
  plan = _plan(way, shapes[0], dtypes[0], how, len(shapes))
  step = plan.rows * shapes[0][-1] * jnp.dtype(dtypes[0]).itemsize
  return shapes[0][-1] >= NARROW and (step >= BYTES_OF_A_STEP or plan.steps == 1)


def form(way: str, function: Callable[..., Any]) -> choice.Form:
  """The form of a direction, "forward" or "backward"."""
  limits, worth = functools.partial(_limits, way), functools.partial(_worth, way)
  return choice.Form(function, platforms=("cuda",), limits=limits, worth=worth)


FORWARD, BACKWARD = form("forward", forward), form("backward", backward)
