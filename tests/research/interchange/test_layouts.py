"""Hugging Face's layouts: transformers' own logits, the same bytes in both directions, and what is refused, by name.

The models under data/ were drawn at random by transformers; benchmarks/interchange.py writes them.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from safetensors import safe_open
from safetensors.numpy import save_file

from research.errors import UserError
from research.interchange import files, pretrained
from research.interchange.family import fields_of, to_theirs
from research.interchange.gpt2 import GPT2
from research.interchange.llama import LLAMA
from research.interchange.pretrained import FAMILIES
from research.models.language_model import LanguageModel
from research.models.transformer_config import Config
from research.models.vit import ViT

DATA = Path(__file__).parent / "data"
NAMES = sorted(path.name for path in DATA.iterdir())


def logits(found, given):
  """Ours, for the inputs of a reference file."""
  variables = {"params": jax.tree.map(jnp.asarray, found.params)}
  apply = jax.jit(found.network.apply, static_argnames="train")
  if "pixel_values" in given:
    return np.asarray(apply(variables, given["pixel_values"].transpose(0, 2, 3, 1), train=False))
  more = {}
  if "attention_mask" in given:
    more = {"types_BL": given["token_type_ids"], "segments_BL": given["attention_mask"] - 1}
  return np.asarray(apply(variables, given["input_ids"], train=False, **more)[0])


def tensors(directory):
  with safe_open(directory / files.TENSORS, "np") as file:
    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def changed(name, tmp_path, config=None, **replaced):
  """A copy of a model with other entries and tensors; None takes one away."""
  target = shutil.copytree(DATA / name, tmp_path / name)
  entries = {**json.loads((target / files.CONFIG).read_text()), **(config or {})}
  (target / files.CONFIG).write_text(json.dumps({key: value for key, value in entries.items() if value != "absent"}))
  if replaced:
    arrays = {key: array for key, array in {**tensors(target), **replaced}.items() if array is not None}
    save_file(arrays, target / files.TENSORS, metadata={"format": "pt"})
  return target


def assert_same(found, expected):
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    assert found[name].dtype == array.dtype
    assert found[name].shape == array.shape
    assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name):
  with np.load(DATA / name / "reference.npz") as file:
    given = dict(file)
  expected = given.pop("logits")
  seen = given["attention_mask"] == 1 if "attention_mask" in given else ...
  found, expected = logits(pretrained.load(DATA / name), given)[seen], expected[seen]
  assert np.abs(found - expected).max() <= 1e-4 * np.sqrt((expected**2).mean())


def test_the_models_cover_what_they_should():
  fields = {name: pretrained.load(DATA / name).fields for name in NAMES}
  families = {name: json.loads((DATA / name / files.CONFIG).read_text())["model_type"] for name in NAMES}
  assert set(families.values()) == set(FAMILIES)
  for family in ("gpt2", "bert"):
    assert {fields[name]["tied"] for name in NAMES if families[name] == family} == {True, False}
    assert {fields[name]["mlp"] for name in NAMES if families[name] == family} == {"gelu", "gelu_exact"}
  assert {fields[name]["tied"] for name in NAMES if families[name] == "llama"} == {True, False}
  assert all(f["kv_heads"] < f["heads"] for name, f in fields.items() if families[name] in ("llama", "qwen3"))


@pytest.mark.parametrize("name", NAMES)
def test_reading_and_writing_gives_the_same_bytes_and_the_same_network(name, tmp_path):
  found = pretrained.load(DATA / name)
  pretrained.save(tmp_path / "new", found.family, found.fields, found.params)
  assert_same(tensors(tmp_path / "new"), tensors(DATA / name))
  again = pretrained.load(tmp_path / "new")
  assert again.fields == found.fields
  assert again.network == found.network
  entries = json.loads((tmp_path / "new" / files.CONFIG).read_text())
  theirs = json.loads((DATA / name / files.CONFIG).read_text())
  shared = (entries.keys() & theirs.keys()) - {"n_inner"}  # null stands for four times the width
  assert {"architectures", "model_type", "vocab_size" if "vit" not in name else "image_size"} <= shared
  assert {key: theirs[key] for key in shared} == {key: entries[key] for key in shared}
  with safe_open(tmp_path / "new" / files.TENSORS, "np") as file:
    assert file.metadata() == {"format": "pt"}  # without which transformers refuses the file


SHAPE = Config(layers=3, width=12, heads=4)
RMS = dataclasses.replace(SHAPE, norm="rms", mlp="swiglu", bias=False, rotary=True, head_width=2)
ENDS = {"embedding_norm": True, "transform": True, "head_bias": True, "token_types": 2}
OURS = {
  "gpt2": LanguageModel(SHAPE, vocabulary=7, context=5),
  "gpt2 untied": LanguageModel(dataclasses.replace(SHAPE, mlp="relu", mlp_width=10), 7, 5, tied=False),
  "llama": LanguageModel(RMS, 7, 5, positions="rotary"),
  "llama grouped": LanguageModel(dataclasses.replace(RMS, kv_heads=2, head_width=6), 7, 5, "rotary", tied=False),
  "mistral": LanguageModel(dataclasses.replace(RMS, kv_heads=1, window=3), 7, 5, positions="rotary"),
  "qwen3": LanguageModel(dataclasses.replace(RMS, qk_norm=True, head_width=4), 7, 5, positions="rotary"),
  "bert": LanguageModel(dataclasses.replace(SHAPE, causal=False, norm_first=False), 7, 5, **ENDS),
  "bert untied": LanguageModel(dataclasses.replace(SHAPE, causal=False, norm_first=False), 7, 5, tied=False, **ENDS),
  "vit": ViT(dataclasses.replace(SHAPE, causal=False), classes=3, patch=2),
}


def drawn(network):
  """(fields, params of numpy's noise) of a network of ours."""
  image = isinstance(network, ViT)
  given = jnp.zeros((1, 4, 6, 2)) if image else jnp.zeros((1, 5), jnp.int32)
  shapes = nn.meta.unbox(jax.eval_shape(lambda: network.init(jax.random.key(0), given, train=False)))["params"]
  random = np.random.default_rng(3)
  params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), shapes)
  return {**fields_of(network), **({"image_size": (4, 6), "channels": 2} if image else {})}, params


@pytest.mark.parametrize("name", OURS)
def test_writing_and_reading_gives_the_same_parameters_in_bits(name, tmp_path):
  fields, params = drawn(OURS[name])
  fitting = [family.model_type for family in FAMILIES.values() if not family.differences(fields)]
  assert fitting[0] == name.split()[0]
  pretrained.save(tmp_path / "new", FAMILIES[fitting[0]], fields, params)
  found = pretrained.load(tmp_path / "new")
  flat = lambda tree: traverse_util.flatten_dict(tree, sep="/")  # noqa: E731
  assert_same(flat(found.params), flat(params))
  written = {**fields_of(found.network), "kv_heads": fields["kv_heads"], "initializer": fields["initializer"]}
  assert written == {key: value for key, value in fields.items() if key in written}


def test_no_biases_are_biases_of_zero(tmp_path):
  network = LanguageModel(dataclasses.replace(SHAPE, bias=False), 7, 5)
  fields, params = drawn(network)
  pretrained.save(tmp_path / "new", GPT2, fields, params)
  found = pretrained.load(tmp_path / "new")
  given = {"input_ids": np.array([[1, 2, 3, 4, 5]], np.int32)}
  mine = logits(dataclasses.replace(found, network=network, params=params), given)
  np.testing.assert_allclose(logits(found, given), mine, rtol=1e-6, atol=1e-6)
  assert not np.any(found.params["transformer"]["layers"]["attention"]["query"]["bias"])


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_is_read_as_float32(dtype, tmp_path):
  halves = {name: array.astype(dtype) for name, array in tensors(DATA / "llama").items()}
  found = pretrained.load(changed("llama", tmp_path, **halves))
  expected = pretrained.load(changed("llama", tmp_path / "x", **{n: a.astype(np.float32) for n, a in halves.items()}))
  flat = lambda tree: traverse_util.flatten_dict(tree, sep="/")  # noqa: E731
  assert_same(flat(found.params), flat(expected.params))


def shards(tmp_path, name="gpt2"):
  target = changed(name, tmp_path)
  arrays = tensors(target)
  (target / files.TENSORS).unlink()
  parts = {f"model-0000{i + 1}-of-00002.safetensors": sorted(arrays)[i::2] for i in range(2)}
  for file, held in parts.items():
    save_file({each: arrays[each] for each in held}, target / file)
  places = {each: file for file, held in parts.items() for each in held}
  (target / files.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
  return target, places


def test_shards_are_one_model(tmp_path):
  target, _ = shards(tmp_path)
  flat = lambda tree: traverse_util.flatten_dict(tree, sep="/")  # noqa: E731
  assert_same(flat(pretrained.load(target).params), flat(pretrained.load(DATA / "gpt2").params))


@pytest.mark.parametrize(
  ("shard", "message"),
  [
    ("pytorch_model-1.bin", "names 'pytorch_model-1.bin'; a shard is a .safetensors file beside it"),
    ("../model.safetensors", "names '../model.safetensors'"),
    ("gone.safetensors", "gone.safetensors: No such file"),
  ],
)
def test_an_index_of_other_files(shard, message, tmp_path):
  target, places = shards(tmp_path)
  (target / files.INDEX).write_text(json.dumps({"weight_map": {**places, "more": shard}}))
  with pytest.raises(UserError, match=message):
    pretrained.load(target)


def test_missing_extra_and_misshapen_tensors_are_all_named(tmp_path):
  others = {"transformer.wpe.weight": np.zeros((3, 8), np.float32), "x": np.zeros(1, np.float32), "y.z": np.zeros(2)}
  gone = {f"transformer.h.{i}.ln_1.bias": None for i in range(2)}
  with pytest.raises(UserError) as caught:
    pretrained.load(changed("gpt2", tmp_path, **others, **gone))
  line = str(caught.value)
  assert "missing: transformer.h.0.ln_1.bias, transformer.h.1.ln_1.bias;" in line
  assert "not of this model: x, y.z;" in line
  assert line.endswith("misshapen: transformer.wpe.weight is [3, 8], not [9, 8]")


@pytest.mark.parametrize(
  "name", ["pytorch_model.bin", "model.pt", "model.pkl", "model.ckpt", "pytorch_model.bin.index.json", "weights.pth"]
)
def test_a_pickle_is_refused_and_passed_over_beside_safetensors(name, tmp_path):
  target = changed("gpt2", tmp_path)
  (target / name).write_bytes(b"\x80\x04cos\nsystem\n")
  pretrained.load(target)
  (target / files.TENSORS).unlink()
  with pytest.raises(UserError, match=f"{name} is not read: only safetensors are .*save_pretrained"):
    pretrained.load(target)
  with pytest.raises(UserError, match=f"{name} is not read|is a file"):
    pretrained.load(target / name)


@pytest.mark.parametrize(
  ("name", "entries", "message"),
  [
    ("gpt2", {"model_type": "t5"}, "model_type='t5'; gpt2, llama"),
    ("gpt2", {"n_embd": "absent"}, "has no n_embd"),
    ("gpt2", {"n_embd": 8.5}, "n_embd=8.5; it is a whole number"),
    ("gpt2", {"n_layer": 0}, "n_layer=0; it is a whole number, at least 1"),
    ("gpt2", {"tie_word_embeddings": "yes"}, "tie_word_embeddings='yes'; it is true or false"),
    ("gpt2", {"layer_norm_epsilon": "small"}, "layer_norm_epsilon='small'; it is a number"),
    ("gpt2", {"activation_function": "swish"}, "activation_function='swish'; only gelu_new, "),
    ("gpt2", {"activation_function": ["gelu"]}, r"activation_function=\['gelu'\]; only gelu_new, "),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=False"),
    ("llama", {"attention_bias": True}, "attention_bias=True, which this transformer is not built for"),
    ("llama", {"mlp_bias": True}, "mlp_bias=True"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu'; only silu"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling={'type': 'linear'"),
    ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope_scaling={'rope_type': 'llama3'"),
    ("qwen3", {"use_sliding_window": True}, "use_sliding_window=True"),
    ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
    ("bert", {"is_decoder": True}, "is_decoder=True"),
    ("vit", {"qkv_bias": False}, "qkv_bias=False"),
    ("vit", {"image_size": [8, 8, 8]}, r"image_size=\[8, 8, 8\]; it is a side or two"),
  ],
)
def test_a_configuration_that_ours_cannot_be(name, entries, message, tmp_path):
  with pytest.raises(UserError, match=message) as caught:
    pretrained.load(changed(name, tmp_path, entries))
  assert f"{name}/config.json" in str(caught.value)


def test_older_and_shorter_ways_to_write_the_same_entries(tmp_path):
  expected = pretrained.load(DATA / "llama_tied").network
  older = {"rope_parameters": "absent", "rope_theta": 500.0, "rope_scaling": None}
  assert pretrained.load(changed("llama_tied", tmp_path, older)).network == expected
  assert expected.config.rotary_base == 500.0
  full = {"num_key_value_heads": "absent", "head_dim": "absent"}
  fields = LLAMA.fields({**json.loads((DATA / "llama" / files.CONFIG).read_text()), **dict.fromkeys(full)}, "")
  assert (fields["kv_heads"], fields["head_width"]) == (4, 2)


def test_files_of_other_versions_and_classes(tmp_path):
  arrays = tensors(DATA / "gpt2")
  gone = dict.fromkeys(arrays)
  bare = {name.removeprefix("transformer."): array for name, array in arrays.items()}
  masks = {"h.0.attn.bias": np.ones((1, 1, 9, 9), np.uint8), "h.0.attn.masked_bias": np.float32(-1e4).reshape(1)}
  found = pretrained.load(changed("gpt2", tmp_path, **{**gone, **bare, **masks}))
  assert sorted(found.left_out) == sorted(masks)
  flat = lambda tree: traverse_util.flatten_dict(tree, sep="/")  # noqa: E731
  assert_same(flat(found.params), flat(pretrained.load(DATA / "gpt2").params))

  arrays = tensors(DATA / "bert")
  old = lambda name: name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta")  # noqa: E731
  older = {old(name): array for name, array in arrays.items()}
  zeros = np.zeros(8, np.float32)
  more = {"bert.pooler.dense.bias": zeros, "cls.seq_relationship.bias": zeros[:2]}
  copies = {
    "cls.predictions.decoder.weight": arrays["bert.embeddings.word_embeddings.weight"],
    "cls.predictions.decoder.bias": arrays["cls.predictions.bias"],
  }
  found = pretrained.load(changed("bert", tmp_path, **{**dict.fromkeys(arrays), **older, **more, **copies}))
  assert sorted(found.left_out) == sorted(more)
  assert_same(flat(found.params), flat(pretrained.load(DATA / "bert").params))

  other = changed("gpt2", tmp_path / "other", **{"lm_head.weight": arrays["bert.embeddings.word_embeddings.weight"]})
  with pytest.raises(UserError, match=r"ties lm_head.weight to transformer.wte.weight, and they differ"):
    pretrained.load(other)


def test_tensors_that_are_no_float32_numbers(tmp_path):
  target = changed("gpt2", tmp_path, **{"transformer.ln_f.bias": np.zeros(8, np.int32)})
  with pytest.raises(UserError, match=r"transformer.ln_f.bias is I32; F32, BF16, F16 can be read"):
    pretrained.load(target)


def test_damaged_and_missing_files(tmp_path):
  target = changed("gpt2", tmp_path)
  whole = (target / files.TENSORS).read_bytes()
  for content in (whole[:-5], whole[:4], b"", b"\xff" * 64):
    (target / files.TENSORS).write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*model.safetensors"):
      pretrained.load(target)
  (target / files.TENSORS).unlink()
  with pytest.raises(UserError, match=r"has neither model.safetensors nor model.safetensors.index.json"):
    pretrained.load(target)
  for content, message in (("{", "is damaged"), ("[1]", "is no JSON object")):
    (target / files.CONFIG).write_text(content)
    with pytest.raises(UserError, match=message):
      pretrained.load(target)
  (target / files.CONFIG).unlink()
  with pytest.raises(UserError, match=r"cannot read .*config.json: No such file"):
    pretrained.load(target)
  with pytest.raises(UserError, match="nothing is downloaded"):
    pretrained.load(tmp_path / "gone")


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"window": 3}, "window=3, not 0"),
    ({"experts": 2}, "experts=2, not 0"),
    ({"attention_softcap": 2.0}, "attention_softcap=2.0"),
    ({"logit_softcap": 2.0}, "logit_softcap=2.0"),
    ({"norm": "rms"}, "norm=rms, not layer"),
    ({"norm_first": False}, "norm_first=False, not True"),
    ({"kv_heads": 2}, "kv_heads=2, not 4"),
    ({"head_width": 5}, "head_width=5, not 3"),
    ({"mlp": "swiglu"}, "mlp=swiglu"),
    ({"positions": "rotary"}, "positions=rotary, not learned"),
    ({"head_bias": True}, "head_bias=True"),
    ({"invented": 1}, "invented=1"),
  ],
)
def test_what_a_layout_cannot_express_is_never_written(change, message, tmp_path):
  fields, params = drawn(OURS["gpt2"])
  with pytest.raises(UserError, match=message):
    pretrained.save(tmp_path / "new", GPT2, {**fields, **change}, params)
  assert not (tmp_path / "new").exists()
  with pytest.raises(ValueError, match="no place in the gpt2 layout for more"):
    to_theirs(GPT2, fields, {"more": np.zeros(1)})


def test_a_bert_without_kinds_of_token_has_one_of_zeros(tmp_path):
  network = dataclasses.replace(OURS["bert"], token_types=0)
  fields, params = drawn(network)
  pretrained.save(tmp_path / "new", FAMILIES["bert"], fields, params)
  found = pretrained.load(tmp_path / "new")
  assert found.fields["token_types"] == 1
  np.testing.assert_array_equal(found.params.pop("type_embed")["embedding"], np.zeros((1, 12), np.float32))
  flat = lambda tree: traverse_util.flatten_dict(tree, sep="/")  # noqa: E731
  assert_same(flat(found.params), flat(params))


def test_a_bert_without_its_head_is_no_whole_model(tmp_path):
  gone = {name: None for name in tensors(DATA / "bert") if name.startswith("cls.")}
  with pytest.raises(UserError, match=r"has no head that fits its config.json: no transform_dense/kernel, "):
    pretrained.load(changed("bert", tmp_path, **gone))


def test_a_directory_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
  found = pretrained.load(DATA / "gpt2")
  target = tmp_path / "new"
  (target / "mine").mkdir(parents=True)
  with pytest.raises(UserError, match="is there already and not empty"):
    pretrained.save(target, GPT2, found.fields, found.params)
  assert [path.name for path in target.iterdir()] == ["mine"]
  (target / "mine").rmdir()

  def full(*_, **__):
    raise OSError(28, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(UserError, match=r"cannot write .*new: No space left on device"):
      pretrained.save(target, GPT2, found.fields, found.params)
  assert [path.name for path in tmp_path.rglob("*")] == ["new"]
  pretrained.save(target, GPT2, found.fields, found.params)
  assert sorted(path.name for path in target.iterdir()) == [files.CONFIG, files.TENSORS]
