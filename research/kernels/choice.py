"""Which form of an operation runs.

Who says so, the first that does: the call's argument `form`, `with use(…)`, the flag --kernels, the operation's table.

A form that was asked for by name never falls back: where it cannot run, the call raises with the reason. The table's
forms are tried in turn, and `xla` is the last of every table. What the table chooses is chosen for each platform
apart and decided when a program is lowered (`lax.platform_dependent`): one traced on a laptop for a TPU has the TPU's.
"""

import contextlib
import contextvars
import dataclasses
import functools
import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax import lax

from research import nearest
from research.errors import UserError

PLATFORMS = ("cpu", "cuda", "tpu")  # as lax.platform_dependent names them
OPS: dict[str, "Op"] = {}

_LOG = logging.getLogger(__name__)
_USED = jax.make_user_context(())  # part of every jit's cache key: another form is another program
_configured: dict[str, str] = {}  # --kernels, of all threads
_logged: set[tuple[str, str, str]] = set()
_thread = threading.local()
_target: contextvars.ContextVar[tuple[str, Any]] = contextvars.ContextVar("target", default=("", None))
_divided: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar("divided", default=frozenset())


@dataclasses.dataclass(frozen=True)
class Form:
  """One way to compute an operation.

  Attributes:
    run: (*arrays, **options) → the result.
    platforms: where it can; empty: everywhere. One that is for some platforms is a kernel of its own there.
    limits: (shapes, dtypes, platform, **options) → why it cannot, or None; None: it always can.
    worth: the same → whether the table takes it, where it can; None: always. Who asks for it by name gets it anyway.
    alone: instead of `run` where a program can have no other form of the operation. Forms among which the platform
      decides have to give the same arrays; this one may give more.
    missing: () → why it cannot on this machine, whatever the arrays, or None.
  """

  run: Callable[..., Any]
  platforms: tuple[str, ...] = ()
  limits: Callable[..., str | None] | None = None
  worth: Callable[..., bool] | None = None
  alone: Callable[..., Any] | None = None
  missing: Callable[[], str | None] | None = None

  def supports(self, shapes: Sequence[tuple], dtypes: Sequence[Any], platform: str, **options: Any) -> str | None:
    """Why this form cannot run on arrays of these shapes and dtypes, or None where it can."""
    if reason := self.absent(platform):
      return reason
    return None if self.limits is None else self.limits(shapes, dtypes, platform, **options)

  def absent(self, platform: str) -> str | None:
    """Why this form cannot run on a platform, whatever the arrays, or None."""
    if self.platforms and platform not in self.platforms:
      return f"it runs on {' and '.join(self.platforms)}, and this is {platform}"
    return None if self.missing is None else self.missing()


class Op:
  """An operation, or its gradient: called like a function of arrays, with options by name.

  Args:
    name: as --kernels and the run's header say it; "conv.weight_gradient" is a part of "conv".
    forms: {name: form}; "xla" is among them and runs everywhere.
    table: {platform: names of forms}, the best first; xla behind them need not be named.
  """

  def __init__(self, name: str, forms: Mapping[str, Form], table: Mapping[str, Sequence[str]]):
    named = {form for names in table.values() for form in names}
    if "xla" not in forms or not named <= forms.keys() or not table.keys() <= set(PLATFORMS):
      raise ValueError(f"kernels: {name} has forms {[*forms]} and a table {dict(table)}")
    if name in OPS:
      raise ValueError(f"kernels: there are two operations {name}")
    self.name, self.forms, self.table = name, dict(forms), dict(table)
    OPS[name] = self

  def __call__(self, *arrays: jax.Array, form: str | None = None, **options: Any) -> Any:
    """Raises UserError where a form that was asked for, here or elsewhere, cannot run or is none."""
    shapes, dtypes = tuple(x.shape for x in arrays), tuple(x.dtype for x in arrays)
    here = platform()
    if asked := form or self.asked:
      self.check(asked)
      if reason := self.forms[asked].supports(shapes, dtypes, here, **options):
        raise UserError(f"kernels: {self.name} cannot run as {asked}: {reason}")
      _record(self.name, asked)
      return (self.forms[asked].alone or self.forms[asked].run)(*arrays, **options)
    chosen = {each: self.choose(shapes, dtypes, each, **options) for each in PLATFORMS}
    _record(self.name, chosen.get(here, "xla"))
    only = self.forms[chosen[PLATFORMS[0]]]
    if {*chosen.values(), chosen.get(here, "xla")} == {chosen[PLATFORMS[0]]}:
      return (only.alone or only.run)(*arrays, **options)
    run = {name: functools.partial(self.forms[name].run, **options) for name in {"xla", *chosen.values()}}
    default, others = run["xla"], {each: run[name] for each, name in chosen.items() if name != "xla"}
    return lax.platform_dependent(*arrays, **others, default=default)

  @property
  def asked(self) -> str | None:
    """The form that `use` or else --kernels names for this operation."""
    return dict(_USED.value).get(self.name) or _configured.get(self.name)

  def choose(self, shapes: Sequence[tuple], dtypes: Sequence[Any], where: str, **options: Any) -> str:
    """The table's form for these arrays on a platform; a form that is passed over on this machine's is logged, once."""
    # Gradients are traced after the shard_map that they are in, and know it by its axes alone.
    cut = frozenset() if jax.sharding.get_abstract_mesh().manual_axes else _divided.get()
    for name in self.table.get(where, ()):
      form = self.forms[name]
      if form.platforms and cut:
        continue  # a kernel, which XLA cannot divide
      if "stream_length" in cut:
        continue  # forms for CPUs make one axis of batch and length, which gathers what is cut along both
      if (reason := form.supports(shapes, dtypes, where, **options)) is None:
        if form.worth is None or form.worth(shapes, dtypes, where, **options):
          return name
        continue
      if where == platform():
        self._log(name, where, reason)
    return "xla"

  def _log(self, form: str, where: str, reason: str) -> None:
    """Once: for a form that is not here at all, or for this operation that cannot have it."""
    what = "no operation runs" if self.forms[form].absent(where) else f"{self.name.partition('.')[0]} does not run"
    if (form, what, reason) not in _logged:
      _logged.add((form, what, reason))
      _LOG.warning("kernels: %s as %s: %s", what, form, reason)

  def check(self, form: str) -> None:
    """Raises UserError for a name that is no form of it."""
    if form not in self.forms:
      raise UserError(f"kernels: {self.name} has no form {form!r}{nearest.hint(form, self.forms)}")


def parse(written: str) -> dict[str, str]:
  """--kernels, such as "conv=xla,sums.rows=cpu", as {operation: form}; the name before the point means all its parts.

  Raises UserError for an operation or a form that there is not.
  """
  entries = [tuple(part.strip() for part in entry.partition("=")) for entry in written.split(",") if entry.strip()]
  if not all(equals for _, equals, _ in entries) or len({name for name, _, _ in entries}) < len(entries):
    raise UserError(f"flags: --kernels={written} is no list of OPERATION=FORM, each operation once")
  forms = {}
  for name, _, form in sorted(entries, key=lambda entry: "." in entry[0]):  # what is said of a part wins
    parts = [op for op in OPS.values() if name in (op.name, op.name.partition(".")[0])]
    if not parts:
      names = sorted({part for op in OPS for part in (op, op.partition(".")[0])})
      raise UserError(f"flags: --kernels has no operation {name!r}{nearest.hint(name, names)}")
    if not (able := [op for op in parts if form in op.forms]):
      parts[0].check(form)
    forms |= {op.name: form for op in able}
  return forms


@contextlib.contextmanager
def use(**forms: str) -> Iterator[None]:
  """Within it, operations run as named: `with use(attention="xla"):`, or `use(**{"conv.weight_gradient": "xla"})`.

  For this thread. A function that is jitted already is traced anew, as the forms are part of what it is remembered by.
  Raises UserError as `parse` does.
  """
  said = parse(",".join(f"{name}={form}" for name, form in forms.items()))
  with _USED(tuple(sorted({**dict(_USED.value), **said}.items()))):
    yield


@contextlib.contextmanager
def divided(axes: Collection[str]) -> Iterator[None]:
  """Within it XLA divides what is traced by these axes of activations: tables pass over forms that it cannot divide."""
  token = _divided.set(frozenset(axes))
  try:
    yield
  finally:
    _divided.reset(token)


def carried(function: Callable[..., Any]) -> Callable[..., Any]:
  """The function for another thread, with what `use` says in this one."""
  said = _USED.value

  def run(*args: Any, **kwargs: Any) -> Any:
    with _USED(said):
      return function(*args, **kwargs)

  return run


def without_effect(written: str, forms: Mapping[str, str]) -> list[str]:
  """What --kernels asks for in vain, a line each, where `forms` are those of a program: operations that are not in it,
  and parts of operations that have no such form and run as the table says."""
  said, lines = parse(written), []
  for entry in filter(None, map(str.strip, written.split(","))):
    name = entry.partition("=")[0].strip()
    parts = [op for op in OPS if name in (op, op.partition(".")[0])]
    if not any(part in forms for part in parts):
      lines.append(f"--kernels={entry} has no effect on a training step: there is no {name} in it")
    elif others := [part for part in parts if part in forms and part not in said]:
      lines.append(f"--kernels={entry}: {' and '.join(others)} cannot, and {forms[others[0]]} runs")
  return lines


@contextlib.contextmanager
def configured(written: str) -> Iterator[None]:
  """Within it, in every thread, operations run as --kernels says. What was traced before it keeps its forms.

  Raises UserError as `parse` does, and for a form that this machine cannot run, whatever the arrays.
  """
  before, forms = dict(_configured), parse(written)
  for name, form in forms.items():
    if reason := OPS[name].forms[form].absent(platform()):
      raise UserError(f"flags: --kernels={written}: {name} cannot run as {form}: {reason}")
  _configured.update(forms)
  try:
    yield
  finally:
    _configured.clear()
    _configured.update(before)


@contextlib.contextmanager
def recording() -> Iterator[dict[str, str]]:
  """Yields {operation: form, or forms with + between} of what this thread traces within it, for its own platform."""
  found: dict[str, str] = {}
  stack = _thread.__dict__.setdefault("stack", [])
  stack.append(found)
  try:
    yield found
  finally:
    stack.pop()


@contextlib.contextmanager
def noting() -> Iterator[list[str]]:
  """Yields what would be logged of forms that are passed over, and is not meanwhile: a line each."""
  lines: list[str] = []
  handler = logging.Handler()
  handler.emit = lambda record: lines.append(record.getMessage().removeprefix("kernels: "))
  before, propagate = set(_logged), _LOG.propagate
  _logged.clear()
  _LOG.addHandler(handler)
  _LOG.propagate = False
  try:
    yield lines
  finally:
    _LOG.propagate = propagate
    _LOG.removeHandler(handler)
    _logged.clear()
    _logged.update(before)


def say(forms: Mapping[str, str]) -> str:
  """{operation: form} as in a header: "cpu: conv.weight_gradient, sums.rows; xla: attention"."""
  by_form: dict[str, list[str]] = {}
  for name, form in sorted(forms.items()):
    by_form.setdefault(form, []).append(name)
  return "; ".join(f"{form}: {', '.join(names)}" for form, names in sorted(by_form.items()))


def together(*arrays: jax.Array) -> tuple[jax.Array, ...]:
  """The arrays, each differing from device to device as any of them does, inside a shard_map.

  An operation with derivatives of its own asks for this first: what is the same on all devices then has the sum of
  all devices' gradients, which jax.shard_map checks.
  """
  kinds = [jax.typeof(array).manual_axis_type.varying for array in arrays]
  axes = frozenset().union(*kinds)
  missing = [tuple(sorted(axes - kind)) for kind in kinds]
  return tuple(lax.pcast(x, more, to="varying") if more else x for x, more in zip(arrays, missing, strict=True))


@contextlib.contextmanager
def compiling_for(platform: str, device: Any = None) -> Iterator[None]:
  """Within it, programs are for such devices of this platform ("cpu", "cuda" or "tpu"), which need not be here."""
  token = _target.set((platform, device))
  try:
    yield
  finally:
    _target.reset(token)


def platform() -> str:
  """Where programs run that nothing else is said of."""
  if target := _target.get()[0]:
    return target
  backend = jax.default_backend()
  if backend != "gpu":
    return backend
  return "rocm" if "rocm" in jax.devices()[0].client.platform_version.lower() else "cuda"


def device() -> Any:
  """One of the devices that programs run on."""
  return _target.get()[1] or jax.devices()[0]


def _record(name: str, form: str) -> None:
  for found in _thread.__dict__.get("stack", ()):
    found[name] = "+".join(sorted({form, *filter(None, found.get(name, "").split("+"))}))
