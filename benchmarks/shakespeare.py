"""How good a language model is in the time that PyTorch takes for nanoGPT's CPU recipe, on tinyshakespeare.

  python -m benchmarks.shakespeare FILE               FILE: tinyshakespeare.txt; needs the extra `bench`, for PyTorch
  python -m benchmarks.shakespeare FILE --seeds=1 --first=3

A round has four turns, each a process of its own: 2,000 updates of the PyTorch twin of `benchmarks.gpt` on random
windows of the text, by nanoGPT's schedule; the same updates by Flagship, from the twin's weights on the twin's windows
(these seconds are the updates' alone: no start, no evaluation); then the whole commands `gpt --config=shakespeare_nano`
and `--config=shakespeare_cpu`, each from its start to its report. The loss is that of every character of the validation
split, once, in windows of 64; the split is the text's last tenth for all.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.updates import gpt, sides

STEPS, WARMUP, LAST_FRACTION = 2000, 100, 0.1
TWIN, SAME = f"PyTorch, {STEPS:,} updates", "Flagship from its weights on its windows"
PRESETS = ("shakespeare_nano", "shakespeare_cpu")


def split(text: Path) -> tuple[np.ndarray, np.ndarray]:
  """nanoGPT's: characters numbered in their order, the last tenth to validate on."""
  characters = text.read_text(encoding="utf-8")
  number = {character: i for i, character in enumerate(sorted(set(characters)))}
  tokens = np.asarray([number[character] for character in characters])
  return np.split(tokens, [int(0.9 * len(tokens))])


def rate(step: int) -> float:
  """nanoGPT's: linear warm-up, then a cosine to a tenth."""
  if step < WARMUP:
    return sides.RATE * (step + 1) / (WARMUP + 1)
  cosine = 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))
  return sides.RATE * (LAST_FRACTION + (1 - LAST_FRACTION) * cosine)


def windows(train: np.ndarray, seed: int) -> Iterator[np.ndarray]:
  """(12, 65) characters for each update, from anywhere in the text."""
  random = np.random.default_rng(seed)
  for _ in range(STEPS):
    starts_B = random.integers(0, len(train) - gpt.LENGTH, gpt.BATCH)
    yield train[starts_B[:, None] + np.arange(gpt.LENGTH + 1)]


def mean_loss(validation: np.ndarray, summed: Callable[[np.ndarray], float]) -> float:
  """Nats a character; summed: (1, up to 65) characters → the sum over all but the first."""
  last = len(validation) - 1  # characters that have one before them
  parts = [validation[start : start + gpt.LENGTH + 1][None] for start in range(0, last, gpt.LENGTH)]
  return sum(summed(part) for part in parts) / last


def by_twin(text: Path, seed: int) -> tuple[float, float]:
  """(seconds of the updates, validation loss in nats a character) of the PyTorch twin, trained in this process."""
  import torch
  from torch.nn import functional

  torch.set_num_threads(os.cpu_count())
  train, validation = split(text)
  model = gpt.twin(seed)
  optimizer = sides.torch_optimizer(model)

  def loss_of(windows, **how):
    tokens = torch.from_numpy(windows)
    return functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten(), **how)

  began = time.perf_counter()
  for step, batch in enumerate(windows(train, seed)):
    for group in optimizer.param_groups:
      group["lr"] = rate(step)
    loss = loss_of(batch)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), sides.CLIP)
    optimizer.step()
  seconds = time.perf_counter() - began
  with torch.no_grad():
    return seconds, mean_loss(validation, lambda part: loss_of(part, reduction="sum").item())


def by_flagship(text: Path, seed: int) -> tuple[float, float]:
  """The same of Flagship's task: what begins and learns alike ends alike."""
  import jax
  import jax.numpy as jnp

  from experiments.schema import Optim
  from research import optim
  from research.allocator import keep_freed_memory
  from research.task import step_key

  keep_freed_memory()  # as experiments.work does
  train, validation = split(text)
  rule = Optim(
    name="adamw", learning_rate=sides.RATE, final_learning_rate_fraction=LAST_FRACTION, warmup_steps=WARMUP,
    beta2=sides.BETAS[1], weight_decay=sides.DECAY, clip_norm=sides.CLIP,
  )  # fmt: skip
  task = gpt.language_task(optim.make_optimizer(rule, STEPS))

  def data_of(tokens: np.ndarray) -> dict[str, jax.Array]:
    return {"tokens": jnp.asarray(tokens, jnp.int32), "mask": jnp.ones(len(tokens)), "index": jnp.arange(len(tokens))}

  state = jax.jit(task.init)(jax.random.key(0), data_of(next(windows(train, seed))))
  state = state.replace(params=jax.tree.map(jnp.asarray, gpt.placed(state.params, seed)))
  step = jax.jit(lambda state, data: task.step(state, data, step_key(0, state.step)), donate_argnums=0)
  step = step.lower(state, data_of(next(windows(train, seed)))).compile()
  began = time.perf_counter()
  for batch in windows(train, seed):
    state, _ = step(state, data_of(batch))
  jax.block_until_ready(state)
  seconds = time.perf_counter() - began
  evaluate = jax.jit(task.evaluate)

  def summed(part: np.ndarray) -> float:
    sums = jax.device_get(evaluate(state, data_of(part)))
    return task.summarize(sums)["loss"] * (part.shape[1] - 1)

  return seconds, mean_loss(validation, summed)


SERVED = {TWIN: by_twin, SAME: by_flagship}


def served(side: str, text: Path, seed: int) -> tuple[float, float]:
  command = [sys.executable, "-m", "benchmarks.shakespeare", str(text), f"--serve={side}", f"--first={seed}"]
  done = subprocess.run(command, check=True, capture_output=True, text=True)
  return tuple(json.loads(done.stdout))


def trained(preset: str, text: Path, seed: int) -> tuple[float, float]:
  """(seconds of the whole command, validation loss in nats a character)."""
  with tempfile.TemporaryDirectory() as folder:
    arguments = [f"--config={preset}", f"--data.source=text:{text}", f"--seed={seed}", f"--workdir={folder}/run"]
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "experiments.gpt", *arguments], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    return seconds, json.loads(Path(folder, "run", "result.json").read_text())["metrics"]["validation/loss"]


def told(values: list[float], digits: int) -> str:
  return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} – {max(values):.{digits}f})"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("text", type=Path, help="tinyshakespeare.txt")
  parser.add_argument("--seeds", type=int, default=3, help="how many")
  parser.add_argument("--first", type=int, default=0, help="the first of them")
  parser.add_argument("--serve", choices=SERVED, help=argparse.SUPPRESS)
  options = parser.parse_args()
  text = options.text.expanduser().absolute()
  if not text.is_file():
    parser.error(f"{text} is no file; tinyshakespeare.txt is 1,115,394 characters, from Karpathy's char-rnn")

  if options.serve is not None:
    print(json.dumps(SERVED[options.serve](text, options.first)))
    return
  runs = {side: [] for side in (*SERVED, *PRESETS)}
  for seed in range(options.first, options.first + options.seeds):
    for side, found in runs.items():
      found.append((served if side in SERVED else trained)(side, text, seed))
    print(f"seed {seed}: {', '.join(f'{side} {found[-1]}' for side, found in runs.items())}", flush=True)
  print("| what | seconds, median (range) | validation loss, mean ± sd | n |\n| --- | --- | --- | --- |")
  for side, found in runs.items():
    seconds, losses = (list(column) for column in zip(*found, strict=True))
    spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
    print(f"| {side} | {told(seconds, 0)} | {statistics.mean(losses):.4f} ± {spread:.4f} | {len(found)} |")


if __name__ == "__main__":
  main()
