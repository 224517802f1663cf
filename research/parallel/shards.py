"""A batch in a fixed number of virtual shards, whose sums have the same bits on any number of devices.

A floating-point sum depends on the order of its terms, and what a compiler makes of an operation on the shapes of its
arrays and on what stands beside it. So each shard's part of a step is computed alone, one after the other, by a loop
whose body has the same shapes however many shards a device has; and sums over shards go up one balanced binary tree:
pairs of neighbours, pairs of pairs, first on a device and then between devices. a + b has the bits of b + a, so all
devices come to the same sum.

XLA yet fuses operations differently in a program of one device and in one of several. What a fusion changes are a
multiply and an add that become one instruction and are rounded once, so programs are compiled without that one
(`round_twice`). Only for CPUs of the x86 family has XLA such a flag.

What a device holds beside one shard's gradient are log2(V/n) + 1 partial sums, V shards on n devices. Random numbers
are `collectives`' affair.
"""

import dataclasses
import os
from collections.abc import Callable, MutableMapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

# AVX is x86's last set of instructions without the fused one.
UNFUSED = "--xla_cpu_max_isa=AVX"


def round_twice(environment: MutableMapping[str, str] = os.environ) -> None:
  """Before the first device is asked for: programs for CPUs are compiled without a fused multiply and add."""
  flags = environment.get("XLA_FLAGS", "").split()
  if UNFUSED not in flags:
    environment["XLA_FLAGS"] = " ".join([*flags, UNFUSED])


def rounds_once() -> bool:
  """Whether programs here have the fused instruction all the same: then only the order of sums is certain."""
  near = np.full(1024, 1 + 2**-12, np.float32)
  return bool(np.any(jax.jit(lambda a, b, c: a * b + c)(near, near, -near * near)))


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
    parts = self._several(parts)
    shapes = jax.eval_shape(function, jnp.int32(0), *self._at(parts, 0))
    before = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    stacked = jax.tree.map(lambda x: jnp.zeros((self.here, *x.shape), x.dtype), shapes)

    # A shard's results are written in the next turn: what XLA makes of an operation must not depend on how many stand
    # beside each other in what it is written to.
    def turn(place, carry):
      (number, *own), before, stacked = carry
      stacked = self._put(stacked, before, jnp.maximum(place - 1, 0))
      return self._next(number, parts, place), _row_by_row(function(number, *_row_by_row(own))), stacked

    _, last, stacked = lax.fori_loop(0, self._turns, turn, (self._first(parts), before, stacked))
    return self._put(stacked, last, self.here - 1)

  def total(self, function: Callable[..., Any], *parts: Any) -> Any:
    """The sum of function(number of the shard, *its parts) over all shards of all devices."""
    parts = self._several(parts)
    shapes = jax.eval_shape(function, jnp.int32(0), *self._at(parts, 0))
    levels = self.here.bit_length()  # sums of 1, 2, 4, … shards that wait for their neighbours
    waiting = jax.tree.map(lambda x: jnp.zeros((levels, *x.shape), x.dtype), shapes)

    def turn(place, carry):
      (number, *own), waiting = carry
      found = _row_by_row(function(number, *_row_by_row(own)))
      # As in counting up in binary: each one bit at the end of the place is a sum that this shard's side completes.
      complete = lax.population_count(place ^ (place + 1)) - 1
      found = lax.fori_loop(0, complete, lambda level, x: _add(self._at(waiting, level), x), found)
      return self._next(number, parts, place), self._put(waiting, found, complete)

    _, waiting = lax.fori_loop(0, self._turns, turn, (self._first(parts), waiting))
    return self._apart(self._between(jax.tree.map(lambda x: x[-1], waiting)))

  def _several(self, parts: Any) -> Any:
    """Of one shard here a second one beside it, never computed: a loop's body on what never changes is another one."""
    return parts if self.here > 1 else jax.tree.map(lambda x: jnp.concatenate([x, x]), parts)

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

  def _first(self, parts: Any) -> tuple:
    return (lax.axis_index(self.axis) * self.here).astype(jnp.int32) + self.zero, *self._at(parts, 0)

  def _next(self, number: jax.Array, parts: Any, place: jax.Array) -> tuple:
    return number + 1, *self._at(parts, place + 1)

  def _at(self, stacked: Any, place: jax.Array | int) -> Any:
    """Beyond the last one it is the last one."""
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, place, keepdims=False), stacked)

  def _put(self, stacked: Any, tree: Any, place: jax.Array | int) -> Any:
    return jax.tree.map(lambda all, x: lax.dynamic_update_index_in_dim(all, x, place, 0), stacked, tree)


def _row_by_row(tree: Any) -> Any:
  """The same, laid out in memory with the last axis closest: XLA else lays one shard out otherwise than several."""

  def constrain(x: jax.Array) -> jax.Array:
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.extended)
    return x if is_key else with_layout_constraint(x, Layout(tuple(range(x.ndim))))

  return jax.tree.map(constrain, tree)


def _add(left: Any, right: Any) -> Any:
  return jax.tree.map(jnp.add, left, right)
