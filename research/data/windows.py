"""A text as tokens, and windows of it as examples: example i is L+1 tokens from place i·stride on, the one after the
window with it because a causal model predicts it; a masked one has windows of L (`ahead` 0).

Training may begin a window at any token (stride 1), so that no two epochs cut the text alike; evaluation has windows
side by side (stride L), so that each token (of a causal model's all but the first) is judged once. Windows are cut out
on the device: what is stored is the text, not its windows.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from research.data import fingerprint as fingerprints
from research.data.source import Array, Feature, Schema, checked_indices
from research.data.tokenizers import Tokenizer
from research.errors import UserError

NO_TOKEN = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
  """A Source of windows.

  Attributes:
    name: whose text it is.
    tokens_T: int32, the documents one after the other.
    length: L.
    stride: places from one window to the next.
    fingerprint: of the text and the tokenizer.
    documents_T: int32, the number of each token's document, or None: one text without borders.
    ahead: tokens of an example after its L: 1 for a causal model, 0 for a masked one.
  """

  name: str
  tokens_T: np.ndarray
  length: int
  stride: int
  fingerprint: str
  documents_T: np.ndarray | None = None
  ahead: int = 1

  @property
  def schema(self) -> Schema:
    shape = (self.length + self.ahead,)
    features = {"tokens": Feature(shape, "int32")}
    if self.documents_T is not None:
      features["segments"] = Feature(shape, "int32")
    return Schema(features)

  @property
  def size(self) -> int:
    """Windows that begin with a token that has `ahead` after it; strided ones may run past the text's end."""
    judged = len(self.tokens_T) - self.ahead
    return judged - self.length + 1 if self.stride == 1 else -(-judged // self.stride)

  @property
  def nbytes(self) -> int:
    return sum(array.nbytes for array in self.stored().values())

  def stored(self) -> Mapping[str, np.ndarray]:
    stored = {"tokens": self.tokens_T}
    return stored if self.documents_T is None else {**stored, "segments": self.documents_T}

  def take(self, stored: Mapping[str, Array], indices: Array) -> dict[str, Array]:
    xp = np if isinstance(indices, np.ndarray) else jnp
    places = xp.asarray(indices, xp.int32)[..., None] * xp.int32(self.stride)
    places = places + xp.arange(self.length + self.ahead, dtype=xp.int32).reshape((1,) * indices.ndim + (-1,))
    inside = places < stored["tokens"].shape[0]
    places = xp.where(inside, places, 0)
    return {name: xp.where(inside, array[places], xp.int32(NO_TOKEN)) for name, array in stored.items()}

  def gather(self, indices) -> dict[str, np.ndarray]:
    return self.take(self.stored(), checked_indices(indices, self.size))

  def column(self, name: str) -> np.ndarray:
    return self.gather(np.arange(self.size))[name]


def windows(
  documents: Sequence[str],
  tokenizer: Tokenizer,
  *,
  name: str,
  length: int,
  stride: int,
  packed: bool,
  ahead: int = 1,
) -> Windows:
  """Documents one after the other as one line of tokens, each behind the tokenizer's END; a single one without it.

  Args:
    documents: texts.
    tokenizer: theirs.
    name: of the split, for messages.
    length: L.
    stride: places from one window to the next.
    packed: keep the documents apart, with a number for each.
    ahead: tokens of an example after its L.

  Raises UserError where the tokens are fewer than a window.
  """
  alone = len(documents) == 1 and not packed
  pieces = [tokenizer.encode(document) for document in documents]
  if not alone:
    pieces = [np.concatenate([[tokenizer.end], piece]).astype(np.int32) for piece in pieces]
  tokens_T = np.concatenate(pieces)
  if len(tokens_T) < (length if stride == 1 else 1) + ahead:
    raise UserError(
      f"data: {name} has {len(tokens_T):,} tokens, fewer than a window of {length}"
      f"{' and the one after it' if ahead else ''}; --model.context={max(1, len(tokens_T) - 1)} would fit"
    )
  documents_T = np.repeat(np.arange(len(pieces), dtype=np.int32), [len(piece) for piece in pieces]) if packed else None
  content = {"tokens": tokens_T} | ({} if documents_T is None else {"documents": documents_T})
  kind = "windows" if ahead == 1 else f"windows {ahead} ahead"
  fingerprint = fingerprints.text(kind, length, stride, fingerprints.arrays(content))
  return Windows(name, tokens_T, length, stride, fingerprint, documents_T, ahead)
