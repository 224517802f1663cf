"""BERT to and from Hugging Face: both tasks, each with its head where transformers has one, and the tokenizer."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers as library
from safetensors import safe_open

from experiments import command, interchange, origin, work
from experiments.bert.__main__ import EXPERIMENT as BERT
from experiments.bert.filling import encode
from experiments.bert.network import make_guesser
from experiments.job import make_job
from research.checkpoint import named
from research.data import tokenizers
from research.models.bert import first_id, mask_id

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")
DATA = Path(__file__).parent.parent / "research" / "interchange" / "data"
SHAPE = ["--model.layers=2", "--model.width=16", "--model.heads=2", "--model.context=12", "--data.batch_size=8"]
STILL = ["--run.steps=1", "--optim.learning_rate=0", "--data.batch_size=8", "--parallel.mesh=data:1"]  # changes nothing


def said(capsys, *arguments):
  capsys.readouterr()
  assert command.main(BERT, list(arguments)) == 0
  return capsys.readouterr().out


def refused(capsys, *arguments):
  capsys.readouterr()
  assert command.main(BERT, list(arguments)) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1, error
  return error


def stored(directory):
  with safe_open(directory / "model.safetensors", "np") as file:
    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def table(tmp_path_factory):
  lines = [f"the {'red cat' if i % 3 else 'old dog'} sat on mat {i},{'cat' if i % 3 else 'dog'}" for i in range(60)]
  path = tmp_path_factory.mktemp("bert") / "a.csv"
  path.write_text("\n".join(["note,animal", *lines]) + "\n")
  return f"--data.source=csv:{path}"


@pytest.fixture(scope="module")
def exported(table, tmp_path_factory):
  """(run, directory) of a pretraining run with byte pairs."""
  folder = tmp_path_factory.mktemp("run")
  run, target = folder / "run", folder / "hf"
  line = [table, *SHAPE, *STILL, "--text.vocabulary=280", "--model.norm_epsilon=1e-3"]
  assert command.main(BERT, [*line, f"--workdir={run}"]) == 0
  assert command.main(BERT, ["export", f"--config={run}", f"--to={target}"]) == 0
  return run, target


def drawn(config):
  """(job, arrays by path) of numpy's noise."""
  job, random = make_job(BERT, config, lambda line: None), np.random.default_rng(0)
  shapes = named(job.abstract_state.params)
  return job, {name: random.normal(size=leaf.shape).astype(np.float32) for name, leaf in shapes.items()}


def begun(arguments, folder, capsys):
  """(what a run would begin with, by path; what is said of it)"""
  job = make_job(BERT, command.read(BERT, arguments).config, lambda line: None)
  capsys.readouterr()
  taken = work.first_arrays(BERT, job, folder / "none")
  return {path.removeprefix("params/"): array for path, array in taken.items()}, capsys.readouterr().out


def test_a_pretrained_run_goes_out_and_comes_back_in_the_same_bytes(exported, table, tmp_path, capsys):
  run, target = exported
  config = json.loads((target / "config.json").read_text())
  expected = {"model_type": "bert", "architectures": ["BertForMaskedLM"], "layer_norm_eps": 1e-3, "type_vocab_size": 1}
  assert config.items() >= {**expected, "vocab_size": 282, "max_position_embeddings": 12, "pad_token_id": None}.items()
  line = [table, f"--init_from=hf:{target}", "--text.tokenizer=init", *STILL]
  config = command.read(BERT, line).config
  assert (config.model.norm_epsilon, config.model.token_types, config.model.context) == (1e-3, 1, 12)
  found, _ = begun(line, tmp_path, capsys)
  splits, again = BERT.open_data(config, print, None), tmp_path / "again"
  assert "as BertForMaskedLM" in interchange.write(BERT.interchange, config, splits, found, again)
  assert (again / "model.safetensors").read_bytes() == (target / "model.safetensors").read_bytes()
  for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
    assert json.loads((again / name).read_text()) == json.loads((target / name).read_text())
  assert splits.tokenizer.content() == tokenizers.load(run / "tokenizer.json").content()


def test_its_tokenizer_knows_where_a_text_begins_and_what_is_masked(exported):
  run, target = exported
  theirs = library.Tokenizer.from_file(str(target / "tokenizer.json"))
  config = command.read(BERT, [f"--config={run}"]).config
  ours = BERT.open_data(config, print, None).tokenizer
  vocabulary = ours.size + 2
  for text in ("the [MASK] sat", "[MASK]", "a [MASK][MASK] on  mat 7"):
    assert theirs.encode(text).ids == [first_id(vocabulary), *encode(ours, text, mask_id(vocabulary))]
  settings = json.loads((target / "tokenizer_config.json").read_text())
  assert (settings["mask_token"], settings["cls_token"], settings["model_max_length"]) == ("[MASK]", "[CLS]", 12)


def test_a_bert_of_transformers_begins_here_and_computes_the_same(tmp_path, capsys):
  """Nine characters, one for all others, one between documents, [MASK] and [CLS]: the 13 tokens of the reference."""
  (tmp_path / "b.txt").write_text("abcdefgh\n" * 60)
  line = [f"--data.source=text:{tmp_path / 'b.txt'}", "--text.tokenizer=char", *STILL, "--data.test_fraction=0"]
  config = command.read(BERT, [*line, f"--init_from=hf:{DATA / 'bert'}"]).config
  assert (config.model.token_types, config.model.norm_epsilon, config.model.mlp) == (2, 1e-12, "gelu_exact")
  job = make_job(BERT, config, print)
  state = origin.begin(job.initial_state(), work.first_arrays(BERT, job, tmp_path))
  with np.load(DATA / "bert" / "reference.npz") as file:
    given = dict(file)
  network = make_guesser(config.model, job.data.splits.tokenizer)
  more = {"types_BL": given["token_type_ids"], "segments_BL": given["attention_mask"] - 1}
  variables = {"params": jax.device_get(state.params)}
  logits = np.asarray(jax.jit(lambda v: network.apply(v, given["input_ids"], train=False, **more)[0])(variables))
  seen, expected = given["attention_mask"] == 1, given["logits"]
  assert np.abs(logits - expected)[seen].max() <= 1e-4 * np.sqrt((expected[seen] ** 2).mean())
  target = tmp_path / "hf"
  interchange.write(BERT.interchange, config, job.data.splits, named(jax.device_get(state.params)), target)
  before, after = stored(DATA / "bert"), stored(target)
  assert before.keys() == after.keys()
  for name, array in before.items():
    np.testing.assert_array_equal(array, after[name])

  untied = [*line, f"--init_from=hf:{DATA / 'bert_untied'}", f"--workdir={tmp_path / 'run'}"]
  assert "has tied=False, and this run True" in refused(capsys, *untied)


def test_a_classifier_goes_out_with_its_pooler_and_its_classes(table, exported, tmp_path, capsys):
  _, pretrained = exported
  line = [table, "--task=classify", "--text.vocabulary=280"]
  job, first = drawn(command.read(BERT, [*line, *SHAPE]).config)
  target = tmp_path / "hf"
  assert "as BertForSequenceClassification" in interchange.write(
    BERT.interchange, job.config, job.data.splits, first, target
  )
  assert json.loads((target / "config.json").read_text())["id2label"] == {"0": "cat", "1": "dog"}
  assert {"bert.pooler.dense.weight", "classifier.bias"} <= stored(target).keys()
  start = [*line, *STILL, "--text.tokenizer=init"]
  found, _ = begun([*start, f"--init_from=hf:{target}"], tmp_path, capsys)
  zeros = found.pop("type_embed/embedding")
  assert not zeros.any()
  assert found.keys() == first.keys()
  for name, array in first.items():
    np.testing.assert_array_equal(found[name], array)

  # Either task begins with the other's directory, but for the heads.
  found, told = begun([*start, f"--init_from=hf:{pretrained}"], tmp_path, capsys)
  assert found.keys() == {*first, "type_embed/embedding"} - {
    f"{head}/{part}" for head in ("pooler", "head") for part in ("kernel", "bias")
  }
  assert "left out of" in told
  assert "cls.predictions.bias" in told
  found, told = begun([table, *STILL, "--text.tokenizer=init", f"--init_from=hf:{target}"], tmp_path, capsys)
  assert "as drawn: params/head_bias only here; params/transform_dense" in told
  assert "left out of" in told
  np.testing.assert_array_equal(found["embed/embedding"], first["embed/embedding"])


def test_a_head_that_transformers_has_not_is_left_out_and_named(table, tmp_path):
  line = [table, "--task=classify", "--classify.pooling=mean", "--text.tokenizer=word", *SHAPE]
  job, first = drawn(command.read(BERT, line).config)
  told = interchange.write(BERT.interchange, job.config, job.data.splits, first, tmp_path / "hf")
  assert "as BertModel" in told
  assert "\n  without head/bias, head/kernel: BertModel has no such head\n" in told
  assert told.endswith("without tokenizer.json: no such file divides texts as --text.tokenizer=word does")
  tensors = stored(tmp_path / "hf")
  assert not [name for name in tensors if "pooler" in name or "classifier" in name]
  query = tensors["bert.encoder.layer.1.attention.self.query.weight"]
  np.testing.assert_array_equal(query.T, first["transformer/layers/attention/query/kernel"][1].reshape(16, 16))


def test_what_the_layout_cannot_express_is_refused_by_name(exported, tmp_path, capsys):
  run, _ = exported
  to = f"--to={tmp_path / 'x'}"
  error = refused(capsys, "export", f"--config={run}", "--model.window=8", to)
  assert "no layout can express this model (bert: window=8, not 0)" in error
  assert not (tmp_path / "x").exists()
