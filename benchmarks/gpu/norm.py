"""Layer norms on a GPU: the kernels' two passes beside XLA's, and beside a copy, which is what memory allows.

A pass is repeated inside a jitted loop, each time on what the last one made, so that the host is seen once for many.
Programs take turns, and medians are of rounds. What has to move is counted, not what a form moves: forward an array is
read and one written, backward two and one; a residual is one more read, and forward one more written.

  python -c "from benchmarks.gpu import norm; print(*norm.rows(smoke=False), sep='\\n')"
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from research.kernels import choice, mosaic, tuning
from research.kernels.norm import xla
from research.kernels.norm.how import How

VALUES = 2**25  # of an array: 64 or 128 MB, so that no cache holds them
WIDTHS = (768, 1024, 2048, 4096, 8192)
REPEATS, ROUNDS = 50, 15


class Pass(NamedTuple):
  """What is timed.

  Attributes:
    direction: "forward" or "backward".
    dtype: of the rows.
    width: of a row.
    residual: whether there is one.
  """

  direction: str
  dtype: str
  width: int
  residual: bool

  @property
  def arrays(self) -> int:
    """That have to be read and written."""
    return (2 if self.direction == "forward" else 3) + (2 if self.direction == "forward" else 1) * self.residual


def rows(smoke: bool) -> list[dict[str, Any]]:
  """A row for each pass and form: {what, form, direction, ms, gb_per_s, share_of_copy, peer, ratio, status}.

  Args:
    smoke: tiny arrays on this machine's CPU with the kernels interpreted, which only shows that this runs.
  """
  if smoke:
    passes = [Pass(way, "float32", 64, residual) for way, residual in (("forward", True), ("backward", False))]
    sizes = {"kilobytes": 1, "stages": 2, "blocks": 2}
    with mosaic.interpreted(), tuning.trying("norm", "mosaic_gpu", sizes):
      return [row for each in passes for row in compared(each, 16 * 64, 1, 1, "interpreted")]
  passes = [
    Pass(direction, dtype, width, residual)
    for residual in (False, True)
    for direction in ("forward", "backward")
    for dtype in ("bfloat16", "float32")
    for width in (WIDTHS if not residual else (1024, 4096))
  ]
  return [row for each in passes for row in compared(each, VALUES, REPEATS, ROUNDS, "measured")]


def compared(timed: Pass, values: int, repeats: int, rounds: int, status: str) -> list[dict[str, Any]]:
  """The rows of a pass."""
  x = jax.random.normal(jax.random.key(0), (values // timed.width, timed.width), timed.dtype)
  compiled = {
    form: jax.jit(functools.partial(repeated, timed, form, repeats)).lower(x).compile()
    for form in ("mosaic_gpu", "xla", "copy")
  }
  took: dict[str, list[float]] = {form: [] for form in compiled}
  for number in range(-1, rounds):  # the first is thrown away
    for form in list(compiled) if number % 2 else list(compiled)[::-1]:
      began = time.perf_counter()
      jax.block_until_ready(compiled[form](x))
      if number >= 0:
        took[form].append((time.perf_counter() - began) / (2 * repeats))
  seconds = {form: statistics.median(each) for form, each in took.items()}
  ratio = statistics.median(theirs / ours for ours, theirs in zip(took["mosaic_gpu"], took["xla"], strict=True))
  speed = {form: timed.arrays * x.nbytes / seconds[form] / 1e9 for form in ("mosaic_gpu", "xla")}
  copied = 2 * x.nbytes / seconds["copy"] / 1e9
  what = f"{len(x)} rows of {timed.width}, {timed.dtype}{', a residual' if timed.residual else ''}"
  return [
    {
      "what": what,
      "form": form,
      "direction": timed.direction,
      "ms": 1000 * seconds[form],
      "gb_per_s": speed[form],
      "share_of_copy": speed[form] / copied,
      "peer": peer,
      "ratio": ratio if form == "mosaic_gpu" else 1 / ratio,
      "status": status,
    }
    for form, peer in (("mosaic_gpu", "xla"), ("xla", "mosaic_gpu"))
  ]


def repeated(timed: Pass, form: str, repeats: int, x: jax.Array) -> tuple[jax.Array, Any]:
  """A pass, or a copy, twice in each turn of a loop: so the loop's own array is written to where it was read."""
  once, more = (lambda x, more: (-x, more), ()) if form == "copy" else made(timed, form, x)

  def turn(_: jax.Array, carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
    for _ in range(2):
      carry = lax.optimization_barrier(once(*carry))  # nothing of two passes is fused
    return carry

  return lax.fori_loop(0, repeats, turn, (x, more))


def made(timed: Pass, form: str, x: jax.Array) -> tuple[Callable[[jax.Array, Any], tuple[jax.Array, Any]], Any]:
  """→ ((array, what else is carried) → the same after a pass, what else is carried at first). All results are read."""
  how = How("layer", 1e-5, timed.dtype, timed.residual, True, True)
  scale_D, bias_D = jnp.ones(timed.width), jnp.zeros(timed.width)
  residual = (jnp.roll(x, 1, axis=0),) * timed.residual
  added = lambda totals, more: tuple(map(jnp.add, totals, more))  # noqa: E731
  if timed.direction == "forward":
    run = choice.OPS["norm"].forms[form].run

    def forward(x: jax.Array, carried: Any) -> tuple[jax.Array, Any]:
      residual, totals = carried
      y, *more = run(x, *residual, scale_D, bias_D, how=how)
      return y, (tuple(more[: timed.residual]), added(totals, more[timed.residual :]))

    return forward, (residual, (jnp.zeros(len(x)),) * 2)
  run = choice.OPS["norm.gradients"].forms[form].run
  _, *numbers = xla.forward(x, scale_D, bias_D, how=how._replace(residual=False))

  def backward(to_y: jax.Array, carried: Any) -> tuple[jax.Array, Any]:
    to_x, *parameters = run(x, *numbers, scale_D, to_y, *residual, how=how)
    return to_x, added(carried, parameters)

  return backward, (jnp.zeros(timed.width),) * 2
