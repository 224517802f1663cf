"""A tokenizer as a file of the library `tokenizers`, which transformers opens, and back. It is JSON alone.

A masked model's file has [MASK] and [CLS] too, which are no tokens of our tokenizers: they stand behind the vocabulary,
where its network has them, and [CLS] is put before each text as that network does.
"""

from __future__ import annotations

from typing import Any

MASK, FIRST = "[MASK]", "[CLS]"


def to_library(content: dict[str, Any], *, masked: bool = False) -> dict[str, Any] | None:
  """The file's content, from a tokenizer's `content()`; None where no such file encodes as it does.

  A file gives its tokens numbers in a row, so there is none with [MASK] for a vocabulary that has room to spare.
  """
  if content["kind"] != "bpe" or (masked and "size" in content):
    return None
  description = content["tokenizer"]
  return _with_mask(description) if masked else description


def without_mask(description: dict[str, Any]) -> dict[str, Any]:
  """A file as it was before `to_library` gave it [MASK] and [CLS]; one without them as it is."""
  added = description.get("added_tokens") or []
  last = sorted(added, key=lambda token: token["id"])[-2:]
  if [token["content"] for token in last] != [MASK, FIRST]:
    return description
  return {**description, "added_tokens": [token for token in added if token not in last], "post_processor": None}


def _with_mask(description: dict[str, Any]) -> dict[str, Any]:
  added = description["added_tokens"]
  size = 1 + max([*description["model"]["vocab"].values(), *(token["id"] for token in added)])
  flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
  # A byte pair begins with the blank before its word, so a [MASK] stands for its blank too.
  mask = {"id": size, "content": MASK, **flags, "lstrip": True}
  first = {"id": size + 1, "content": FIRST, **flags}
  begin = {"SpecialToken": {"id": FIRST, "type_id": 0}}
  a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
  processor = {
    "type": "TemplateProcessing",
    "single": [begin, a],
    "pair": [begin, a, b],
    "special_tokens": {FIRST: {"id": FIRST, "ids": [size + 1], "tokens": [FIRST]}},
  }
  return {**description, "added_tokens": [*added, mask, first], "post_processor": processor}
