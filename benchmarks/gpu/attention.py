"""Rows of attention on a GPU: each form beside the others and beside XLA's, forward and backward, in turn.

An operation is repeated inside one compiled loop, in which each turn needs the last one's result, so that what is timed
is the device and not its calls. A row's time is the median of rounds in which every form runs once.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from research.kernels import choice
from research.kernels.attention.masks import How

PEER = "xla"
ROUNDS = 9
TURNS = 20


@dataclasses.dataclass(frozen=True)
class Case:
  """Sizes, and what is masked and how.

  Attributes:
    documents: that a text of `length` tokens holds; 1: no segments are given.
  """

  batch: int
  length: int
  heads: int
  groups: int
  width: int
  how: How
  documents: int = 1

  def arrays(self) -> tuple[jax.Array, ...]:
    """(q, k, v) in bfloat16, and segments where there are documents."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(self.batch, self.length, count, self.width) for count in (self.heads, self.groups, self.groups)]
    arrays = [jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, shapes, strict=True)]
    if self.documents == 1:
      return tuple(arrays)
    return *arrays, *(jnp.asarray(np.tile(self.segments(), (self.batch, 1))),) * 2

  def segments(self) -> np.ndarray:
    """int32 (L,): documents of about one length."""
    return (np.arange(self.length) * self.documents // self.length).astype(np.int32)

  def flops(self, direction: str) -> float:
    """2 for each multiplication and addition of the 2 products forward, or the 5 backward, over what is seen alone."""
    rows, ids = np.arange(self.length), self.segments()
    first, last = np.searchsorted(ids, ids), np.searchsorted(ids, ids, side="right") - 1
    if self.how.causal:
      last = rows
    if self.how.window:
      first = np.maximum(first, rows - self.how.window + 1)
      last = np.minimum(last, rows + self.how.window - 1)
    pairs = float((last - first + 1).sum()) * self.batch * self.heads
    return {"forward": 4.0, "backward": 10.0}[direction] * pairs * self.width


def _how(causal: bool, width: int, window: int = 0, softcap: float = 0.0) -> How:
  return How(causal, window, softcap, width**-0.5, sums=False)


CASES = {
  "causal, 2 × 8,192, 16 heads of 128": Case(2, 8192, 16, 16, 128, _how(True, 128)),
  "all, 2 × 8,192, 16 heads of 128": Case(2, 8192, 16, 16, 128, _how(False, 128)),
  "causal, 2 × 8,192, 32 heads of 64": Case(2, 8192, 32, 32, 64, _how(True, 64)),
  "causal, 8 documents, 2 × 8,192, 16 heads of 128": Case(2, 8192, 16, 16, 128, _how(True, 128), documents=8),
  "causal, window of 1,024, 2 × 8,192, 16 heads of 128": Case(2, 8192, 16, 16, 128, _how(True, 128, 1024)),
  "causal, soft cap, 2 × 8,192, 16 heads of 128": Case(2, 8192, 16, 16, 128, _how(True, 128, softcap=30.0)),
  "causal, 4 key heads, 2 × 8,192, 16 heads of 128": Case(2, 8192, 16, 4, 128, _how(True, 128)),
  "causal, 1 × 32,768, 8 heads of 128": Case(1, 32768, 8, 8, 128, _how(True, 128)),
  "causal, 8 × 1,024, 12 heads of 64": Case(8, 1024, 12, 12, 64, _how(True, 64)),
}
SMOKE = {
  "causal, 1 × 128, 2 heads of 64": Case(1, 128, 2, 1, 64, _how(True, 64)),
  "causal, 2 documents, 1 × 128, 2 heads of 64": Case(1, 128, 2, 2, 64, _how(True, 64, 50, 30.0), documents=2),
}


def rows(smoke: bool) -> list[dict[str, Any]]:
  """A dictionary for each case, direction and form: what, form, direction, ms, tflops, peer, ratio, status.

  `ratio` is the peer's time by this form's; ms, tflops and ratio are None where a form, or its peer, cannot run, which
  status then tells.

  Args:
    smoke: tiny cases on any device, by the forms that run there; their times mean nothing.
  """
  found = []
  for what, case in (SMOKE if smoke else CASES).items():
    for direction in ("forward", "backward"):
      found += _rows_of(what, case, direction, smoke)
  return found


def _rows_of(what: str, case: Case, direction: str, smoke: bool) -> list[dict[str, Any]]:
  op = choice.OPS["attention" if direction == "forward" else "attention.gradients"]
  arrays, turns = case.arrays(), 2 if smoke else TURNS
  programs, status = {}, {}
  for form in op.forms:
    try:
      programs[form] = _program(op, form, direction, case, arrays, turns)
      status[form] = "smoke" if smoke else "measured"
    except Exception as error:  # a form that cannot run here, or whatever a compiler or an allocator says
      status[form] = f"not run: {str(error).splitlines()[0][:120] if str(error) else type(error).__name__}"
  took = _times(programs, 2 if smoke else ROUNDS)
  milliseconds = {form: 1000 * statistics.median(each) / turns for form, each in took.items()}
  peer = milliseconds.get(PEER)
  return [
    {
      "what": what,
      "form": form,
      "direction": direction,
      "ms": (ms := milliseconds.get(form)),
      "tflops": ms and case.flops(direction) / ms / 1e9,
      "peer": PEER,
      "ratio": peer / ms if peer and ms else None,
      "status": said,
    }
    for form, said in status.items()
  ]


def _program(
  op: choice.Op, form: str, direction: str, case: Case, arrays: tuple[jax.Array, ...], turns: int
) -> Callable[[], Any]:
  """() → what `turns` of it give, compiled and run once. Raises what the form cannot."""
  shapes, dtypes = tuple(x.shape for x in arrays), tuple(x.dtype for x in arrays)
  more = {} if direction == "forward" else {"made": None, "gradients": None}
  if reason := op.forms[form].supports(shapes, dtypes, choice.platform(), how=case.how, **more):
    raise ValueError(reason)
  if direction == "forward":
    run = op.forms[form].run
    given = arrays

    def repeated(q, *rest):
      return lax.fori_loop(0, turns, lambda _, x: run(x, *rest, how=case.how)[0], q)

  else:
    first = choice.OPS["attention"].forms[form]
    made = jax.jit(lambda *x: (first.alone or first.run)(*x, how=case.how))(*arrays)
    to_output = jax.random.normal(jax.random.key(1), arrays[0].shape, jnp.bfloat16)
    given = (*made[:2], made[2], to_output, *arrays)

    def repeated(output, sums, weights, to_output, *arrays):
      def turn(_, carry):
        sums, to_sums = carry
        options = {"made": (output, sums, weights), "gradients": (to_output, to_sums)}
        slopes = op.forms[form].run(*arrays, how=case.how, **options)
        little = sum(each[0, 0, 0, 0].astype(jnp.float32) for each in slopes) * 1e-30  # all of them are asked for
        return sums + little, to_sums + little

      return lax.fori_loop(0, turns, turn, (sums, jnp.zeros_like(sums)))

  compiled = jax.jit(repeated).lower(*given).compile()
  jax.block_until_ready(compiled(*given))
  return lambda: compiled(*given)


def _times(programs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
  """Seconds of each, in rounds that go to and fro."""
  took = {form: [] for form in programs}
  for number in range(rounds):
    for form in list(programs) if number % 2 else list(programs)[::-1]:
      began = time.perf_counter()
      jax.block_until_ready(programs[form]())
      took[form].append(time.perf_counter() - began)
  return took
