"""What a step says across devices, whichever way it is compiled.

Under jit a step sees the whole batch, and these are identities: XLA puts in what has to be sent. Under shard_map and
pmap (`--parallel.compile`) a step sees its device's part, and they are collectives over the axis that divides it.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
from jax import lax

T = TypeVar("T")

_axis: contextvars.ContextVar[str | None] = contextvars.ContextVar("axis", default=None)


@contextlib.contextmanager
def mapped(axis: str) -> Iterator[None]:
  """Within it, what is traced is one device's part of a step, mapped over `axis`."""
  token = _axis.set(axis)
  try:
    yield
  finally:
    _axis.reset(token)


def axis_name() -> str | None:
  """The axis that parts are mapped over, for flax's BatchNorm; None where a step sees the whole batch."""
  return _axis.get()


def parts() -> int:
  """How many parts the batch is in."""
  axis = _axis.get()
  return 1 if axis is None else lax.axis_size(axis)


def mean(tree: T) -> T:
  """The mean over parts of equal size."""
  axis = _axis.get()
  return tree if axis is None else lax.pmean(tree, axis)


def total(tree: T) -> T:
  """The sum over parts."""
  axis = _axis.get()
  return tree if axis is None else lax.psum(tree, axis)


def weighted_mean(tree: T, weight: jax.Array) -> T:
  """The mean over parts, each counted as much as its weight; of no weight at all zeros."""
  axis = _axis.get()
  if axis is None:
    return tree
  whole = lax.psum(weight, axis)
  share = weight / lax.select(whole > 0, whole, lax.full_like(whole, 1))
  # A part without weight may hold NaN, which no weight would make a zero.
  return lax.psum(jax.tree.map(lambda x: jax.numpy.where(weight > 0, x * share.astype(x.dtype), 0), tree), axis)


def rows(draw: Callable[[int], Any], count: int) -> Any:
  """This part's `count` rows of draw(number of all rows): random numbers that are the same in any number of parts."""
  axis = _axis.get()
  if axis is None:
    return draw(count)
  everyone = draw(count * lax.axis_size(axis))
  return lax.dynamic_slice_in_dim(everyone, lax.axis_index(axis) * count, count)


def own(key: jax.Array) -> jax.Array:
  """A key for what is drawn part by part: another in each part, and so another draw for another number of parts."""
  axis = _axis.get()
  return key if axis is None else jax.random.fold_in(key, lax.axis_index(axis))
