"""What a family of Hugging Face's models is: two tables, each read in both directions.

One has entries of config.json beside fields of our networks, the other has tensors beside arrays. Whatever ours cannot
express is refused by its name, never left out. No file is opened here; files.py does that.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from research.errors import UserError

Fields = Mapping[str, Any]  # of a network, by name, as `fields_of` gives them

# What changes training and not what a network computes, or what another field says already.
NEUTRAL = (
  "dropout", "stochastic_depth", "initializer", "unroll", "remat", "dtype", "rotary", "rotary_base",
  "experts_per_token", "capacity_factor", "ngram_rows",
)  # fmt: skip
# What no family has; one that has it says so.
PLAIN = {"window": 0, "qk_norm": False, "attention_softcap": 0.0, "experts": 0}
PLAIN_LANGUAGE = {
  **PLAIN, "logit_softcap": 0.0, "token_types": 0, "embedding_norm": False, "transform": False, "head_bias": False,
  "ngrams": (),
}  # fmt: skip
GELUS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu", "gelu": "gelu_exact", "relu": "relu"}
REQUIRED = object()  # no value stands for an absent entry


@dataclasses.dataclass(frozen=True)
class Entry:
  """An entry of config.json that is a field of ours.

  Attributes:
    key: its name there.
    field: its name here.
    kind: int (at least 1), float, bool, str, or tuple (two ints, or one for both).
    otherwise: what null or no entry means: a value, or a function of the fields before it.
    words: theirs → ours; of several for one of ours the first is written.
    nothing: what a 0 of ours is written as; None: null.
  """

  key: str
  field: str
  kind: type = int
  otherwise: Any = REQUIRED
  words: Mapping[str, str] | None = None
  nothing: int | None = None

  def read(self, config: Mapping[str, Any], before: Fields, where: str) -> Any:
    """The field's value. Raises UserError for an entry that is missing, or is no such value."""
    value = config.get(self.key)
    if value is None:
      if self.otherwise is REQUIRED:
        raise UserError(f"hf: {where}/config.json has no {self.key}")
      return self.otherwise(before) if callable(self.otherwise) else self.otherwise
    if self.words is not None:
      if not isinstance(value, str) or value not in self.words:
        raise UserError(f"hf: {where}/config.json has {self.key}={value!r}; only {', '.join(self.words)} can be taken")
      return self.words[value]
    if self.kind is tuple:
      sides = tuple(value) if isinstance(value, list) else (value, value)
      if len(sides) == 2 and all(_is(side, int) for side in sides):
        return sides
    elif _is(value, self.kind):
      return self.kind(value)
    noun = {int: "a whole number, at least 1", float: "a number", bool: "true or false", tuple: "a side or two"}
    raise UserError(f"hf: {where}/config.json has {self.key}={value!r}; it is {noun[self.kind]}")

  def write(self, value: Any) -> Any:
    """The entry for a field's value."""
    if self.words is not None:
      return next((theirs for theirs, ours in self.words.items() if ours == value), None)
    if self.kind is tuple:
      return value[0] if value[0] == value[1] else list(value)
    return self.nothing if self.kind is int and not value else self.kind(value)

  def takes(self, value: Any) -> bool:
    """Whether `write` has an entry for it: a 0 only where null is read as 0 again, or something stands for it."""
    if self.kind is int and not value:
      return self.otherwise == 0 or self.nothing is not None
    return self.words is None or value in self.words.values()


@dataclasses.dataclass(frozen=True)
class Row:
  """A tensor of theirs and the arrays of ours that it holds.

  Attributes:
    theirs: its name; {} stands for a block's number, and ours is then stacked on a first axis.
    shape: of theirs.
    ours: paths; the arrays of several lie side by side on the last of our axes.
    order: which axis of theirs each of ours is; (): the same.
    joined: ours has all axes but the last as one.
    also: names under which it is written too, and passed over when read.
    copies: names under which it may stand too, as files of some versions have it; it must then be the same.
    head: it belongs to a task, and a file may lack it.
    zeros: ours may lack it, and it is written as zeros.
  """

  theirs: str
  shape: tuple[int, ...]
  ours: tuple[str, ...]
  order: tuple[int, ...] = ()
  joined: bool = False
  also: tuple[str, ...] = ()
  copies: tuple[str, ...] = ()
  head: bool = False
  zeros: bool = False

  @property
  def stacked(self) -> bool:
    return "{}" in self.theirs

  def to_ours(self, tensor: np.ndarray) -> list[np.ndarray]:
    """Theirs (of one block) → the arrays of `ours`."""
    turned = tensor.transpose(self.order) if self.order else tensor
    return np.split(turned.reshape(-1, turned.shape[-1]) if self.joined else turned, len(self.ours), axis=-1)

  def to_theirs(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """What `to_ours` took apart. Raises ValueError for arrays of other sizes."""
    order = self.order or tuple(range(len(self.shape)))
    turned = np.concatenate(arrays, axis=-1).reshape([self.shape[axis] for axis in order])
    return np.ascontiguousarray(turned.transpose(np.argsort(order)))

  def our_shape(self) -> tuple[int, ...]:
    """Of each array of `ours`, without the axis of blocks."""
    *first, last = [self.shape[axis] for axis in self.order] if self.order else self.shape
    return (*([math.prod(first)] if self.joined else first), last // len(self.ours))


def dense(theirs: str, ours: str, width_in: int, width_out: int, *, bias: bool = True, **more: Any) -> list[Row]:
  """torch's Linear, whose weight is (out, in), beside a kernel (in, out)."""
  rows = [Row(f"{theirs}.weight", (width_out, width_in), (f"{ours}/kernel",), order=(1, 0), **more)]
  return [*rows, Row(f"{theirs}.bias", (width_out,), (f"{ours}/bias",), **more)] if bias else rows


def norm(theirs: str, ours: str, width: int, *, bias: bool = True, **more: Any) -> list[Row]:
  rows = [Row(f"{theirs}.weight", (width,), (f"{ours}/scale",), **more)]
  return [*rows, Row(f"{theirs}.bias", (width,), (f"{ours}/bias",), **more)] if bias else rows


def named_classes(config: dict[str, Any]) -> dict[str, Any]:
  """A classifier's `plain`: the number of classes is written only as their names."""
  labels = config.get("id2label")
  return {**config, "num_labels": len(labels)} if isinstance(labels, dict) and labels else config


@dataclasses.dataclass(frozen=True)
class Family:
  """One layout.

  Attributes:
    model_type: as config.json has it.
    architecture: the class of transformers that is written.
    prefix: what names begin with in a file with a head, and not in one of the bare model.
    entries: of config.json; they are read in this order.
    fixed: entry → the values that ours can be; the first is written, and stands for an absent one.
    needs: fields by which ours must be built, from those that entries gave.
    rows: fields → the tensors.
    dropouts: entries of dropout rates: ours where they agree.
    ignored: patterns of names that are no parameter of ours, and are left out.
    renamed: (pattern, replacement) of names that older files have.
    heads: fields in which a task's head may differ. Those of them that `needs` has tell which of several layouts of
      one model_type a network has.
    leaves: modules of ours that it has no place for, and that are not written.
    plain: config.json as it is → the same with `entries` on its first level.
    more: fields → further entries to write.
  """

  model_type: str
  architecture: str
  prefix: str
  entries: tuple[Entry, ...]
  fixed: Mapping[str, tuple]
  needs: Callable[[Fields], dict[str, Any]]
  rows: Callable[[Fields], list[Row]]
  dropouts: tuple[str, ...] = ()
  ignored: tuple[str, ...] = ()
  renamed: tuple[tuple[str, str], ...] = ()
  heads: tuple[str, ...] = ()
  leaves: tuple[str, ...] = ()
  plain: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: config
  more: Callable[[Fields], dict[str, Any]] = lambda fields: {}

  def fields(self, config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """config.json → the fields of the network that computes the same.

    Args:
      config: its content.
      where: the directory, for error lines.

    Raises:
      UserError: an entry is missing, of another kind, or says what our transformer does not do.
    """
    config = self.plain(dict(config))
    for key, values in self.fixed.items():
      if config.get(key, values[0]) not in values:
        raise UserError(f"hf: {where}/config.json has {key}={config[key]!r}, which this transformer is not built for")
    found: dict[str, Any] = {}
    for entry in self.entries:
      found[entry.field] = entry.read(config, found, where)
    rates = [config.get(key) for key in self.dropouts]
    if rates and all(rate == rates[0] and _is(rate, float) and 0 <= rate < 1 for rate in rates):
      found["dropout"] = float(rates[0])
    return {**self.needs(found), **found}

  def config(self, fields: Fields) -> dict[str, Any]:
    """The fields of a network that `differences` has nothing against → config.json's content."""
    return {
      "architectures": [self.architecture],
      "model_type": self.model_type,
      "dtype": "float32",
      **{key: values[0] for key, values in self.fixed.items()},
      **{entry.key: entry.write(fields[entry.field]) for entry in self.entries},
      **dict.fromkeys(self.dropouts, fields.get("dropout", 0.0)),
      **self.more(fields),
    }

  def has_head_of(self, fields: Fields) -> bool:
    """Whether a network of these fields has the head that this layout is for."""
    needs = self.needs(fields)
    return all(fields.get(name, needs[name]) == needs[name] for name in self.heads if name in needs)

  def differences(self, fields: Fields) -> list[str]:
    """What keeps a network of these fields from being written in this layout, a few words each; [] if nothing does."""
    named = {entry.field for entry in self.entries}
    if lacking := named - set(fields):
      return [f"no {name}" for name in sorted(lacking)]
    wrong = [f"{e.field}={fields[e.field]}" for e in self.entries if not e.takes(fields[e.field])]
    needs = {name: value for name, value in self.needs(fields).items() if name not in named}
    for name, value in needs.items():
      # What has no biases is what has them and they are zeros.
      if fields.get(name, value) != value and not (name == "bias" and value):
        wrong.append(f"{name}={fields[name]}, not {value}")
    known = {*named, *needs, *NEUTRAL}
    return wrong + [f"{name}={value}" for name, value in fields.items() if value and name not in known]


def fields_of(network: Any) -> dict[str, Any]:
  """A network's attributes and those of its `config`, by name; sizes that stand for a default are filled in."""
  own = {f.name: getattr(network, f.name) for f in dataclasses.fields(network) if f.name not in ("parent", "name")}
  config = own.pop("config")
  shape = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
  return {**shape, "kv_heads": config.groups, "head_width": config.k, "mlp_width": config.f, **own}


def to_ours(
  family: Family, fields: Fields, shapes: Mapping[str, tuple[int, ...]], get: Callable[[str], np.ndarray], where: str
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Tensors of a file → ({path: array float32} of our parameters, names that were left out).

  Args:
    family: the layout.
    fields: of the network.
    shapes: of the file's tensors, by name.
    get: name → that tensor as float32.
    where: the directory, for error lines.

  Raises:
    UserError: tensors are missing, left over or misshapen, all of which it names, or a copy is another tensor.
  """
  rows, layers = family.rows(fields), fields["layers"]
  names, left_out = _canonical(family, rows, layers, shapes)
  places = {row.theirs.format(i): (row, i) for row in rows for i in (range(layers) if row.stacked else (0,))}
  expected = {name: row for name, (row, _) in places.items()}
  passed_over = {name for row in rows for name in row.also}
  copies = {name: row for row in rows for name in row.copies if name in names and row.theirs in names}
  missing = [name for name, row in expected.items() if name not in names and not row.head]
  extra = [names[name] for name in names if name not in {*expected, *copies, *passed_over}]
  wrong = [
    f"{names[name]} is {list(shapes[names[name]])}, not {list(row.shape)}"
    for name, row in {**expected, **copies}.items()
    if name in names and shapes[names[name]] != row.shape and not row.head
  ]
  parts = [("missing: ", missing), ("not of this model: ", extra), ("misshapen: ", wrong)]
  if told := [title + ", ".join(found) for title, found in parts if found]:
    raise UserError(f"hf: the tensors of {where} are not those of its config.json: {'; '.join(told)}")
  for name, row in copies.items():
    if not np.array_equal(get(names[name]), get(names[row.theirs])):
      raise UserError(f"hf: {where} ties {names[name]} to {names[row.theirs]}, and they differ")
  arrays: dict[str, np.ndarray] = {}
  for name, (row, i) in places.items():
    if name not in names or shapes[names[name]] != row.shape:
      continue  # a head for something else, which is drawn
    for path, array in zip(row.ours, row.to_ours(get(names[name])), strict=True):
      if not row.stacked:
        arrays[path] = np.ascontiguousarray(array)
        continue
      if path not in arrays:
        arrays[path] = np.empty((layers, *array.shape), np.float32)
      arrays[path][i] = array
  return arrays, left_out


def to_theirs(family: Family, fields: Fields, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Our parameters by path → their tensors by name, float32, in the table's order.

  A network without biases is one whose biases are zeros.

  Raises:
    ValueError: the arrays are not those of the fields.
  """
  rows, layers, written = family.rows(fields), fields["layers"], {}
  arrays = {path: array for path, array in arrays.items() if path.split("/")[0] not in family.leaves}
  if unknown := set(arrays) - {path for row in rows for path in row.ours}:
    raise ValueError(f"no place in the {family.model_type} layout for {', '.join(sorted(unknown))}")
  for row in rows:
    zeros = np.zeros((layers, *row.our_shape()) if row.stacked else row.our_shape(), np.float32)
    spared = {path for path in row.ours if row.zeros or (path.endswith("/bias") and not fields["bias"])}
    found = [arrays.get(path, zeros) if path in spared else arrays[path] for path in row.ours]
    for i in range(layers) if row.stacked else (0,):
      tensor = row.to_theirs([np.asarray(array[i] if row.stacked else array, np.float32) for array in found])
      written |= dict.fromkeys([row.theirs.format(i), *row.also], tensor)
  return written


def _canonical(
  family: Family, rows: Sequence[Row], layers: int, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, str], list[str]]:
  """({a name as the table has it: as the file has it}, the file's names that are left out)."""
  table = {row.theirs.format(i) for row in rows for i in range(layers if row.stacked else 1)}
  bare = not any(name.startswith(family.prefix) for name in shapes)
  names, left_out = {}, []
  for theirs in shapes:
    name = theirs
    for pattern, replacement in family.renamed:
      name = re.sub(pattern, replacement, name)
    if bare and name not in table:
      name = f"{family.prefix}{name}"
    if any(re.fullmatch(pattern, name) for pattern in family.ignored):
      left_out.append(theirs)
    else:
      names[name] = theirs
  return names, left_out


def _is(value: Any, kind: type) -> bool:
  if kind is bool or isinstance(value, bool):
    return kind is bool and isinstance(value, bool)
  if kind is int:
    return isinstance(value, int) and 1 <= value < 2**31
  return isinstance(value, int | float) and math.isfinite(value)
