"""A Hugging Face directory on the disk: config.json and safetensors, whole or in shards. Nothing else is opened.

What is written is there whole or not at all, and never over anything.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from research.errors import UserError
from research.parsing import parse_json

CONFIG, TENSORS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
_OTHERS = (".bin", ".bin.index.json", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".msgpack")
_READ = ("F32", "BF16", "F16")  # all of which are float32 numbers


class Tensors:
  """The tensors of open files. `shapes` are theirs by name; `get` gives one as float32."""

  def __init__(self, files: Mapping[Path, Any]):
    self._files: dict[str, Any] = {}
    self.shapes: dict[str, tuple[int, ...]] = {}
    self._dtypes: dict[str, str] = {}
    for path, file in files.items():
      for name in file.keys():  # noqa: SIM118  it is no mapping
        if name in self._files:
          raise UserError(f"hf: {path} has {name}, which another file of its directory has too")
        part = file.get_slice(name)
        self._files[name], self._dtypes[name] = file, part.get_dtype()
        self.shapes[name] = tuple(part.get_shape())

  def get(self, name: str) -> np.ndarray:
    """Raises UserError for a dtype whose numbers float32 has not."""
    if self._dtypes[name] not in _READ:
      raise UserError(f"hf: {name} is {self._dtypes[name]}; {', '.join(_READ)} can be read")
    return np.asarray(self._files[name].get_tensor(name)).astype(np.float32)


def read_config(directory: Path) -> dict[str, Any]:
  """config.json. Raises UserError where the directory or the file is missing or damaged."""
  if directory.suffix.lower() in _OTHERS and not directory.is_dir():
    raise _pickled(directory.name, directory.parent)
  if directory.is_file():
    raise UserError(f"hf: {directory} is a file; name the directory that it lies in")
  if not directory.is_dir():
    raise UserError(f"hf: no directory {directory}; nothing is downloaded here: hf download NAME --local-dir=DIR does")
  return _json(directory / CONFIG)


@contextlib.contextmanager
def open_tensors(directory: Path) -> Iterator[Tensors]:
  """The directory's model.safetensors, or the shards of its index. It is open as long as the context.

  Raises:
    UserError: there is none, only other formats, or one that is damaged.
  """
  try:
    import ml_dtypes  # noqa: F401  numpy then knows bfloat16
    from safetensors import SafetensorError, safe_open
  except ImportError as error:
    raise _no_library(error) from error
  with contextlib.ExitStack() as stack:
    files = {}
    for path in _paths(directory):
      try:
        files[path] = stack.enter_context(safe_open(path, framework="np"))
      except (OSError, SafetensorError) as error:
        raise UserError(f"hf: cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    yield Tensors(files)


def check_target(directory: Path) -> None:
  """Raises UserError for a place that `write` would refuse."""
  try:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
      raise UserError(f"export: {directory} is there already and not empty; give another --to")
  except OSError as error:
    raise UserError(f"export: cannot read {directory}: {error.strerror or error}; give another --to") from error


def write(directory: Path, documents: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
  """A new directory with JSON `documents` by file name and `tensors` in model.safetensors.

  Everything is written beside it first, and then has its name at once.

  Raises:
    UserError: it holds something already, or cannot be written.
  """
  try:
    from safetensors.numpy import save_file
  except ImportError as error:
    raise _no_library(error) from error
  check_target(directory)
  partial = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
  try:
    partial.mkdir(parents=True)
    for name, content in documents.items():
      (partial / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}  # others' bytes go as they lie
    save_file(arrays, partial / TENSORS, metadata={"format": "pt"})
    for path in partial.iterdir():
      _sync(path)
    os.rename(partial, directory)  # onto nothing or an empty directory; onto any other it fails
    _sync(directory.parent)
  except OSError as error:
    shutil.rmtree(partial, ignore_errors=True)
    reason = error.strerror or error
    raise UserError(f"export: cannot write {directory}: {reason}; free space or give another --to") from error
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise


def _paths(directory: Path) -> list[Path]:
  if (directory / TENSORS).is_file():
    return [directory / TENSORS]
  if (directory / INDEX).is_file():
    shards = _json(directory / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
      raise UserError(f"hf: {directory / INDEX} has no weight_map")
    names = sorted({str(name) for name in shards.values()})
    for name in names:
      if not name.endswith(".safetensors") or Path(name).name != name:
        raise UserError(f"hf: {directory / INDEX} names {name!r}; a shard is a .safetensors file beside it")
    return [directory / name for name in names]
  for path in sorted(directory.iterdir()):
    if path.name.endswith(_OTHERS):
      raise _pickled(path.name, directory)
  raise UserError(f"hf: {directory} has neither {TENSORS} nor {INDEX}")


def _pickled(name: str, directory: Path) -> UserError:
  return UserError(
    f"hf: {name} is not read: only safetensors are (a pickle can run any code when it is opened); where you trust it,"
    f" transformers writes them: AutoModel….from_pretrained({str(directory)!r}).save_pretrained(NEW)"
  )


def _no_library(error: ImportError) -> UserError:
  return UserError(f"hf: safetensors need the library safetensors ({error}): pip install 'flagship[hf]'")


def _json(path: Path) -> dict[str, Any]:
  try:
    content = parse_json(path.read_text("utf-8"))
  except OSError as error:
    raise UserError(f"hf: cannot read {path}: {error.strerror or error}") from error
  except (ValueError) as error:
    raise UserError(f"hf: {path} is damaged ({error})") from error
  if not isinstance(content, dict):
    raise UserError(f"hf: {path} is damaged (it is no JSON object)")
  return content


def _sync(path: Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
