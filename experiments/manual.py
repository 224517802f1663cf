"""--help and --list: what an experiment can be told, on a screen or two."""

import re
import shutil
import textwrap
from typing import TYPE_CHECKING

from experiments import flags
from experiments.interchange import Exporting
from experiments.schema import Asking, Experiment, Resuming

if TYPE_CHECKING:
  from experiments.command import Definition


def help_text(definition: "Definition", arguments: list[str]) -> str:
  """The manual: usage, presets, then the flags group by group with the values that `arguments` give them."""
  config, _ = flags.parse(definition.schema, arguments)
  width = min(shutil.get_terminal_size().columns, 120)
  name, exported = f"python -m experiments.{definition.name}", definition.interchange is not None
  lines = [
    (definition.about or "").strip().splitlines()[0],
    "",
    "usage:",
    f"  {name} [train] --config=PRESET [--flag=value …]   train, or go on where a stopped run was",
    f"  {name} eval --config=RUN                          evaluate a run's last checkpoint",
    *([f"  {name} sample --config=RUN                        {definition.samples}"] * bool(definition.samples)),
    *([f"  {name} export --config=RUN --to=DIRECTORY         the model for transformers, as safetensors"] * exported),
    f"  {name} preflight --config=PRESET                  parameters, memory, FLOPs, what is sent; trains nothing",
    "",
    "  --config=NAME|PATH|RUN    a preset, a flag file, or a run's directory; flags after it override it",
    "  --workdir=DIRECTORY       where the run is kept (runs/EXPERIMENT-PRESET)",
    "  --flagfile=PATH           read flags from a file; may stand in a flag file too",
    "  --list, --help            the presets; this text (with --config: that preset's values)",
    "",
    "presets: " + ", ".join(preset for preset, _ in _presets(definition)),
  ]
  group = None
  found = flags.values(config)
  # What this experiment adds comes first: every other has the rest too.
  for leaf in sorted(flags.leaves(definition.schema), key=lambda leaf: leaf.group.__module__ == Experiment.__module__):
    if leaf.name in definition.schema.unused:
      continue
    if leaf.group is not group:
      group = leaf.group
      lines += ["", _heading(definition, group)]
    lines += flag_lines(leaf, found[leaf.name], width)
  for words_own in (Resuming, Asking, *([definition.sampling] * bool(definition.samples)), *([Exporting] * exported)):
    lines += ["", _heading(definition, words_own)]
    for leaf in flags.leaves(words_own):
      lines += flag_lines(leaf, leaf.field.default, width)
  return "\n".join(lines)


def list_text(definition: "Definition") -> str:
  """The presets, each with the first line of its opening comment."""
  rows = _presets(definition)
  width = max((len(name) for name, _ in rows), default=0)
  return "\n".join(f"{name:<{width}}  {comment}" for name, comment in rows)


def _presets(definition: "Definition") -> list[tuple[str, str]]:
  rows = []
  for path in sorted(definition.directory.glob("*.flags")):
    first = next((line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")), "")
    rows.append((path.stem, first.lstrip("# ").strip()))
  return rows


def _heading(definition: "Definition", group: type) -> str:
  if group is definition.schema or definition.schema.__mro__.count(group):
    return "the experiment:"
  return re.sub(r"\s+", " ", (group.__doc__ or group.__name__)).strip().rstrip(".").lower() + ":"


def flag_lines(leaf: flags.Leaf, value: object, width: int) -> list[str]:
  """A flag with its value, and what it is beside it, in lines of `width` columns."""
  head = f"  --{leaf.name}={flags.write_value(value)}"
  metadata = leaf.field.metadata
  text = metadata["help"]
  if metadata["choices"]:
    text += f" ({', '.join(metadata['choices'])})"
  column = 42
  body = textwrap.wrap(text, max(width - column, 30))
  if len(head) >= column - 1:
    return [head, *(" " * column + line for line in body)]
  return [head.ljust(column) + body[0], *(" " * column + line for line in body[1:])]
