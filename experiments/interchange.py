"""Between runs and Hugging Face directories: what --init_from=hf:DIR takes, and the word export.

Which layouts an experiment has is its Definition's `interchange`; the layouts themselves are in research/interchange.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import flags
from experiments.schema import flag
from research.data import library_file
from research.errors import UserError
from research.interchange import files
from research.interchange.family import NEUTRAL, Family, to_ours, to_theirs

if TYPE_CHECKING:
  from experiments.command import Definition, Request

PREFIX = "hf:"


@dataclasses.dataclass(frozen=True)
class Exporting:
  """The word export's own flags, on the command line only"""

  to: str = flag("", "new or empty directory for the model, in Hugging Face's safetensors layout")

  def check(self) -> None:
    """No combination of these is impossible."""


@dataclasses.dataclass(frozen=True)
class Interchange:
  """What an experiment exchanges with Hugging Face.

  Attributes:
    families: the layouts that it reads, of several for one model_type the one for the run's head; a run is written in
      the first that can express it.
    fields: (config, splits) → `fields_of` the network that `build` trains, and what else the families name.
    beside: (config, splits) → {file name: JSON content} to write with the model; what stands under config.json is
      added to its entries.
  """

  families: tuple[Family, ...]
  fields: Callable[[Any, Any], dict[str, Any]]
  beside: Callable[[Any, Any], dict[str, Any]] = lambda config, splits: {}


def directory_of(value: str) -> Path | None:
  """DIR of hf:DIR, None for what names a run."""
  return Path(value.removeprefix(PREFIX)).expanduser() if value.startswith(PREFIX) else None


def model_flags(definition: "Definition", directory: Path) -> list[str]:
  """config.json as --model flags, where this experiment has them. Raises UserError for what it cannot express."""
  _, fields = _read(definition, directory)
  known = {leaf.name for leaf in flags.leaves(definition.schema)}
  return [
    f"--model.{name}={flags.write_value(value)}" for name, value in fields.items() if f"model.{name}" in known
  ]


def arrays(
  definition: "Definition", directory: Path, config: Any, splits: Any
) -> tuple[dict[str, np.ndarray], list[str]]:
  """({path in a state: array} of a directory's parameters, names of tensors that were left out).

  Raises:
    UserError: the network that the flags and the data make is another one, or the tensors are not config.json's.
  """
  ours = definition.interchange.fields(config, splits)
  family, fields = _read(definition, directory, ours)
  typed = {leaf.name for leaf in flags.leaves(definition.schema)}  # these a user may have changed
  if (size := fields.get("vocabulary")) is not None and size != ours["vocabulary"]:
    mend = f"; --text.tokenizer=init takes its {files.TOKENIZER}" if (directory / files.TOKENIZER).exists() else ""
    raise UserError(
      f"init_from: {directory} has embeddings of {size} tokens, and the run's tokens are {ours['vocabulary']}{mend}"
    )
  neutral = {*NEUTRAL, *family.heads} - {entry.field for entry in family.entries if entry.field not in family.heads}
  for name, value in ours.items():
    wanted = fields.get(name, 0)  # what config.json says nothing of is not there
    if name in neutral or f"model.{name}" in typed:
      continue
    if value != wanted and (value or wanted):
      raise UserError(f"init_from: {directory} has {name}={wanted}, and this run {value}")
  with files.open_tensors(directory) as tensors:
    found, left_out = to_ours(family, fields, tensors.shapes, tensors.get, str(directory))
  return {f"params/{path}": array for path, array in found.items()}, left_out


def check_word(definition: "Definition", asked: Exporting) -> None:
  """Raises UserError where the word export can do nothing, before any data are opened."""
  if definition.interchange is None:
    raise UserError(f"export: experiments.{definition.name} has no Hugging Face layout; python -m experiments.gpt has")
  if not asked.to:
    raise UserError("export: --to=DIRECTORY says where; it is made")
  files.check_target(Path(asked.to).expanduser())


def export(definition: "Definition", request: "Request") -> int:
  """Writes a run's best checkpoint, or its newest, as a directory that transformers can open; returns the exit code.

  Averaged parameters are written where the run has them.
  """
  import jax

  from experiments import work
  from research.checkpoint import named

  job, state, step = work.load(definition, request)
  target = Path(request.exporting.to).expanduser()
  arrays = named(jax.device_get(state.extra.get("ema", state.params)))
  told = write(definition.interchange, request.config, job.data.splits, arrays, target)
  print(f"{request.workdir}, step {step}: {told}")
  return work.DONE


def write(door: Interchange, config: Any, splits: Any, params: Mapping[str, np.ndarray], target: Path) -> str:
  """Parameters by path → the directory `target`; returns what was written, in words. Raises UserError as `export`."""
  family, fields = layout(door, config, splits)
  documents = dict(door.beside(config, splits))
  entries = {**family.config(fields), **documents.pop(files.CONFIG, {})}
  tensors = to_theirs(family, fields, params)
  files.write(target, {files.CONFIG: entries, **documents}, tensors)
  size = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
  names = ", ".join([files.CONFIG, files.TENSORS, *documents])
  lines = [f"{len(tensors)} tensors, {size:,.1f} MB, as {family.architecture} in {target} ({names})"]
  if left := [path for path in params if path.split("/")[0] in family.leaves]:
    lines.append(f"  without {', '.join(left)}: {family.architecture} has no such head")
  if (tokenizer := getattr(splits, "tokenizer", None)) is not None and files.TOKENIZER not in documents:
    lines.append(f"  without {files.TOKENIZER}: no such file divides texts as --text.tokenizer={tokenizer.kind} does")
  return "\n".join(lines)


def layout(door: Interchange, config: Any, splits: Any) -> tuple[Family, dict[str, Any]]:
  """The first layout that can express the network, and its fields. Raises UserError where none can, and why."""
  fields = door.fields(config, splits)
  families = [family for family in door.families if family.has_head_of(fields)]
  against = {family.model_type: family.differences(fields) for family in families}
  for family in families:
    if not against[family.model_type]:
      return family, fields
  told = "; ".join(f"{name}: {', '.join(wrong)}" for name, wrong in against.items())
  raise UserError(f"export: no layout can express this model ({told})")


def tokenizer_files(config: Any, splits: Any) -> dict[str, Any]:
  """A language model's `beside`: its tokenizer, and what stands between documents."""
  tokenizer = splits.tokenizer
  found: dict[str, Any] = {files.CONFIG: {"bos_token_id": tokenizer.end, "eos_token_id": tokenizer.end}}
  if (description := library_file.to_library(tokenizer.content())) is not None:
    found |= tokenizer_documents(config, description, dict.fromkeys(("bos_token", "eos_token"), tokenizer.end_token))
  return found


def tokenizer_documents(config: Any, description: dict[str, Any], tokens: dict[str, str]) -> dict[str, Any]:
  """What transformers opens as a tokenizer: the library's file, and which of its tokens are there for what."""
  about = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    **tokens,
    "clean_up_tokenization_spaces": False,
    "model_max_length": config.model.context,
  }
  return {files.TOKENIZER: description, files.TOKENIZER_CONFIG: about}


def _read(
  definition: "Definition", directory: Path, ours: dict[str, Any] | None = None
) -> tuple[Family, dict[str, Any]]:
  """Which layout a directory is of, and the fields of its network; with `ours`, the layout that has our head."""
  if definition.interchange is None:
    raise UserError(f"init_from: experiments.{definition.name} reads no Hugging Face layout; give a run's directory")
  content = files.read_config(directory)
  every = definition.interchange.families
  name = content.get("model_type")
  families = [family for family in every if family.model_type == name]
  if not families:
    raise UserError(
      f"init_from: {directory}/config.json has model_type={json.dumps(name)}; experiments.{definition.name} takes"
      f" {', '.join(dict.fromkeys(family.model_type for family in every))}"
    )
  family = next((each for each in families if ours is not None and each.has_head_of(ours)), families[0])
  return family, family.fields(content, str(directory))
