"""A Hugging Face directory as a network of ours with its parameters, and back: the door for scripts and notebooks."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
from flax import traverse_util

from research.errors import UserError
from research.interchange import files
from research.interchange.bert import BERT
from research.interchange.family import Family, Fields, to_ours, to_theirs
from research.interchange.gpt2 import GPT2
from research.interchange.llama import LLAMA, MISTRAL, QWEN3
from research.interchange.vit import VIT
from research.models.language_model import LanguageModel
from research.models.transformer_config import Config
from research.models.vit import ViT

FAMILIES = {family.model_type: family for family in (GPT2, LLAMA, MISTRAL, QWEN3, BERT, VIT)}


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A network and its parameters, as `network.apply({"params": params}, …)` takes them.

  Attributes:
    network: a LanguageModel or a ViT.
    params: nested dictionaries of numpy float32 arrays.
    family: the layout that they came in.
    fields: of the network, and what else the layout names.
    left_out: tensors that are no parameter of ours.
  """

  network: nn.Module
  params: dict[str, Any]
  family: Family
  fields: Fields
  left_out: tuple[str, ...] = ()


def load(directory: Path) -> Pretrained:
  """Reads config.json and the safetensors. Raises UserError for whatever is wrong with them."""
  content = files.read_config(directory)
  family = FAMILIES.get(content.get("model_type"))
  if family is None:
    name = content.get("model_type")
    raise UserError(f"hf: {directory}/config.json has model_type={name!r}; {', '.join(FAMILIES)} can be read")
  fields = family.fields(content, str(directory))
  with files.open_tensors(directory) as tensors:
    arrays, left_out = to_ours(family, fields, tensors.shapes, tensors.get, str(directory))
  if lacking := [path for row in family.rows(fields) for path in row.ours if path not in arrays]:
    raise UserError(f"hf: {directory} has no head that fits its config.json: no {', '.join(lacking)}")
  params = traverse_util.unflatten_dict(arrays, sep="/")
  return Pretrained(network_of(fields), params, family, fields, tuple(left_out))


def save(directory: Path, family: Family, fields: Fields, params: Mapping[str, Any]) -> None:
  """Writes a directory that transformers can open. Raises UserError where the layout cannot express the network."""
  if wrong := family.differences(fields):
    raise UserError(f"export: the {family.model_type} layout cannot express this model: {', '.join(wrong)}")
  arrays = {path: np.asarray(array) for path, array in traverse_util.flatten_dict(dict(params), sep="/").items()}
  files.write(directory, {files.CONFIG: family.config(fields)}, to_theirs(family, fields, arrays))


def network_of(fields: Fields) -> nn.Module:
  """What `fields_of` was given."""
  config = Config(**_of(Config, fields), rotary=fields["positions"] == "rotary")
  module = ViT if "patch" in fields else LanguageModel
  return module(config, **_of(module, fields))


def _of(kind: type, fields: Fields) -> dict[str, Any]:
  names = {field.name for field in dataclasses.fields(kind)} - {"parent", "name", "config", "rotary"}
  return {name: value for name, value in fields.items() if name in names}
