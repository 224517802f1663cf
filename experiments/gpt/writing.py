"""The word sample of a language model: texts that go on from prompts, on the terminal as they are written."""

import dataclasses
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.gpt.network import make_network
from experiments.schema import flag
from research import decoding
from research.data import check
from research.data.tokenizers import Tokenizer
from research.errors import UserError
from research.models.language_model import LanguageModel
from research.task import Key, State

SHOWN, TOKENS = 2, 300  # texts at each evaluation, and their length


@dataclasses.dataclass(frozen=True)
class Prompting:
  """The word sample's own flags, on the command line only"""

  prompt: str = flag("", r"what the text begins with; \n is a new line; empty: where a line begins", verbatim=True)
  prompt_file: str = flag("", "a file with a prompt on each line, all gone on from at once")
  count: int = flag(1, "texts from each prompt", low=1, high=1000)
  tokens: int = flag(500, "tokens to write", low=1)
  temperature: float = flag(0.8, "divides the logits; 0: the likeliest token", low=0.0)
  top_k: int = flag(0, "only the k likeliest; 0: all", low=0)
  top_p: float = flag(1.0, "only the likeliest of this probability together", low=0.0, high=1.0)
  min_p: float = flag(0.0, "only those this times as likely as the likeliest", low=0.0, high=1.0)
  repetition_penalty: float = flag(1.0, "divides the logits of tokens that were there already", low=0.01)
  beams: int = flag(0, "beams of a search for the likeliest text, instead of drawing; 0: none", low=0)
  stop: str = flag(
    "", r"ends a text where it comes (--beams: what was found); several with | between; \n: a new line, \|: a |",
    verbatim=True,
  )
  sample_seed: int = flag(-1, "seed of the draws; -1: the run's own seed", low=-1, high=2**32 - 1)

  def check(self) -> None:
    if self.prompt and self.prompt_file:
      raise UserError("flags: --prompt and --prompt_file are both given; give one of them")
    if self.top_p == 0.0:
      raise UserError("flags: --top_p=0 leaves no token; --temperature=0 takes the likeliest")
    if self.beams and (self.count > 1 or self.prompt_file):
      raise UserError("flags: --beams is for one text from one --prompt")
    drawing = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "sample_seed")
    given = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
    if self.beams and (unused := [f"--{name}" for name in drawing if name in given]):
      raise UserError(f"flags: --beams searches and draws nothing, so {', '.join(unused)} would change nothing")


def sampler(model: LanguageModel, tokenizer: Tokenizer) -> Callable[[State, Key, int], str]:
  """The task's `sample`: some texts from nothing, one under the other."""

  def sample(state: State, key: Key, count: int) -> str:
    params = state.extra.get("ema", state.params)
    prompts = [[beginning(tokenizer)]] * min(SHOWN, count)
    choice = decoding.Choice(temperature=0.8)
    texts = decoding.generate(model, params, prompts, count=TOKENS, length=model.context, choice=choice, key=key)
    return "\n\n---\n\n".join(tokenizer.decode(text) for text in texts)

  return sample


def beginning(tokenizer: Tokenizer) -> int:
  """What stands before a text: a new line, which every tokenizer of ours has seen at the start of something."""
  ids = tokenizer.encode("\n")
  return int(ids[-1])


def write(job: Any, state: State, request: Any) -> int:
  """Prints the texts; of a single one each piece as it comes. Returns the exit code."""
  asked: Prompting = request.sampling
  tokenizer = job.data.splits.tokenizer
  model = make_network(request.config.model, tokenizer)
  prompts = _prompts(asked)
  starts = [prompt for prompt in prompts for _ in range(asked.count)]
  ids = [tokenizer.encode(start).tolist() or [beginning(tokenizer)] for start in starts]
  params = jax.device_put(jax.device_get(state.extra.get("ema", state.params)))  # one device writes
  seed = request.config.seed if asked.sample_seed < 0 else asked.sample_seed
  stops = stop_strings(asked.stop)
  _tell_unknown(tokenizer, prompts)
  decoding.pad(ids, length=model.context, vocabulary=tokenizer.size)  # refuses before anything is printed
  if asked.beams:
    room = model.context - len(ids[0])
    if asked.tokens > room:
      raise UserError(f"sample: --beams searches within the context of {model.context}: --tokens={room} would fit")
    found = decoding.beam_search(
      model, params, ids[0], count=asked.tokens, length=model.context, beams=asked.beams, end=tokenizer.end
    )
    cut = {}
    for score, text in found:
      cut.setdefault(_cut(tokenizer.decode(text), stops), score)  # of texts that differ behind a stop the best
    for text, score in cut.items():
      print(f"{score:9.4f}  {prompts[0]}{text}")
    return 0
  choice = decoding.Choice(
    repetition_penalty=asked.repetition_penalty,
    temperature=asked.temperature,
    top_k=asked.top_k,
    top_p=asked.top_p,
    min_p=asked.min_p,
  )
  streams = [_Stream(tokenizer, stops) for _ in ids]
  alone = len(ids) == 1
  if alone:
    print(prompts[0], end="", flush=True)

  def told(token_B: np.ndarray) -> Sequence[bool]:
    for stream, token in zip(streams, token_B.tolist(), strict=True):
      piece = stream.add(token)
      if alone and piece:
        print(piece, end="", flush=True)
    return [stream.finished for stream in streams]

  decoding.generate(
    model, params, ids, count=asked.tokens, length=model.context, choice=choice, key=jax.random.key(seed), told=told
  )
  if alone:
    print(streams[0].rest(), flush=True)
    return 0
  for number, (start, stream) in enumerate(zip(starts, streams, strict=True), start=1):
    stream.rest()
    print(f"--- {number}\n{start}{stream.text}")
  return 0


class _Stream:
  """One text as it grows: what may be shown of it, and where it stops.

  Only the last few tokens are decoded again as others follow them: those whose bytes may yet become a character.
  """

  def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]):
    self._tokenizer, self._stops, self._shown = tokenizer, stops, 0
    self._settled, self._ids = "", []  # a text that no later token changes, and the tokens after it
    self._reach = max([0, *(len(stop) - 1 for stop in stops)])
    self.text, self.finished = "", False

  def add(self, token: int) -> str:
    """What can be shown now: not the first bytes of a character, nor what may yet become a stop string."""
    if self.finished:
      return ""
    if token == self._tokenizer.end:
      self.finished = True
      return self.rest()
    begin = max(0, len(self._settled) - self._reach)  # no stop string is before it
    self._append(token)
    for stop in self._stops:
      place = self.text.find(stop, begin)
      if place >= 0:
        self.text, self.finished = self.text[:place], True
        return self.rest()
    whole = self.text.rstrip("\ufffd")
    held = max([0, *(_overlap(whole, stop) for stop in self._stops)])
    return self._show(len(whole) - held)

  def rest(self) -> str:
    return self._show(len(self.text))

  def _append(self, token: int) -> None:
    decode = self._tokenizer.decode
    if not decode([token]):
      return  # it stands for no text
    self._ids.append(token)
    tail = decode(self._ids)
    self.text = self._settled + tail
    for size in range(len(self._ids) - 1, 0, -1):
      # Bytes that belong to one character give fewer � together than apart. So where both parts give what the whole
      # gives, no character lies across them, and what comes later cannot change the first.
      if (settled := decode(self._ids[:size])) + decode(self._ids[size:]) == tail:
        self._settled, self._ids = self._settled + settled, self._ids[size:]
        return

  def _show(self, end: int) -> str:
    piece = self.text[self._shown : end]
    self._shown = max(self._shown, end)
    return piece


def stop_strings(written: str) -> list[str]:
  """What --stop stands for: strings with | between them, in which \\| is a |."""
  return [_unescaped(each.replace("\\|", "|")) for each in re.split(r"(?<!\\)\|", written) if each]


def _cut(text: str, stops: Sequence[str]) -> str:
  return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


def _overlap(text: str, stop: str) -> int:
  """How many of the last characters are the first ones of the stop string."""
  return next((size for size in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:size])), 0)


def _prompts(asked: Prompting) -> list[str]:
  if not asked.prompt_file:
    return [check.text(_unescaped(asked.prompt), "flags: --prompt")]
  try:
    lines = Path(asked.prompt_file).expanduser().read_text("utf-8").splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"sample: cannot read --prompt_file={asked.prompt_file}: {error}") from error
  if not (prompts := [_unescaped(line) for line in lines if line]):
    raise UserError(f"sample: --prompt_file={asked.prompt_file} has no prompt")
  return prompts


def _tell_unknown(tokenizer: Tokenizer, prompts: Sequence[str]) -> None:
  if tokenizer.kind == "char":
    unknown = sorted(each for each in set("".join(prompts)) if tokenizer.encode(each)[0] == tokenizer.unknown)
    if unknown:
      print(f"training had no {', '.join(map(repr, unknown))}: read as an unknown character", file=sys.stderr)


def _unescaped(text: str) -> str:
  return text.replace("\\n", "\n").replace("\\t", "\t")

