"""A tokenizer as a file of the library `tokenizers`, which transformers opens, and back. It is JSON alone.

Such a file takes END, where a text has its very letters, for the token between documents; ours spell it as they would
any other text. A masked model's file has [MASK] and [CLS] too, which are no tokens of our tokenizers: they stand behind
the vocabulary, where its network has them, and [CLS] is put before each text as that network does.
"""

from __future__ import annotations

from typing import Any

END = "<|endoftext|>"  # stands before each document
MASK, FIRST = "[MASK]", "[CLS]"
_DECIDES = ("normalizer", "pre_tokenizer", "model")  # the parts of a file that say which tokens a text has


def to_library(content: dict[str, Any], *, masked: bool = False) -> dict[str, Any] | None:
  """The file's content, from a tokenizer's `content()`; None where no such file encodes as it does.

  Words are divided by Python's letters and small letters, which the library's are not. And a file gives its tokens
  numbers in a row, so there is none with [MASK] for a vocabulary that has room to spare.
  """
  kind = content["kind"]
  if kind not in ("char", "byte", "bpe") or (masked and "size" in content):
    return None
  description = {"char": _characters, "byte": _bytes, "bpe": lambda content: content["tokenizer"]}[kind](content)
  # A byte pair begins with the blank before its word, so a [MASK] stands for its blank too.
  return _with_mask(description, blank=kind == "bpe") if masked else description


def from_library(description: dict[str, Any]) -> dict[str, Any] | None:
  """The `content()` of characters or bytes whose file this is; None for all others."""
  model = description["model"]
  if not isinstance(vocabulary := model.get("vocab"), dict):
    return None
  if model.get("type") == "WordLevel":
    single = [token for token in vocabulary if len(token) == 1 and token != model.get("unk_token")]
    content = {"kind": "char", "characters": "".join(sorted(single))}
  else:
    content = {"kind": "byte"}
  same = to_library(content)
  return content if all(description.get(part) == same[part] for part in _DECIDES) else None


def without_mask(description: dict[str, Any]) -> dict[str, Any]:
  """A file as it was before `to_library` gave it [MASK] and [CLS]; one without them as it is."""
  added = description.get("added_tokens")
  if not isinstance(added, list) or not all(isinstance(token, dict) and "id" in token for token in added):
    return description  # damaged, as the library will say
  last = sorted(added, key=lambda token: token["id"])[-2:]
  if [token.get("content") for token in last] != [MASK, FIRST]:
    return description
  return {**description, "added_tokens": [token for token in added if token not in last], "post_processor": None}


def _characters(content: dict[str, Any]) -> dict[str, Any]:
  characters = content["characters"]
  unknown = "[UNK]" if "\ufffd" in characters else "\ufffd"  # which is what decoding gives
  names = [*characters, unknown, END]
  model = {"type": "WordLevel", "vocab": {name: i for i, name in enumerate(names)}, "unk_token": unknown}
  split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
  return _file(model, split, {"type": "Fuse"}, end=len(names) - 1)


def _bytes(content: dict[str, Any]) -> dict[str, Any]:
  """Byte pairs without a pair. The library spells each byte as one character (Radford et al. 2019)."""
  plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # these are written as themselves
  others = [byte for byte in range(256) if byte not in plain]
  spelt = {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}
  names = [*(spelt[byte] for byte in range(256)), END]
  off = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
  off |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
  model = {"type": "BPE", **off, "vocab": {name: i for i, name in enumerate(names)}, "merges": []}
  level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
  return _file(model, level, level, end=256)


def _file(model: dict[str, Any], pre_tokenizer: dict[str, Any], decoder: dict[str, Any], *, end: int) -> dict[str, Any]:
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [_added(end, END)],
    "normalizer": None,
    "pre_tokenizer": pre_tokenizer,
    "post_processor": None,
    "decoder": decoder,
    "model": model,
  }


def _added(place: int, token: str, *, blank: bool = False) -> dict[str, Any]:
  """A token that is found in a text before anything else; `blank`: with the blanks before it."""
  return {
    "id": place, "content": token, "single_word": False, "lstrip": blank, "rstrip": False, "normalized": False,
    "special": True,
  }  # fmt: skip


def _with_mask(description: dict[str, Any], *, blank: bool) -> dict[str, Any]:
  added = description["added_tokens"]
  size = 1 + max([*description["model"]["vocab"].values(), *(token["id"] for token in added)])
  begin = {"SpecialToken": {"id": FIRST, "type_id": 0}}
  a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
  processor = {
    "type": "TemplateProcessing",
    "single": [begin, a],
    "pair": [begin, a, b],
    "special_tokens": {FIRST: {"id": FIRST, "ids": [size + 1], "tokens": [FIRST]}},
  }
  added = [*added, _added(size, MASK, blank=blank), _added(size + 1, FIRST)]
  return {**description, "added_tokens": added, "post_processor": processor}
