"""Text ↔ token ids: characters, bytes, byte-pair encoding, or words. A tokenizer is learned from training text alone.

It is stored with a run as JSON, and two are the same where their digests are. Axes: T tokens, V vocabulary.
"""

from __future__ import annotations

import collections
import functools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from research.data import fingerprint as fingerprints
from research.data import library_file
from research.data.library_file import END
from research.errors import UserError
from research.parsing import parse_json

KINDS = ("char", "byte", "bpe")  # of which texts can be written again


class Tokenizer(Protocol):
  """`size` is V. `bytes_V` int32 are the UTF-8 bytes that each token stands for; `end` is END's id."""

  kind: str
  size: int
  end: int

  @property
  def bytes_V(self) -> np.ndarray: ...

  def encode(self, text: str) -> np.ndarray:
    """ids_T int32."""

  def decode(self, ids: Sequence[int]) -> str:
    """The text. UserError for an id outside 0..V−1; bytes that are no UTF-8 become �."""

  def content(self) -> dict:
    """What `load` makes it from again."""


class Characters:
  """A token for each character of the training text, one for any other character, and END."""

  kind, end_token = "char", END

  def __init__(self, characters: str):
    self._characters = characters
    self._code_points = np.frombuffer(characters.encode("utf-32-le"), np.uint32)  # sorted
    self.unknown, self.end, self.size = len(characters), len(characters) + 1, len(characters) + 2

  @property
  def bytes_V(self) -> np.ndarray:
    return np.asarray([*(len(character.encode()) for character in self._characters), 3, 0], np.int32)

  def encode(self, text: str) -> np.ndarray:
    code_points_T = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    place_T = np.searchsorted(self._code_points, code_points_T)
    place_T = np.minimum(place_T, len(self._code_points) - 1)
    return np.where(self._code_points[place_T] == code_points_T, place_T, self.unknown).astype(np.int32)

  def decode(self, ids: Sequence[int]) -> str:
    check_ids(ids, self.size)
    return "".join([*self._characters, "\ufffd", ""][i] for i in ids)

  def content(self) -> dict:
    return {"kind": self.kind, "characters": self._characters}


class Bytes:
  """A token for each of the 256 bytes, and END: knows every text, and learns nothing."""

  kind, size, end, end_token = "byte", 257, 256, END

  @property
  def bytes_V(self) -> np.ndarray:
    return np.asarray([1] * 256 + [0], np.int32)

  def encode(self, text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

  def decode(self, ids: Sequence[int]) -> str:
    check_ids(ids, self.size)
    return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")

  def content(self) -> dict:
    return {"kind": self.kind}


class Words:
  """The commonest words of the training text, without regard to case, and one token for all others: for classifying."""

  kind = "word"
  _WORD = re.compile(r"\w+|[^\w\s]")

  def __init__(self, words: Sequence[str]):
    self._words = list(words)
    self._places = {word: place for place, word in enumerate(self._words, start=1)}
    self.unknown, self.size, self.end = 0, len(self._words) + 1, -1  # a text's end is no token

  @classmethod
  def split(cls, text: str) -> list[str]:
    return cls._WORD.findall(text.lower())

  @property
  def bytes_V(self) -> np.ndarray:
    return np.asarray([3, *(len(word.encode()) for word in self._words)], np.int32)

  def encode(self, text: str) -> np.ndarray:
    return np.asarray([self._places.get(word, self.unknown) for word in self.split(text)], np.int32)

  def decode(self, ids: Sequence[int]) -> str:
    check_ids(ids, self.size)
    return " ".join(self._words[i - 1] if i else "\ufffd" for i in ids)

  def content(self) -> dict:
    return {"kind": self.kind, "words": self._words}


class BytePairs:
  """Byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019) by the library `tokenizers`.

  Args:
    description: the library's JSON.
    end: the token between documents.
    size: V where a model has room for more tokens than there are; 0: as many as there are.
  """

  kind = "bpe"

  def __init__(self, description: str, end: str = END, size: int = 0):
    library = _library()
    try:
      self._tokenizer = library.Tokenizer.from_str(description)
    except Exception as error:  # the library raises its base Exception
      raise UserError(f"data: a tokenizer's description is damaged ({error})") from error
    self._tokenizer.no_truncation()  # which a file from elsewhere may ask for
    self._tokenizer.no_padding()
    self._vocabulary = self._tokenizer.get_vocab()
    used = max(self._vocabulary.values(), default=-1) + 1
    self.size, self.end, self.end_token = max(size, used), self._tokenizer.token_to_id(end), end
    self._description = description
    if self.end is None:
      raise UserError(f"data: a byte-pair tokenizer without a token {end}")
    self._content = {"kind": self.kind, "tokenizer": parse_json(description)}
    self._content |= {} if end == END else {"end": end}
    self._content |= {} if self.size == used else {"size": self.size}

  @functools.cached_property
  def bytes_V(self) -> np.ndarray:
    # Byte-level vocabularies spell each byte as one character, so a token has as many characters as bytes; those that
    # were added to one stand for themselves, or for no text.
    added = self._tokenizer.get_added_tokens_decoder()
    lengths_V = np.zeros(self.size, np.int32)
    for token, place in self._vocabulary.items():
      if place not in added:
        lengths_V[place] = len(token)
      elif not added[place].special and place != self.end:
        lengths_V[place] = len(token.encode())
    return lengths_V

  def encode(self, text: str) -> np.ndarray:
    return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

  def decode(self, ids: Sequence[int]) -> str:
    check_ids(ids, self.size)
    return self._tokenizer.decode(list(map(int, ids)), skip_special_tokens=True)

  def content(self) -> dict:
    return self._content


def learn(kind: str, documents: Iterable[str], vocabulary: int = 4096) -> Tokenizer:
  """A tokenizer of `kind` from training documents; `vocabulary` is V for bpe, at most V for word.

  Raises UserError for an impossible V.
  """
  if kind == "byte":
    return Bytes()
  if kind == "char":
    return Characters("".join(sorted(set().union(*documents))))
  if kind == "word":
    counts = collections.Counter(word for document in documents for word in Words.split(document))
    ordered = sorted(counts, key=lambda word: (-counts[word], word))  # ties by the word, not by who came first
    return Words(ordered[: vocabulary - 1])
  if kind != "bpe":
    raise UserError(f"data: no tokenizer {kind!r} ({', '.join((*KINDS, 'word'))})")
  if vocabulary < 257:
    raise UserError(f"data: a byte-pair vocabulary of {vocabulary} has no room for the 256 bytes and {END}")
  library = _library()
  tokenizer = library.Tokenizer(library.models.BPE())
  tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = library.decoders.ByteLevel()
  trainer = library.trainers.BpeTrainer(
    vocab_size=vocabulary,
    special_tokens=[END],
    initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(documents, trainer)
  return BytePairs(tokenizer.to_str())


def digest(tokenizer: Tokenizer) -> str:
  """Hex sha-256, equal for tokenizers that do the same."""
  return fingerprints.text("tokenizer", json.dumps(tokenizer.content(), sort_keys=True))


def save(tokenizer: Tokenizer, path: Path) -> None:
  """Writes it as JSON, whole or not at all."""
  partial = path.with_name(path.name + ".partial")
  partial.write_text(json.dumps(tokenizer.content(), sort_keys=True) + "\n", "utf-8")
  partial.replace(path)


def load(path: Path) -> Tokenizer:
  """What `save` wrote, or a Hugging Face directory's tokenizer.json. Raises UserError for a missing or damaged file."""
  try:
    content = parse_json(path.read_text("utf-8"))
  except OSError as error:
    raise UserError(f"data: cannot read the tokenizer {path}: {error.strerror or error}") from error
  except ValueError as error:
    raise UserError(f"data: the tokenizer {path} is damaged ({error})") from error
  kind = content.get("kind") if isinstance(content, dict) else None
  if kind == "byte":
    return Bytes()
  if kind == "char" and isinstance(content.get("characters"), str) and content["characters"]:
    return Characters(content["characters"])
  if kind == "word" and isinstance(content.get("words"), list):
    return Words(content["words"])
  if kind == "bpe" and isinstance(content.get("tokenizer"), dict):
    return BytePairs(json.dumps(content["tokenizer"]), str(content.get("end", END)), int(content.get("size", 0)))
  if kind is None and isinstance(content, dict) and isinstance(content.get("model"), dict):
    return _of_library(path, content)
  raise UserError(f"data: {path} describes no tokenizer")


def word_edges(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
  """(opens_V, closes_V), bool: whether a token's first, and its last, character is one that words are made of.

  A word is what `Words` takes for one: a run of letters, digits and underscores, or any other character alone. So a
  token goes on with the word before it where it opens with such a character and the token before it closes with one;
  `Words` has whole words alone, and none goes on. A piece of a character of several bytes counts as a letter.
  """
  if tokenizer.kind == "word":
    return np.zeros(tokenizer.size, bool), np.zeros(tokenizer.size, bool)
  pieces = [tokenizer.decode([i]) or " " for i in range(tokenizer.size)]
  inside = re.compile(r"[\w\ufffd]")
  opens_V, closes_V = (np.asarray([bool(inside.match(piece[end])) for piece in pieces]) for end in (0, -1))
  return opens_V, closes_V


def _of_library(path: Path, content: dict) -> Tokenizer:
  """A file of the library itself. What ends a document, and V, stand in the files beside it."""
  if own := library_file.from_library(plain := library_file.without_mask(content)):
    return Characters(own["characters"]) if own["kind"] == "char" else Bytes()
  model, decoder = content["model"].get("type", "no model"), (content.get("decoder") or {}).get("type", "no decoder")
  if (model, decoder) != ("BPE", "ByteLevel"):
    raise UserError(f"data: {path} is no byte-level BPE ({model} with {decoder}); no other can be taken over")
  end = _beside(path, "tokenizer_config.json").get("eos_token") or END
  size = _beside(path, "config.json").get("vocab_size")
  size = size if isinstance(size, int) else 0
  text = end.get("content", END) if isinstance(end, dict) else end
  if plain != content:
    content, size = plain, max(0, size - 2)  # they are the model's, not the tokenizer's
  return BytePairs(json.dumps(content), str(text), size)


def _beside(path: Path, name: str) -> dict:
  try:
    content = parse_json((path.parent / name).read_text("utf-8"))
  except (OSError, ValueError):
    return {}
  return content if isinstance(content, dict) else {}


def check_ids(ids: Sequence[int], size: int) -> None:
  """Raises UserError for an id that the vocabulary of `size` has not."""
  for i in ids:
    if not 0 <= i < size:
      raise UserError(f"data: token {i} is outside the vocabulary of {size}")


def _library():
  try:
    import tokenizers
  except ImportError as error:
    raise UserError(
      "data: byte-pair tokens need the library tokenizers: pip install 'flagship[text]', or --data.tokenizer=byte"
    ) from error
  return tokenizers
