"""Contract 4: a strategy is a short table from the axes that models name to axes of the mesh.

A rule gives an axis of a tensor to an axis of the mesh. Rules are tried in their order, and no tensor has an axis of
the mesh twice: with ("embed", "data") before ("mlp", "data") a kernel (embed, mlp) is cut along embed, and a bias
(mlp,) along mlp. What no rule names is whole on every device. "batch", "length", "stream_length" (of what
layers add to, and the head reads) and "expert_batch" (a batch that is sorted by experts) are axes of activations alone,
the others of parameters and of activations (`layers.py` lists them).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from research.errors import UserError

Axes = tuple[str | None, ...]  # the names of a tensor's axes
Rule = tuple[str, str | tuple[str, ...]]  # the models' axis; the mesh's, or several that divide it together


@dataclasses.dataclass(frozen=True)
class Strategy:
  """How work is divided.

  Attributes:
    what: it, in words, for --help and errors.
    rules: (the models' axis, the mesh's), the most important first.
    needs: the models' axis without which it divides nothing but the batch; "": any model has something.
  """

  what: str
  rules: tuple[Rule, ...]
  needs: str = ""

  @property
  def mesh_axes(self) -> tuple[str, ...]:
    """Those of the mesh that it uses."""
    return tuple(dict.fromkeys(axis for _, axes in self.rules for axis in several(axes)))


def several(axes: str | tuple[str, ...]) -> tuple[str, ...]:
  """A rule's answer, or an entry of a PartitionSpec, as a tuple."""
  return (axes,) if isinstance(axes, str) else axes


_BATCH = (("batch", "data"), ("expert_batch", "data"))
_FULLY = tuple((name, "data") for name in ("embed", "mlp", "heads", "kv_heads", "conv_out"))
# Between layers, where no head or hidden unit is, its devices share a text's length (Korthikanti et al. 2022).
_TENSOR = tuple((name, "model") for name in ("heads", "kv_heads", "mlp", "conv_out", "stream_length"))

STRATEGIES = {
  "dp": Strategy("each device has all parameters and a part of the batch", _BATCH),
  # Zhao et al. 2023; the third stage of ZeRO (Rajbhandari et al. 2020).
  "fsdp": Strategy("parameters and optimizer are cut over the devices that share the batch", (*_BATCH, *_FULLY)),
  # Shoeybi et al. 2019 (Megatron-LM), section 3.
  "tp": Strategy("layers are cut by heads and hidden units over the axis model", (*_BATCH, *_TENSOR)),
  "fsdp_tp": Strategy("both: by heads and hidden units over model, the rest over data", (*_BATCH, *_TENSOR, *_FULLY)),
  # Liu et al. 2023 (Ring Attention).
  "sp": Strategy(
    "texts are cut along their length over sequence",
    (*_BATCH, ("length", "sequence"), ("stream_length", "sequence")), "length",
  ),
  # Huang et al. 2019 (GPipe). Before and after the layers the stages share the batch.
  "pp": Strategy(
    "groups of layers one after another over stage, a batch going through them in parts",
    (("batch", ("data", "stage")), ("layers", "stage")), "layers",
  ),
  # Lepikhin et al. 2021 (GShard). Outside of the experts their devices share the batch.
  "ep": Strategy(
    "experts are cut over expert, to which their tokens travel",
    (("batch", ("data", "expert")), ("expert_batch", "data"), ("experts", "expert")), "experts",
  ),
}  # fmt: skip
STORED_OVER = "data"  # of the mesh: a batch is cut over it, so parameters may be kept in parts there, but not used
COMPILE = ("jit", "shard_map", "pmap")


@dataclasses.dataclass(frozen=True)
class Layout:
  """A mesh, and how a run is laid on it."""

  mesh: Mesh
  strategy: str = "dp"
  compile: str = "jit"  # "jit": XLA divides the step; "shard_map", "pmap": each device's part of it is written out
  micro_batches: int = 0  # parts that a batch goes through a pipeline in; 0: as `parallel.pipeline` thinks best
  shards: int = 0  # parts of a batch that are computed alone and added up in one order (`parallel.shards`); 0: none

  def check(self) -> None:
    """Raises UserError where the mesh has an axis too many or too few, or the step cannot be compiled so."""
    strategy = f"--parallel.strategy={self.strategy}"
    wanted = STRATEGIES[self.strategy].mesh_axes
    for axis in wanted:
      if axis != "data" and axis not in self.mesh.shape:
        raise UserError(f"parallel: {strategy} needs an axis {axis}, such as --parallel.mesh=data:4,{axis}:2")
    for axis, size in self.mesh.shape.items():
      if axis not in wanted and size > 1:
        users = [name for name, each in STRATEGIES.items() if axis in each.mesh_axes]
        have = f"{' and '.join(users)} {'have' if len(users) > 1 else 'has'}"
        raise UserError(f"parallel: {strategy} has no use for {axis}:{size} in --parallel.mesh; {have}")
    if self.compile != "jit" and self.strategy != "dp":
      raise UserError(f"parallel: --parallel.compile={self.compile} is for --parallel.strategy=dp; jit is for all")
    if self.compile == "pmap" and len({device.process_index for device in self.mesh.devices.flat}) > 1:
      raise UserError("parallel: --parallel.compile=pmap is for one process; shard_map does the same on several")
    if self.shards:
      self._check_shards()

  def _check_shards(self) -> None:
    shards = f"--run.deterministic_shards={self.shards}"
    if self.strategy != "dp":
      raise UserError(f"parallel: {shards} is for --parallel.strategy=dp, where each device has all parameters")
    if self.compile != "jit":
      raise UserError(f"parallel: {shards} writes each device's part out itself; leave --parallel.compile out")
    if self.shards % self.ways:
      fit = 2 ** (min(self.ways, self.shards).bit_length() - 1)
      raise UserError(
        f"parallel: {shards} do not divide over {self.ways} devices; --parallel.mesh=data:{fit} would do"
      )

  @property
  def rules(self) -> tuple[Rule, ...]:
    return STRATEGIES[self.strategy].rules

  @property
  def parameter_rules(self) -> tuple[Rule, ...]:
    """Those that are not of the batch."""
    return tuple((name, axes) for name, axes in self.rules if name not in ("batch", "expert_batch"))

  @property
  def gathers(self) -> bool:
    """Whether parameters are in parts where they are kept, and not where they are used."""
    return self.mesh.shape.get(STORED_OVER, 1) > 1 and any(axis == STORED_OVER for _, axis in self.parameter_rules)

  def kept_at(self, axes: Axes) -> int | None:
    """Which axis of a parameter is cut where it is kept and not where it is used; None where there is none."""
    spec = partition(axes, self.rules, self.mesh) if self.gathers else ()
    return next((place for place, axis in enumerate(spec) if axis == STORED_OVER), None)

  @property
  def batch_axes(self) -> tuple[str, ...]:
    """Those of the mesh that a batch is cut over."""
    return tuple(axis for axis in several(dict(self.rules)["batch"]) if axis in self.mesh.shape)

  @property
  def ways(self) -> int:
    """How many parts a batch is cut into."""
    return math.prod(self.mesh.shape[axis] for axis in self.batch_axes)

  @property
  def whole(self) -> bool:
    """Whether each device has all parameters."""
    return not any(set(several(axes)) & self.mesh.shape.keys() for _, axes in self.parameter_rules)

  @property
  def replicated(self) -> NamedSharding:
    """On every device, whole."""
    return NamedSharding(self.mesh, PartitionSpec())

  @property
  def rows(self) -> NamedSharding:
    """The first axis cut as a batch is."""
    return NamedSharding(self.mesh, PartitionSpec(self.batch_axes))

  def spec(self, name: str, axes: Axes, shape: Sequence[int]) -> PartitionSpec:
    """Where a parameter's parts lie. Raises UserError where an axis does not divide."""
    spec = partition(axes, self.rules, self.mesh)
    for place, (size, axis) in enumerate(zip(shape, spec, strict=False)):
      if size % (count := parts_of(axis, self.mesh)):
        raise UserError(
          f"parallel: {name} {list(shape)} has {size} of {axes[place]}, which --parallel.strategy={self.strategy}"
          f" cannot divide over {axis}:{count}; {what_would(size, axis, count)}"
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
    needs = STRATEGIES[self.strategy].needs
    if needs in ("layers", "experts") and not any(needs in names for names in known.values()):
      raise UserError(
        f"parallel: --parallel.strategy={self.strategy} divides {needs}, and no parameter of this model has an axis of"
        f" them{': it wants a transformer with --model.experts' if needs == 'experts' else ''}"
      )

    def sharding(path: Any, leaf: Any) -> NamedSharding:
      here = parts(path)
      like = [each for each in known if _within(each, here) and len(known[each]) == len(leaf.shape)]
      if not like:
        return self.replicated
      found = max(like, key=len)
      return NamedSharding(self.mesh, self.spec("/".join(found), known[found], leaf.shape))

    return jax.tree_util.tree_map_with_path(sharding, state)


def partition(axes: Axes, rules: Sequence[Rule], mesh: Mesh) -> PartitionSpec:
  """The table's answer for a tensor with these axes, whatever their sizes."""
  spec: list[Any] = [None] * len(axes)
  used: set[str] = set()
  for name, answer in rules:
    free = tuple(axis for axis in several(answer) if axis in mesh.shape and axis not in used)
    if name in axes and free and spec[axes.index(name)] is None:
      spec[axes.index(name)] = free[0] if len(free) == 1 else free
      used.update(free)
  return PartitionSpec(*spec)


def parts_of(axis: Any, mesh: Mesh) -> int:
  """How many parts an entry of a PartitionSpec makes."""
  return 1 if axis is None else math.prod(mesh.shape[each] for each in several(axis))


def what_would(size: int, axis: Any, count: int) -> str:
  """What would divide what `count` devices of an axis of the mesh cannot, for the end of an error line."""
  fewer = math.gcd(size, count)
  if fewer == 1 or not isinstance(axis, str):
    return "another --parallel.mesh or strategy may"
  return f"--parallel.mesh=…{axis}:{fewer} would"


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
