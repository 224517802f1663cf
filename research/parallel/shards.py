"""A batch in a fixed number of virtual shards, whose sums have the same bits on any number of devices.

A floating-point sum depends on the order of its terms, and what a compiler makes of an operation on the shapes of its
arrays and on what stands beside it. So each shard's part of a step is computed alone, one after the other, by a loop
whose body is the same program however many shards a device has; and sums over shards go up one balanced binary tree:
pairs of neighbours, pairs of pairs, first on a device and then between devices. a + b has the bits of b + a, so all
devices come to the same sum.

What a device holds beside one shard's gradient are log2(V/n) + 1 partial sums, V shards on n devices. Dividing random
numbers and counting is `collectives`' affair.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


@dataclasses.dataclass(frozen=True)
class Shards:
  """Of a step that is mapped over `axis`.

  Attributes:
    axis: the mesh's, over which the shards are divided, neighbours on one device.
    count: V, all of them; a power of two that the axis' size divides.
    zero: () int32, 0 at run time and not known to be so when the step is compiled.
  """

  axis: str
  count: int
  zero: jax.Array

  @property
  def here(self) -> int:
    """How many are on a device."""
    return self.count // lax.axis_size(self.axis)

  def split(self, rows: Any) -> Any:
    """This device's rows (B/n, …) as parts (V/n, B/V, …)."""
    return jax.tree.map(lambda x: x.reshape(self.here, -1, *x.shape[1:]), rows)

  def each(self, function: Callable[..., Any], *parts: Any) -> Any:
    """function(number of the shard, *its parts) of each shard here, stacked (V/n, …)."""
    shapes = jax.eval_shape(function, jnp.int32(0), *self._at(parts, 0))
    before = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    stacked = jax.tree.map(lambda x: jnp.zeros((self.here, *x.shape), x.dtype), shapes)

    # A shard's results are written in the next turn: what XLA makes of an operation must not depend on how many stand
    # beside each other in what it is written to.
    def turn(place, carry):
      own, before, stacked = carry
      stacked = self._put(stacked, before, jnp.maximum(place - 1, 0))
      return self._at(parts, place + 1), function(self._number(place), *own), stacked

    _, last, stacked = lax.fori_loop(0, self._turns, turn, (self._at(parts, 0), before, stacked))
    return self._put(stacked, last, self.here - 1)

  def total(self, function: Callable[..., Any], *parts: Any) -> Any:
    """The sum of function(number of the shard, *its parts) over all shards of all devices."""
    shapes = jax.eval_shape(function, jnp.int32(0), *self._at(parts, 0))
    levels = self.here.bit_length()  # sums of 1, 2, 4, … shards that wait for their neighbours
    waiting = jax.tree.map(lambda x: jnp.zeros((levels, *x.shape), x.dtype), shapes)

    def turn(place, carry):
      own, waiting = carry
      found = function(self._number(place), *own)
      # As in counting up in binary: each one bit at the end of the place is a sum that this shard's side completes.
      complete = lax.population_count(place ^ (place + 1)) - 1
      found = lax.fori_loop(0, complete, lambda level, x: _add(self._at(waiting, level), x), found)
      return self._at(parts, place + 1), self._put(waiting, found, complete)

    _, waiting = lax.fori_loop(0, self._turns, turn, (self._at(parts, 0), waiting))
    return self._apart(self._between(jax.tree.map(lambda x: x[-1], waiting)))

  def _between(self, tree: Any) -> Any:
    """The sum over devices, by recursive doubling: in each round with the device whose number differs in one bit."""
    size = lax.axis_size(self.axis)
    for bit in range(size.bit_length() - 1):
      pairs = [(device, device ^ 1 << bit) for device in range(size)]
      tree = _add(tree, jax.tree.map(lambda x, pairs=pairs: lax.ppermute(x, self.axis, pairs), tree))
    return tree

  def _apart(self, tree: Any) -> Any:
    """The same values, of which a compiler does not know what they are made of.

    XLA for CPUs has no regard for lax.optimization_barrier up to jax 0.10, and so it is a loop of one turn.
    """
    blank = jax.tree.map(jnp.zeros_like, tree)
    return lax.fori_loop(0, 1 + self.zero, lambda _, __: tree, blank)

  @property
  def _turns(self) -> jax.Array:
    """A loop whose length is known is unrolled where it has one turn, and another program then."""
    return self.here + self.zero

  def _number(self, place: jax.Array) -> jax.Array:
    return (lax.axis_index(self.axis) * self.here).astype(jnp.int32) + place

  def _at(self, stacked: Any, place: jax.Array | int) -> Any:
    """Beyond the last one it is the last one."""
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, place, keepdims=False), stacked)

  def _put(self, stacked: Any, tree: Any, place: jax.Array | int) -> Any:
    return jax.tree.map(lambda all, x: lax.dynamic_update_index_in_dim(all, x, place, 0), stacked, tree)


def _add(left: Any, right: Any) -> Any:
  return jax.tree.map(jnp.add, left, right)
