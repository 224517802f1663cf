"""The table of a model's parameters for people to read: name, shape, axes, count and bytes. Nothing is computed."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax


class Row(NamedTuple):
  """One parameter array. `axes` are its logical axis names, empty where the tree was already unboxed."""

  name: str
  shape: tuple[int, ...]
  dtype: str
  axes: tuple[str | None, ...]
  count: int
  bytes: int


def parameter_table(params: Any) -> list[Row]:
  """The rows of a parameter tree, boxed or not, of arrays or of `jax.eval_shape`'s results, in the tree's own order."""
  leaves = jax.tree.leaves_with_path(params, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))
  return [_row(path, leaf) for path, leaf in leaves]


def parameter_count(params: Any) -> int:
  """The number of scalars in a parameter tree."""
  return sum(row.count for row in parameter_table(params))


def _row(path: tuple, leaf: Any) -> Row:
  axes: tuple[str | None, ...] = ()
  if isinstance(leaf, nn.Partitioned):
    axes, leaf = tuple(leaf.names), leaf.value
  name = jax.tree_util.keystr(path, simple=True, separator="/")
  count = math.prod(leaf.shape)
  return Row(name, tuple(leaf.shape), str(leaf.dtype), axes, count, count * leaf.dtype.itemsize)
