"""Contract 4: a strategy is a short table from the axes that models name to axes of the mesh.

A rule gives an axis of a tensor to an axis of the mesh. Rules are tried in their order, and no tensor has an axis of
the mesh twice: with ("embed", "data") before ("mlp", "data") a kernel (embed, mlp) is cut along embed, and a bias
(mlp,) along mlp. What no rule names is whole on every device. "batch" and "length" are axes of activations alone, the
others of parameters and of activations (`layers.py` lists them).
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from research.errors import UserError

Axes = tuple[str | None, ...]  # the names of a tensor's axes


@dataclasses.dataclass(frozen=True)
class Strategy:
  """How work is divided.

  Attributes:
    what: it, in words, for --help and errors.
    rules: (the models' axis, the mesh's), the most important first.
  """

  what: str
  rules: tuple[tuple[str, str], ...]

  @property
  def mesh_axes(self) -> tuple[str, ...]:
    """Those of the mesh that it uses."""
    return tuple(dict.fromkeys(axis for _, axis in self.rules))


_BATCH = ("batch", "data")
_FULLY = tuple((name, "data") for name in ("embed", "mlp", "heads", "kv_heads", "conv_out"))
_TENSOR = tuple((name, "model") for name in ("heads", "kv_heads", "mlp", "conv_out"))

STRATEGIES = {
  "dp": Strategy("each device has all parameters and a part of the batch", (_BATCH,)),
  # Zhao et al. 2023; the third stage of ZeRO (Rajbhandari et al. 2020).
  "fsdp": Strategy("parameters and optimizer are cut over the devices that share the batch", (_BATCH, *_FULLY)),
  # Shoeybi et al. 2019 (Megatron-LM), section 3.
  "tp": Strategy("layers are cut by heads and hidden units over the axis model", (_BATCH, *_TENSOR)),
  "fsdp_tp": Strategy("both: by heads and hidden units over model, the rest over data", (_BATCH, *_TENSOR, *_FULLY)),
}
COMPILE = ("jit", "shard_map", "pmap")


@dataclasses.dataclass(frozen=True)
class Layout:
  """A mesh, and how a run is laid on it."""

  mesh: Mesh
  strategy: str = "dp"
  compile: str = "jit"  # "jit": XLA divides the step; "shard_map", "pmap": each device's part of it is written out

  def check(self) -> None:
    """Raises UserError where the mesh has an axis too many or too few, or the step cannot be compiled so."""
    strategy = f"--parallel.strategy={self.strategy}"
    wanted = STRATEGIES[self.strategy].mesh_axes
    for axis in wanted:
      if axis not in self.mesh.shape:
        raise UserError(f"parallel: {strategy} needs an axis {axis}, such as --parallel.mesh=data:4,{axis}:2")
    for axis, size in self.mesh.shape.items():
      if axis not in wanted and size > 1:
        users = " and ".join(name for name, each in STRATEGIES.items() if axis in each.mesh_axes)
        raise UserError(f"parallel: {strategy} has no use for {axis}:{size} in --parallel.mesh; {users} have")
    if self.compile != "jit" and not self.whole:
      raise UserError(f"parallel: --parallel.compile={self.compile} is for --parallel.strategy=dp; jit is for all")
    if self.compile == "pmap" and len({device.process_index for device in self.mesh.devices.flat}) > 1:
      raise UserError("parallel: --parallel.compile=pmap is for one process; shard_map does the same on several")

  @property
  def rules(self) -> tuple[tuple[str, str], ...]:
    return STRATEGIES[self.strategy].rules

  @property
  def whole(self) -> bool:
    """Whether each device has all parameters."""
    return all(name == "batch" for name, axis in self.rules if axis in self.mesh.shape)

  @property
  def replicated(self) -> NamedSharding:
    """On every device, whole."""
    return NamedSharding(self.mesh, PartitionSpec())

  @property
  def rows(self) -> NamedSharding:
    """The first axis cut as a batch is."""
    return NamedSharding(self.mesh, PartitionSpec("data"))

  def spec(self, name: str, axes: Axes, shape: Sequence[int]) -> PartitionSpec:
    """Where a parameter's parts lie. Raises UserError where an axis does not divide."""
    spec = partition(axes, self.rules, self.mesh)
    for place, (size, axis) in enumerate(zip(shape, spec, strict=False)):
      if axis is not None and size % (count := self.mesh.shape[axis]):
        raise UserError(
          f"parallel: {name} {list(shape)} has {size} of {axes[place]}, which --parallel.strategy={self.strategy}"
          f" cannot divide over {axis}:{count}; {-(-size // count) * count} would, or another --parallel.mesh"
        )
    return spec

  def shardings(self, state: Any, axes: Any) -> Any:
    """A sharding for each array of a state.

    An array that is laid out like a parameter (its moments, its average) has the parameter's path in its own, in order,
    and the parameter's shape; what else there is stays whole.

    Args:
      state: a tree of arrays or their shapes, with the parameters under "params".
      axes: `Axes` for each parameter: names of its axes.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(axes, is_leaf=lambda x: isinstance(x, tuple))
    known = {parts(path): names for path, names in flat}

    def sharding(path: Any, leaf: Any) -> NamedSharding:
      here = parts(path)
      like = [each for each in known if _within(each, here) and len(known[each]) == len(leaf.shape)]
      if not like:
        return self.replicated
      found = max(like, key=len)
      return NamedSharding(self.mesh, self.spec("/".join(found), known[found], leaf.shape))

    return jax.tree_util.tree_map_with_path(sharding, state)


def partition(axes: Axes, rules: Sequence[tuple[str, str]], mesh: Mesh) -> PartitionSpec:
  """The table's answer for a tensor with these axes, whatever their sizes."""
  spec: list[str | None] = [None] * len(axes)
  for name, axis in rules:
    if name in axes and axis in mesh.shape and axis not in spec and spec[axes.index(name)] is None:
      spec[axes.index(name)] = axis
  return PartitionSpec(*spec)


def logical_axes(variables: Any) -> Any:
  """flax's boxed variables, or their shapes → the same tree with the names of each array's axes."""
  boxed = lambda x: isinstance(x, nn.meta.AxisMetadata)  # noqa: E731
  return jax.tree.map(lambda x: tuple(x.names) if boxed(x) else (None,) * x.ndim, variables, is_leaf=boxed)


def parts(path: Any) -> tuple[str, ...]:
  """A tree's path as words."""
  return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _within(short: Sequence[str], long: Sequence[str]) -> bool:
  """Whether the words of one path stand in the other in their order, its last word last."""
  if not short or not long or short[-1] != long[-1]:
    return False
  rest = iter(long)
  return all(word in rest for word in short)


_layout: contextvars.ContextVar[Layout | None] = contextvars.ContextVar("layout", default=None)


@contextlib.contextmanager
def laid_out(layout: Layout | None) -> Iterator[None]:
  """Within it `constrain` divides what is traced."""
  token = _layout.set(layout)
  try:
    yield
  finally:
    _layout.reset(token)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """x, divided as the strategy divides an activation with these axes; x itself where nothing is laid out.

  Where an axis does not divide it stays whole: only parameters have to.
  """
  layout = _layout.get()
  if layout is None or layout.mesh.size == 1:
    return x
  spec = partition(axes, layout.rules, layout.mesh)
  divides = [axis is not None and size % layout.mesh.shape[axis] == 0 for size, axis in zip(x.shape, spec, strict=True)]
  fitting = (axis if fits else None for axis, fits in zip(spec, divides, strict=True))
  return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, PartitionSpec(*fitting)))
