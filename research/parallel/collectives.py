"""What a step says across devices, whichever way it is compiled.

Under jit a step sees the whole batch, and these are identities: XLA puts in what has to be sent. Under shard_map and
pmap (`--parallel.compile`) a step sees its device's part, and they are collectives over the axis that divides it. Under
`--run.deterministic_shards` that part is some of the virtual shards of `shards.py`: what a step computes of examples it
computes of `split` parts, in `each`, `total_of` or `mean_of`, and the function in them sees one shard alone.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from research.parallel.shards import Shards

T = TypeVar("T")

_axis: contextvars.ContextVar[str | None] = contextvars.ContextVar("axis", default=None)
_shards: contextvars.ContextVar[Shards | None] = contextvars.ContextVar("shards", default=None)
# (the shard's number, V) of a function of one shard
_shard: contextvars.ContextVar[tuple[jax.Array, int] | None] = contextvars.ContextVar("shard", default=None)


@contextlib.contextmanager
def mapped(axis: str) -> Iterator[None]:
  """Within it, what is traced is one device's part of a step, mapped over `axis`."""
  with _set(_axis, axis):
    yield


@contextlib.contextmanager
def sharded(shards: Shards) -> Iterator[None]:
  """Within it, what is traced is one device's part of a step, in virtual shards."""
  with _set(_shards, shards):
    yield


def axis_name() -> str | None:
  """The axis that parts are mapped over, for flax's BatchNorm; None where a step sees the whole batch, or a shard."""
  return _axis.get()


def parts() -> int:
  """How many parts the batch is in."""
  if shards := _shards.get():
    return shards.count
  axis = _axis.get()
  return 1 if axis is None else lax.axis_size(axis)


def split(rows: T) -> T:
  """Arrays of examples (B, …) as what `each`, `total_of` and `mean_of` take."""
  shards = _shards.get()
  return rows if shards is None else shards.split(rows)


def merge(parts: T) -> T:
  """What `each` gives, where that are arrays of examples, as those of the whole batch."""
  return parts if _shards.get() is None else jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), parts)


def each(function: Callable[..., T], *parts: Any) -> T:
  """function(*parts) of each shard, as parts again; where there are no shards, of the whole.

  Args:
    function: sees arrays (B/V, …) of one of V shards. Whatever it says across devices it says of that shard.
    parts: made by `split` or `each`.
  """
  shards = _shards.get()
  return function(*parts) if shards is None else shards.each(_alone(function, shards), *parts)


def total_of(function: Callable[..., T], *parts: Any) -> T:
  """The sum over the batch's parts of what the function makes of each; see `each`."""
  shards = _shards.get()
  return total(function(*parts)) if shards is None else shards.total(_alone(function, shards), *parts)


def mean_of(function: Callable[..., T], *parts: Any) -> T:
  """The mean of the same."""
  shards = _shards.get()
  if shards is None:
    return mean(function(*parts))
  return jax.tree.map(lambda x: x / shards.count, shards.total(_alone(function, shards), *parts))


def combined(function: Callable[..., tuple[Any, jax.Array, Any, Any]], *parts: Any) -> tuple[Any, Any, Any]:
  """Three combinations at once of what the function makes of each part; see `each`.

  Args:
    function: → (what is meant over parts with the weight that follows, that weight, what is meant evenly, sums).
  """
  shards = _shards.get()
  if shards is None:
    weighted, weight, even, sums = function(*parts)
    return weighted_mean(weighted, weight), mean(even), total(sums)

  def terms(*parts):
    weighted, weight, even, sums = function(*parts)
    return _weighted(weighted, weight), weight, even, sums

  weighted, weight, even, sums = total_of(terms, *parts)
  whole = lax.select(weight > 0, weight, lax.full_like(weight, 1))
  return (
    jax.tree.map(lambda x: x / whole.astype(x.dtype), weighted), jax.tree.map(lambda x: x / shards.count, even), sums
  )  # fmt: skip


def vjp_of(function: Callable[..., tuple[Any, Any]], at: Any, *parts: Any) -> tuple[Any, Callable[..., Any], Any]:
  """What `each` gives of (*parts) → function(at, *parts) = (value, more), and the way back to `at`.

  Returns: values, (a part's cotangent, *its parts) → `at`'s, for a function of `each` or `mean_of`, and what more there
    was. A shard's values are made again for the way back, as what all shards' hold would be there at once.
  """
  if _shards.get() is None:
    value, pull_back, more = jax.vjp(lambda at: function(at, *parts), at, has_aux=True)
    return value, lambda cotangent, *_: pull_back(cotangent)[0], more

  def again(cotangent, *parts):
    return jax.vjp(lambda at: function(at, *parts), at, has_aux=True)[1](cotangent)[0]

  value, more = each(lambda *parts: function(at, *parts), *parts)
  return value, again, more


def mean(tree: T) -> T:
  """The mean over parts of equal size; of a shard, itself."""
  axis = _axis.get()
  return tree if axis is None else lax.pmean(tree, axis)


def total(tree: T) -> T:
  """The sum over parts; of a shard, itself."""
  axis = _axis.get()
  return tree if axis is None else lax.psum(tree, axis)


def weighted_mean(tree: T, weight: jax.Array) -> T:
  """The mean over parts, each counted as much as its weight; of no weight at all zeros."""
  axis = _axis.get()
  if axis is None:
    return tree
  whole = lax.psum(weight, axis)
  share = weight / lax.select(whole > 0, whole, lax.full_like(whole, 1))
  return lax.psum(_weighted(tree, weight, share), axis)


def rows(draw: Callable[[int], Any], count: int) -> Any:
  """This part's `count` rows of draw(number of all rows): random numbers that are the same in any number of parts."""
  axis, shard = _axis.get(), _shard.get()
  if shard is not None:
    number, count_of_all = shard
    return lax.dynamic_slice_in_dim(draw(count * count_of_all), number * count, count)
  if axis is None:
    return draw(count)
  everyone = draw(count * lax.axis_size(axis))
  return lax.dynamic_slice_in_dim(everyone, lax.axis_index(axis) * count, count)


def own(key: jax.Array) -> jax.Array:
  """A key for what is drawn part by part: another in each part, and so another draw for another number of parts."""
  axis, shard = _axis.get(), _shard.get()
  if shard is not None:
    return jax.random.fold_in(key, shard[0])
  return key if axis is None else jax.random.fold_in(key, lax.axis_index(axis))


def _weighted(tree: T, weight: jax.Array, share: jax.Array | None = None) -> T:
  """Times its share, or else its weight. A part without weight may hold NaN, which no weight would make a zero."""
  share = weight if share is None else share
  return jax.tree.map(lambda x: jnp.where(weight > 0, x * share.astype(x.dtype), 0), tree)


def _alone(function: Callable[..., T], shards: Shards) -> Callable[..., T]:
  """(the shard's number, *parts) → function(*parts), which sees no other shard."""

  def run(number, *parts):
    with _set(_shards, None), _set(_shard, (number, shards.count)):
      return function(*parts)

  return run


@contextlib.contextmanager
def _set(variable: contextvars.ContextVar, value: Any) -> Iterator[None]:
  token = variable.set(value)
  try:
    yield
  finally:
    variable.reset(token)
