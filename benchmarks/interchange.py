"""Our logits beside those of transformers, on random models of its own making, in both directions.

  python -m benchmarks.interchange            compares; needs the extra `bench`, for torch and transformers
  python -m benchmarks.interchange --write    also writes the small ones for the tests, which have neither

Each model is made by transformers and drawn at random, saved, read by us and run on the same inputs; then written by
us, opened again by transformers' from_pretrained, and run once more. Differences are the greatest over the root mean
square of the logits, in float32.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

DATA = Path(__file__).parent.parent / "tests" / "research" / "interchange" / "data"
V = 13  # tokens of the small ones


@dataclasses.dataclass(frozen=True)
class Case:
  """A model: its name, transformers' classes, what their config is told, and whether tests have it too."""

  name: str
  model: str
  config: dict[str, Any]
  shape: str
  small: bool = False


def gpt2(**more: Any) -> dict[str, Any]:
  return {"vocab_size": V, "n_embd": 8, "n_head": 2, "n_layer": 2, "n_positions": 9, **more}


def llama(**more: Any) -> dict[str, Any]:
  small = {"vocab_size": V, "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2}
  return {**small, "num_hidden_layers": 1, "intermediate_size": 12, "max_position_embeddings": 9, **more}


DEEP = {"num_attention_heads": 6, "hidden_size": 96, "num_hidden_layers": 6, "intermediate_size": 384}


def bert(**more: Any) -> dict[str, Any]:
  small = {"vocab_size": V, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
  return {**small, "intermediate_size": 12, "max_position_embeddings": 9, **more}


def vit(**more: Any) -> dict[str, Any]:
  small = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 12}
  return {**small, "image_size": 8, "patch_size": 4, "num_channels": 3, "num_labels": 3, **more}


GQA = {"num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 64, "intermediate_size": 176}
LONG = {"num_hidden_layers": 4, "max_position_embeddings": 128, "vocab_size": 211}
CASES = (
  Case("gpt2", "GPT2LMHead", gpt2(), "2×8, tied", small=True),
  Case(
    "gpt2_untied", "GPT2LMHead",
    gpt2(n_embd=12, n_head=3, n_layer=1, n_inner=20, activation_function="gelu", layer_norm_epsilon=1e-3,
         tie_word_embeddings=False),
    "1×12, untied, exact GELU, other width and epsilon", small=True,
  ),
  Case("gpt2_large", "GPT2LMHead", gpt2(n_embd=96, n_head=6, n_layer=6, n_positions=128, vocab_size=211), "6×96, tied"),
  Case("llama", "LlamaForCausalLM", llama(num_hidden_layers=2), "2×8, 4 heads on 2, untied", small=True),
  Case(
    "llama_tied", "LlamaForCausalLM",
    llama(num_attention_heads=2, num_key_value_heads=1, head_dim=6, tie_word_embeddings=True, rms_norm_eps=1e-3,
          rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
    "1×8, 2 heads of 6 on 1, tied, other base", small=True,
  ),
  Case("llama_full", "LlamaForCausalLM", llama(**{**GQA, **LONG, "num_key_value_heads": 8}), "4×64, 8 heads, untied"),
  Case("llama_large", "LlamaForCausalLM", llama(**GQA, **LONG, tie_word_embeddings=True), "4×64, 8 heads on 2, tied"),
  Case("mistral", "MistralForCausalLM", llama(sliding_window=3), "1×8, window of 3", small=True),
  Case("mistral_large", "MistralForCausalLM", llama(**GQA, **LONG, sliding_window=17), "4×64, window of 17"),
  Case("qwen3", "Qwen3ForCausalLM", llama(head_dim=4, tie_word_embeddings=True), "1×8, tied", small=True),
  Case("qwen3_large", "Qwen3ForCausalLM", llama(**GQA, **LONG, head_dim=16), "4×64, untied"),
  Case("bert", "BertForMaskedLM", bert(num_hidden_layers=2), "2×8, tied, padded", small=True),
  Case(
    "bert_untied", "BertForMaskedLM",
    bert(tie_word_embeddings=False, hidden_act="gelu_new", type_vocab_size=3, layer_norm_eps=1e-3),
    "1×8, untied, 3 types, tanh GELU, padded", small=True,
  ),
  Case(
    "bert_large", "BertForMaskedLM",
    bert(**{**LONG, **DEEP}), "6×96, tied, padded",
  ),
  Case("vit", "ViTForImageClassification", vit(num_hidden_layers=2), "2×8, 8×8×3", small=True),
  Case(
    "vit_grey", "ViTForImageClassification",
    vit(image_size=[12, 8], num_channels=1, hidden_act="gelu_new", layer_norm_eps=1e-3, num_labels=5),
    "1×8, 12×8×1, tanh GELU", small=True,
  ),
  Case(
    "vit_large", "ViTForImageClassification",
    vit(**DEEP, image_size=32), "6×96, 32×32×3",
  ),
)  # fmt: skip


def made(case: Case) -> Any:
  """transformers' model with every parameter drawn: none is zero or one, so that each is seen to be used."""
  import torch
  import transformers

  name = f"{case.model}Model" if case.model == "GPT2LMHead" else case.model
  kind = getattr(transformers, name)
  model = kind._from_config(kind.config_class(**case.config), attn_implementation="eager").eval()
  generator = torch.Generator().manual_seed(1)
  with torch.no_grad():
    for path, parameter in sorted(model.named_parameters()):
      centre = 1.0 if parameter.ndim == 1 and path.endswith("weight") else 0.0
      parameter.copy_(centre + 0.3 * torch.randn(parameter.shape, generator=generator))
    if "bert" in case.name and not model.config.tie_word_embeddings:
      model.cls.predictions.bias.copy_(model.cls.predictions.decoder.bias)  # unused by this version, saved all the same
  return model


def inputs(case: Case) -> dict[str, np.ndarray]:
  """Tokens with types and padding for a BERT, pixels (B, C, H, W) for a ViT."""
  random = np.random.default_rng(0)
  if case.name.startswith("vit"):
    side = case.config["image_size"]
    height, width = side if isinstance(side, list) else (side, side)
    return {"pixel_values": random.normal(size=(2, case.config["num_channels"], height, width)).astype(np.float32)}
  length = case.config.get("n_positions") or case.config["max_position_embeddings"]
  ids = random.integers(0, case.config["vocab_size"], (2, length - 1)).astype(np.int32)
  if not case.name.startswith("bert"):
    return {"input_ids": ids}
  types = random.integers(0, case.config.get("type_vocab_size", 2), ids.shape).astype(np.int32)
  mask = np.ones_like(ids)
  mask[1, -3:] = 0
  return {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}


def theirs(model: Any, given: dict[str, np.ndarray]) -> np.ndarray:
  import torch

  with torch.no_grad():
    tensors = {name: torch.from_numpy(a if a.dtype == np.float32 else a.astype(np.int64)) for name, a in given.items()}
    return model(**tensors).logits.numpy()


def ours(found: Any, given: dict[str, np.ndarray]) -> np.ndarray:
  """The same logits by our network."""
  import jax
  import jax.numpy as jnp

  variables = {"params": jax.tree.map(jnp.asarray, found.params)}
  if "pixel_values" in given:
    image_BHWC = jnp.asarray(given["pixel_values"].transpose(0, 2, 3, 1))
    return np.asarray(found.network.apply(variables, image_BHWC, train=False))
  more = {}
  if "attention_mask" in given:
    more = {"types_BL": given["token_type_ids"], "segments_BL": given["attention_mask"] - 1}  # −1 is padding
  return np.asarray(found.network.apply(variables, given["input_ids"], train=False, **more)[0])


def difference(found: np.ndarray, reference: np.ndarray, given: dict[str, np.ndarray]) -> float:
  """The greatest, over the reference's root mean square; padding is nobody's business."""
  keep = given["attention_mask"] == 1 if "attention_mask" in given else ...
  return float(np.abs(found - reference)[keep].max() / np.sqrt((reference[keep] ** 2).mean()))


def compare(case: Case, write: bool) -> tuple[float, float, bool]:
  """(difference after reading, difference of what transformers reads back, whether the tensors came back in bytes)."""
  from research.interchange import files, pretrained

  model, given = made(case), inputs(case)
  reference = theirs(model, given)
  with tempfile.TemporaryDirectory() as folder:
    first, second = Path(folder) / "theirs", Path(folder) / "ours"
    with contextlib.redirect_stderr(io.StringIO()):
      model.save_pretrained(first)
    if write and case.small:
      target = DATA / case.name
      shutil.rmtree(target, ignore_errors=True)
      target.mkdir(parents=True)
      shutil.copy(first / files.CONFIG, target)
      shutil.copy(first / files.TENSORS, target)
      np.savez_compressed(target / "reference.npz", logits=reference, **given)
    found = pretrained.load(first)
    pretrained.save(second, found.family, found.fields, found.params)
    with contextlib.redirect_stderr(io.StringIO()):
      again, report = type(model).from_pretrained(second, attn_implementation="eager", output_loading_info=True)
    assert not any(report.values()), report
    with files.open_tensors(first) as a, files.open_tensors(second) as b:
      same = a.shapes == b.shapes and all(a.get(name).tobytes() == b.get(name).tobytes() for name in a.shapes)
    read, written = ours(found, given), theirs(again.eval(), given)
    return difference(read, reference, given), difference(written, reference, given), same


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("cases", nargs="*", choices=[[], *(case.name for case in CASES)], help="these alone")
  parser.add_argument("--write", action="store_true", help="write the tests' reference models")
  arguments = parser.parse_args()
  import torch
  import transformers

  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  print(json.dumps({"transformers": transformers.__version__, "torch": torch.__version__}))
  print("| model | shape | ours against transformers | transformers on what we wrote | tensors in bytes |")
  print("| --- | --- | --- | --- | --- |")
  worst = 0.0
  for case in CASES:
    if arguments.cases and case.name not in arguments.cases:
      continue
    read, written, same = compare(case, arguments.write)
    worst = max(worst, read, written)
    bytes_ = "the same" if same else "OTHERS"
    print(f"| {case.name} | {case.shape} | {read:.1e} | {written:.1e} | {bytes_} |", flush=True)
  print(f"greatest: {worst:.1e}")
  return 0 if worst < 1e-4 else 1


if __name__ == "__main__":
  sys.exit(main())
