"""Text as a language model's splits: a corpus, its tokenizer, and windows of its tokens."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from research.data import fingerprint as fingerprints
from research.data import tokenizers
from research.data.corpus import open_corpus
from research.data.splits import Splits
from research.data.tokenizers import Tokenizer
from research.data.windows import Windows, windows
from research.errors import UserError

FILE = "tokenizer.json"  # in a run's directory


@dataclasses.dataclass(frozen=True)
class TextSplits(Splits):
  """Splits of windows, and the tokenizer that they are in. The fingerprint covers the tokenizer too."""

  tokenizer: Tokenizer | None = None

  def keep(self, workdir: Path) -> None:
    """Writes the tokenizer. Raises UserError where the run has another one."""
    path = workdir / FILE
    if path.exists() and tokenizers.digest(tokenizers.load(path)) != tokenizers.digest(self.tokenizer):
      raise UserError(f"run: {path} is not the tokenizer of these flags and data; give another --workdir")
    tokenizers.save(self.tokenizer, path)

  @property
  def about(self) -> dict[str, str]:
    return {"tokenizer": tokenizers.digest(self.tokenizer)}

  def check_origin(self, run: Path) -> None:
    """Raises UserError where the run's tokenizer is another one: its embeddings are of other tokens."""
    if not (run / FILE).exists():
      return
    theirs, ours = tokenizers.digest(tokenizers.load(run / FILE)), tokenizers.digest(self.tokenizer)
    if theirs != ours:
      raise UserError(
        f"init_from: {run} has another tokenizer (digest {theirs[:8]} there, {ours[:8]} here);"
        " --text.tokenizer=init takes the run's own"
      )


def open_text(
  uri: str,
  *,
  length: int,
  tokenizer: str | Path = "byte",
  vocabulary: int = 4096,
  packed: bool = False,
  ahead: int = 1,
  validation_fraction: float = 0.1,
  test_fraction: float = 0.0,
  split_seed: int = 0,
  progress=lambda line: None,
) -> TextSplits:
  """Opens `uri` (see corpus.py), learns the tokenizer from its training split or reads it from a file that a run has
  kept, and cuts windows of `length`.

  Training's windows begin at every token, evaluation's stand side by side. `packed` keeps documents apart;
  `ahead` is 1 for a causal model, and 0 for a masked one, which predicts no token after a window.

  Raises UserError as `open_corpus`, `tokenizers.learn` and `windows` do.
  """
  corpus = open_corpus(
    uri, validation_fraction=validation_fraction, test_fraction=test_fraction, split_seed=split_seed
  )
  if tokenizer == "bpe":
    progress(f"learning {vocabulary:,} byte-pair tokens from {uri}")
  kept = isinstance(tokenizer, Path)
  learned = tokenizers.load(tokenizer) if kept else tokenizers.learn(tokenizer, corpus.documents["train"], vocabulary)
  parts = {
    split: windows(
      documents,
      learned,
      name=f"the {split} split of {uri}",
      length=length,
      stride=1 if split == "train" else length,
      packed=packed,
      ahead=ahead,
    )
    for split, documents in corpus.documents.items()
  }
  about = (length, packed) if ahead == 1 else (length, packed, ahead)
  fingerprint = fingerprints.text("text", corpus.fingerprint, tokenizers.digest(learned), *about)
  notes = tuple(_unknown(name, source, learned) for name, source in parts.items() if name != "train")
  return TextSplits(
    parts["train"],
    parts.get("validation"),
    parts.get("test"),
    fingerprint,
    notes=tuple(note for note in notes if note),
    tokenizer=learned,
  )


def without_text(workdir: Path, *, length: int, size: int, packed: bool = False, ahead: int = 1) -> TextSplits | None:
  """The tokenizer that a run has kept, and `size` windows of no text; None where it has kept none.

  Raises UserError for a damaged one.
  """
  if not (workdir / FILE).exists():
    return None
  tokens_T = np.zeros(length + ahead + size - 1, np.int32)
  train = Windows("no text", tokens_T, length, 1, "", np.zeros_like(tokens_T) if packed else None, ahead)
  return TextSplits(train, None, None, "", tokenizer=tokenizers.load(workdir / FILE))


def _unknown(name: str, source, tokenizer: Tokenizer) -> str:
  unknown = getattr(tokenizer, "unknown", None)
  count = 0 if unknown is None else int((source.tokens_T == unknown).sum())
  noun = "words" if tokenizer.kind == "word" else "characters"
  return f"the {name} split has {count:,} {noun} that training has not" if count else ""
