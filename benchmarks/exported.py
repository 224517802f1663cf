"""Runs of every kind that the word export writes, beside what transformers makes of their directories.

  python -m benchmarks.exported               needs the extra `bench`, for torch and transformers

Each run is trained for a few updates on a short text, exported, opened by transformers' Auto classes and asked for the
logits of a text that its own tokenizer.json encodes; ours come from the run's checkpoint and tokenizer. Differences are
the greatest over the root mean square of the logits, in float32.
"""

import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

SHAPE = ["--model.layers=2", "--model.width=24", "--model.heads=3", "--model.context=40", "--data.batch_size=8"]
SHORT = ["--run.steps=3", "--optim.learning_rate=1e-2", "--parallel.mesh=data:1"]
PROMPT = "the red cat sat on a mat"
# experiment, transformers' class, flags
RUNS = [
  *(("gpt", "AutoModelForCausalLM", [f"--text.tokenizer={kind}"]) for kind in ("bpe", "char", "byte")),
  *(("bert", "AutoModelForMaskedLM", [f"--text.tokenizer={kind}"]) for kind in ("bpe", "char", "byte")),
  ("bert", "AutoModelForMaskedLM", ["--text.tokenizer=bpe", "--model.token_types=2", "--model.mlp=gelu"]),
  ("bert", "AutoModelForSequenceClassification", ["--text.tokenizer=bpe", "--task=classify"]),
  ("bert", "AutoModel", ["--text.tokenizer=bpe", "--task=classify", "--classify.pooling=mean"]),
]


def ours(definition: Any, workdir: Path, text: str) -> tuple[np.ndarray, np.ndarray]:
  """(ids as the network sees them, logits or, of an encoder alone, its last values), from the run itself."""
  import jax

  from experiments import command, work
  from experiments.bert.network import make_network as bert
  from experiments.gpt.network import make_network as gpt
  from research.models.bert import Bert, TextClassifier, first_id

  job, state, _ = work.load(definition, command.read(definition, [f"--config={workdir}"]))
  tokens_L, variables = job.data.splits.tokenizer.encode(text), {"params": jax.device_get(state.params)}
  if definition.name == "gpt":
    network = gpt(job.config.model, job.data.splits.tokenizer)
    return tokens_L, np.asarray(network.apply(variables, tokens_L[None], train=False)[0])
  network = bert(job.config, job.data.splits)
  tokens_T = np.concatenate([[first_id(network.vocabulary)], tokens_L])
  if isinstance(network, TextClassifier) and network.pooling == "first":
    return tokens_T, np.asarray(network.apply(variables, tokens_L[None], train=False))
  x_BTD = network.apply(variables, tokens_L[None], train=False, method="encoded")
  if isinstance(network, TextClassifier):
    return tokens_T, np.asarray(x_BTD)
  return tokens_T, np.asarray(network.apply(variables, x_BTD, method=Bert.logits))


def theirs(name: str, directory: Path, text: str) -> tuple[np.ndarray, np.ndarray]:
  import torch
  import transformers

  model, report = getattr(transformers, name).from_pretrained(directory, output_loading_info=True)
  assert not {key: value for key, value in report.items() if value and name != "AutoModel"}, report
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
  given = tokenizer([text], return_tensors="pt")
  with torch.no_grad():
    found = model.eval()(given["input_ids"], attention_mask=given["attention_mask"])
  return given["input_ids"][0].numpy(), (found[0] if name == "AutoModel" else found.logits).numpy()


def compare(experiment: str, name: str, flags: list[str], folder: Path) -> tuple[float, bool]:
  """(greatest difference, whether the tokens are the same)"""
  from experiments import command
  from experiments.bert.__main__ import EXPERIMENT as BERT
  from experiments.gpt.__main__ import EXPERIMENT as GPT

  definition = {"gpt": GPT, "bert": BERT}[experiment]
  table, text = folder / "a.csv", folder / "a.txt"
  lines = [f"the {'red cat' if i % 3 else 'old dog'} sat on a mat {i}" for i in range(90)]
  text.write_text("\n".join(lines) + "\n")
  table.write_text("\n".join(["note,animal", *(f"{line},{line.split()[2]}" for line in lines)]) + "\n")
  source = f"--data.source=csv:{table}" if "--task=classify" in flags else f"--data.source=text:{text}"
  line = [source, "--data.test_fraction=0.2", "--text.vocabulary=290", *SHAPE, *SHORT, *flags]
  run, directory = folder / "run", folder / "hf"
  with contextlib.redirect_stdout(io.StringIO()):
    assert command.main(definition, [*line, f"--workdir={run}"]) == 0
    assert command.main(definition, ["export", f"--config={run}", f"--to={directory}"]) == 0
    (ids, expected), (their_ids, found) = ours(definition, run, PROMPT), theirs(name, directory, PROMPT)
  same = ids.tolist() == their_ids.tolist()
  return float(np.abs(found - expected).max() / np.sqrt((expected**2).mean())) if same else float("inf"), same


def main() -> int:
  import transformers

  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  print("| experiment | opened as | flags | transformers against ours | tokens |")
  print("| --- | --- | --- | --- | --- |")
  worst = 0.0
  for experiment, name, flags in RUNS:
    with tempfile.TemporaryDirectory() as folder:
      difference, same = compare(experiment, name, flags, Path(folder))
    worst = max(worst, difference)
    told = "the same" if same else "OTHERS"
    print(f"| {experiment} | {name} | {' '.join(flags)} | {difference:.1e} | {told} |", flush=True)
  print(f"greatest: {worst:.1e}")
  return 0 if worst < 1e-4 else 1


if __name__ == "__main__":
  sys.exit(main())
