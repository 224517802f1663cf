"""The word sample of a masked language model: the likeliest fillings of a prompt's [MASK]s, on the terminal."""

import dataclasses
from typing import Any

import jax
import numpy as np

from experiments.bert.network import make_guesser
from experiments.schema import flag
from research.data.library_file import MASK
from research.data.tokenizers import Tokenizer
from research.errors import UserError
from research.models.bert import mask_id
from research.task import State


@dataclasses.dataclass(frozen=True)
class Filling:
  """The word sample's own flags, on the command line only"""

  prompt: str = flag("", f"a text with one {MASK} or more; \\n is a new line", verbatim=True)
  count: int = flag(5, f"fillings of each {MASK}, the likeliest first", low=1, high=1000)

  def check(self) -> None:
    if self.prompt and MASK not in self.prompt:
      raise UserError(f"flags: --prompt={self.prompt} has no {MASK} to fill")


def fill(job: Any, state: State, request: Any) -> int:
  """Prints the fillings of each [MASK] with their probabilities. Returns the exit code."""
  asked: Filling = request.sampling
  if request.config.task != "pretrain":
    raise UserError("sample: a classifier fills nothing; name a run of --task=pretrain, or use eval")
  if not asked.prompt:
    raise UserError(f'sample: nothing to fill: --prompt="import {MASK}"')
  tokenizer = job.data.splits.tokenizer
  model = make_guesser(request.config.model, tokenizer)
  tokens_L = encode(tokenizer, asked.prompt.replace("\\n", "\n"), mask_id(model.vocabulary))
  if len(tokens_L) > request.config.model.length:
    raise UserError(
      f"sample: --prompt has {len(tokens_L)} tokens; a context of {request.config.model.context} holds"
      f" {request.config.model.length} tokens of text"
    )
  places_K = np.flatnonzero(tokens_L == mask_id(model.vocabulary)).astype(np.int32)
  params = jax.device_put(jax.device_get(state.extra.get("ema", state.params)))  # one device is enough

  @jax.jit
  def probabilities(params: Any, tokens_BL: jax.Array, places_BK: jax.Array) -> jax.Array:
    return jax.nn.softmax(model.apply({"params": params}, tokens_BL, places_BK, train=False, method="guesses"), axis=-1)

  probability_KV = np.asarray(probabilities(params, tokens_L[None], places_K[None])[0])[:, : tokenizer.size]
  for number, probability_V in enumerate(probability_KV, start=1):
    if len(places_K) > 1:
      print(f"{MASK} {number}")
    for token in np.argsort(-probability_V, kind="stable")[: asked.count].tolist():
      print(f"  {probability_V[token]:.4f}  {tokenizer.decode([token])!r}")
  return 0


def encode(tokenizer: Tokenizer, prompt: str, mask: int) -> np.ndarray:
  """ids_L int32. A byte pair begins with the blank before its word, so a [MASK] stands for its blank too."""
  pieces = prompt.split(MASK)
  if tokenizer.kind == "bpe":
    pieces = [piece.removesuffix(" ") for piece in pieces[:-1]] + pieces[-1:]
  parts = [tokenizer.encode(pieces[0])]
  for piece in pieces[1:]:
    parts += [np.asarray([mask], np.int32), tokenizer.encode(piece)]
  return np.concatenate(parts).astype(np.int32)
