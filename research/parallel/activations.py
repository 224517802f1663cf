"""What a step says of its activations, for the layout that it is traced in: where they are cut, and what is computed on
each part alone. Outside of `laid_out` all of it does nothing.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from research.errors import UserError
from research.kernels import choice
from research.parallel import gathering
from research.parallel.tables import (
  STORED_OVER,
  STRATEGIES,
  Axes,
  Layout,
  partition,
  parts_of,
  several,
  what_would,
)

Cut = Mapping[str, tuple[str, ...]]  # the models' axis → axes of the mesh that divide it


class Kept(tuple[str | None, ...]):
  """Names of a parameter's axes, for `spread`: it comes as it is kept, and what only keeps it in parts ends there."""


_layout: contextvars.ContextVar[tuple[Layout, set[str]] | None] = contextvars.ContextVar("layout", default=None)


@contextlib.contextmanager
def laid_out(layout: Layout | None) -> Iterator[None]:
  """Within it activations are divided as the layout says.

  Raises UserError at its end where the strategy is for an axis of activations that nothing in it had.
  """
  seen: set[str] = set()
  token = _layout.set(None if layout is None else (layout, seen))
  try:
    with choice.divided([] if layout is None or layout.mesh.size == 1 else [name for name, _ in layout.rules]):
      yield
  finally:
    _layout.reset(token)
  if layout is not None and (needs := STRATEGIES[layout.strategy].needs) == "length" and needs not in seen:
    raise UserError(
      f"parallel: --parallel.strategy={layout.strategy} divides texts by their length, and this model has no layers"
      " that go along one; dp is for all"
    )


def current() -> Layout | None:
  """The layout by which XLA divides what is traced now; None on one device, and where parts are written out."""
  found = _layout.get()
  return None if found is None or found[0].mesh.size == 1 else found[0]


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """x, divided as the strategy divides an activation with these axes; x itself where nothing is laid out.

  An axis that does not divide stays whole, but a length that the strategy is there for: then UserError.
  """
  if _layout.get() is not None:
    _layout.get()[1].update(name for name in axes if name is not None)
  layout = current()
  if layout is None:
    return x
  return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, _fitting(axes, x.shape, layout)))


def spread(function: Callable[..., Any], ins: Sequence[Axes | None], outs: Any) -> Callable[..., Any]:
  """A function of arrays as each device computes it on its own part: for kernels, which XLA cannot divide.

  Args:
    function: (cut, *parts) → parts; `cut`, a `Cut`, says what has been divided.
    ins: names of each array's axes; `Kept` ones of a parameter; None for an argument that is None.
    outs: the same for the results, a tree of tuples of names.

  Returns: (*arrays) → results. Where nothing is laid out `function` sees the arrays whole, and nothing is cut.
  """
  layout = current()
  if layout is None:
    return lambda *arrays: function({}, *arrays)

  def run(*arrays: Any) -> Any:
    named = [(axes, x.shape) for axes, x in zip(ins, arrays, strict=True) if axes is not None]
    cut = _cut(named, layout)
    places = [_kept_at(axes, cut, layout) for axes, _ in named]
    specs = tuple(_spec(axes, cut, place) for (axes, _), place in zip(named, places, strict=True))

    def part(*parts: Any) -> Any:
      given = (
        x if place is None else gathering.whole(x, place, layout.mesh) for x, place in zip(parts, places, strict=True)
      )
      with laid_out(None):
        return function(cut, *(None if axes is None else next(given) for axes in ins))

    out = jax.tree.map(lambda axes: PartitionSpec(*map(cut.get, axes)), outs, is_leaf=_is_axes)
    mapped = jax.shard_map(part, mesh=layout.mesh, in_specs=specs, out_specs=out, check_vma=False)
    return mapped(*(x for axes, x in zip(ins, arrays, strict=True) if axes is not None))

  return run


def with_whole(
  function: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, parameter: jax.Array, *axes: str | None
) -> jax.Array:
  """function(x, parameter), a layer's product. A parameter that is only kept in parts is gathered for it, and each
  device computes its rows; the mesh's other axes are left to XLA.

  Args:
    function: it treats the rows of x, its first axis and the result's, alike and each for itself.
    x: (B, …), the batch first.
    parameter: already of the dtype that the layer computes in, which is what is sent.
    axes: names of its axes, as its initialiser has them.
  """
  layout = current()
  place = None if layout is None else layout.kept_at(axes)
  if place is None or x.shape[0] % layout.mesh.shape[STORED_OVER]:
    return function(x, parameter)
  alone = layout.mesh.size == layout.mesh.shape[STORED_OVER]  # else XLA divides the product, and can divide no kernel

  gather = functools.partial(gathering.whole, place=place, mesh=layout.mesh)
  if not alone:
    # Of a gather along one axis alone XLA would put together what the others cut.
    others = [axis if axis != STORED_OVER else None for axis in partition(axes, layout.rules, layout.mesh)]
    names = {name for axis in others if axis is not None for name in several(axis)}
    cut = PartitionSpec(*others)
    if names:
      gather = jax.shard_map(gather, in_specs=cut, out_specs=cut, axis_names=names, check_vma=False)

  def part(x: jax.Array, parameter: jax.Array) -> jax.Array:
    with laid_out(None) if alone else contextlib.nullcontext():
      return function(x, gather(parameter))

  rows, kept = PartitionSpec(STORED_OVER), PartitionSpec(*[None] * place, STORED_OVER)
  mapped = jax.shard_map(
    part, mesh=layout.mesh, in_specs=(rows, kept), out_specs=rows, axis_names={STORED_OVER}, check_vma=False
  )
  return mapped(x, parameter)


def _kept_at(axes: Axes, cut: Cut, layout: Layout) -> int | None:
  """Which axis of an argument has to be gathered."""
  place = layout.kept_at(axes) if isinstance(axes, Kept) else None
  return None if place is None or cut.get(axes[place]) else place


def _spec(axes: Axes, cut: Cut, place: int | None) -> PartitionSpec:
  return PartitionSpec(*(STORED_OVER if at == place else cut.get(name) for at, name in enumerate(axes)))


def _cut(named: Sequence[tuple[Axes, Sequence[int]]], layout: Layout) -> Cut:
  """What divides the names of several tensors: one answer for all of them, and no axis of the mesh for two names."""
  sizes: dict[str, list[tuple[int, Sequence[int]]]] = {}
  for axes, shape in named:
    for name, size in zip(axes, shape, strict=True):
      if name is not None:
        sizes.setdefault(name, []).append((size, shape))
  spec = zip(sizes.items(), partition(tuple(sizes), layout.rules, layout.mesh), strict=True)
  return {
    name: several(axis)
    for (name, each), axis in spec
    if axis is not None and all(_divides(name, size, axis, shape, layout) for size, shape in each)
  }


def _is_axes(node: Any) -> bool:
  return isinstance(node, tuple) and all(each is None or isinstance(each, str) for each in node)


def _fitting(axes: Axes, shape: Sequence[int], layout: Layout) -> PartitionSpec:
  spec = partition(axes, layout.rules, layout.mesh)
  each = zip(axes, shape, spec, strict=True)
  return PartitionSpec(*(axis if _divides(name, size, axis, shape, layout) else None for name, size, axis in each))


def _divides(name: str | None, size: int, axis: Any, shape: Sequence[int], layout: Layout) -> bool:
  """Raises UserError for what the strategy is there to divide."""
  count = parts_of(axis, layout.mesh)
  if size % count and name == STRATEGIES[layout.strategy].needs:
    raise UserError(
      f"parallel: activations {list(shape)} have {size} of {name}, which --parallel.strategy={layout.strategy}"
      f" cannot divide over {axis}:{count}; {what_would(size, axis, count)}"
    )
  return size % count == 0
