"""The word export and --init_from=hf:DIR: what goes out comes in again, and what cannot is said in one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from experiments import command, interchange, origin, work
from experiments.gpt.__main__ import EXPERIMENT as GPT
from experiments.job import make_job
from experiments.mlp.__main__ import EXPERIMENT as MLP
from experiments.vit.__main__ import EXPERIMENT as VIT
from research.checkpoint import named
from research.data import tokenizers
from research.interchange import files

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")
DATA = Path(__file__).parent.parent / "research" / "interchange" / "data"
SHAPE = ["--model.layers=2", "--model.width=16", "--model.heads=2", "--model.context=16"]
SHORT = ["--data.batch_size=8", "--run.steps=4", "--optim.learning_rate=1e-2"]
STILL = ["--data.batch_size=8", "--run.steps=1", "--optim.learning_rate=0"]  # an update that changes nothing
TEXT = "the cat sat on the mat.\nthe dog sat on the log.\n" * 40


def said(capsys, definition, *arguments):
  capsys.readouterr()
  assert command.main(definition, list(arguments)) == 0
  return capsys.readouterr().out


def refused(capsys, definition, *arguments):
  capsys.readouterr()
  assert command.main(definition, list(arguments)) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1, error
  return error


def metrics(workdir):
  return json.loads((workdir / "result.json").read_text())["metrics"]


def stored(directory):
  with safe_open(directory / "model.safetensors", "np") as file:
    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def text(tmp_path_factory):
  path = tmp_path_factory.mktemp("text") / "a.txt"
  path.write_text(TEXT)
  return f"--data.source=text:{path}"


@pytest.fixture(scope="module")
def exported(text, tmp_path_factory):
  """(run, directory) of a GPT-2 with byte pairs and averaged parameters."""
  folder = tmp_path_factory.mktemp("gpt2")
  run, target = folder / "run", folder / "hf"
  tokens = ["--text.tokenizer=bpe", "--text.vocabulary=270", "--optim.ema_decay=0.5", "--model.norm_epsilon=1e-3"]
  assert command.main(GPT, [text, *SHAPE, *SHORT, *tokens, f"--workdir={run}"]) == 0
  assert command.main(GPT, ["export", f"--config={run}", f"--to={target}"]) == 0
  return run, target


def test_the_directory_has_what_transformers_needs(exported):
  run, target = exported
  names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
  assert sorted(path.name for path in target.iterdir()) == names
  config = json.loads((target / "config.json").read_text())
  expected = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "layer_norm_epsilon": 1e-3, "n_positions": 16}
  assert config.items() >= expected.items()
  ours = json.loads((run / "tokenizer.json").read_text())["tokenizer"]
  assert json.loads((target / "tokenizer.json").read_text()) == ours
  assert config["eos_token_id"] == ours["model"]["vocab"]["<|endoftext|>"]


def test_a_run_goes_on_from_it_with_the_same_loss_and_the_same_bytes(exported, text, tmp_path, capsys):
  run, target = exported
  second, again = tmp_path / "second", tmp_path / "again"
  line = [text, f"--init_from=hf:{target}", "--text.tokenizer=init", *STILL, f"--workdir={second}"]
  assert f"arrays from hf:{target}" in said(capsys, GPT, *line)
  flags = (second / "run.flags").read_text().splitlines()
  assert {"--model.width=16", "--model.norm_epsilon=0.001", "--model.tied=true", "--model.context=16"} <= set(flags)
  assert metrics(second)["validation/loss"] == pytest.approx(metrics(run)["validation/loss"], rel=1e-6)
  assert "as GPT2LMHeadModel" in said(capsys, GPT, "export", f"--config={second}", f"--to={again}")
  assert (again / "model.safetensors").read_bytes() == (target / "model.safetensors").read_bytes()
  tokens, others = (json.loads((directory / "tokenizer.json").read_text()) for directory in (again, target))
  assert tokens == others
  shutil.move(target, tmp_path / "elsewhere")  # a run keeps what it needs
  try:
    assert said(capsys, GPT, "sample", f"--config={second}", "--tokens=3", "--prompt=the").startswith("the")
  finally:
    shutil.move(tmp_path / "elsewhere", target)


def test_other_tokens_are_refused(exported, text, tmp_path, capsys):
  _, target = exported
  line = [text, f"--init_from=hf:{target}", *STILL, f"--workdir={tmp_path / 'second'}"]
  assert "has another tokenizer" in refused(capsys, GPT, *line, "--text.tokenizer=char")
  bare = shutil.copytree(target, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
  line[1] = f"--init_from=hf:{bare}"
  error = refused(capsys, GPT, *line, "--text.tokenizer=byte")
  assert f"{bare} has embeddings of 270 tokens, and the run's tokens are 257" in error
  assert "has no tokenizer.json" in refused(capsys, GPT, *line, "--text.tokenizer=init")
  assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_characters_and_bytes_go_out_as_a_file_and_come_back(kind, text, tmp_path):
  config = command.read(GPT, [text, f"--text.tokenizer={kind}"]).config
  splits = GPT.open_data(config, print, None)
  documents = interchange.tokenizer_files(config, splits)
  assert documents["tokenizer_config.json"]["eos_token"] == "<|endoftext|>"
  files.write(tmp_path / "hf", documents, {})
  again = tokenizers.load(tmp_path / "hf" / "tokenizer.json")
  assert again.content() == splits.tokenizer.content()


@pytest.mark.parametrize(
  ("flags", "architecture"),
  [
    (["--model.norm=rms", "--model.positions=rotary", "--model.mlp=swiglu", "--model.bias=false"], "LlamaForCausalLM"),
    (["--config=stdlib"], "Qwen3ForCausalLM"),
    (["--config=shakespeare_nano"], "GPT2LMHeadModel"),
    (["--config=stdlib", "--model.qk_norm=false", "--model.window=8"], "MistralForCausalLM"),
  ],
)
def test_a_run_is_written_in_the_layout_that_can_express_it(flags, architecture, text):
  config = command.read(GPT, [*flags, text]).config
  family, fields = interchange.layout(GPT.interchange, config, GPT.open_data(config, print, None))
  assert family.architecture == architecture
  written = family.fields(family.config(fields), "")
  assert {name: fields[name] for name in written} == {**written, "bias": fields["bias"]}


def test_a_model_of_transformers_begins_here(tmp_path, capsys):
  """Eleven characters, one for all others and one between documents: the 13 tokens of the reference models."""
  (tmp_path / "b.txt").write_text("abcdefghij\n" * 60)
  line = [f"--data.source=text:{tmp_path / 'b.txt'}", "--text.tokenizer=char", *SHORT]
  request = command.read(GPT, [*line, f"--init_from=hf:{DATA / 'llama'}", "--model.window=5"])
  model = request.config.model
  assert (model.kv_heads, model.norm, model.mlp, model.positions) == (2, "rms", "swiglu", "rotary")
  assert (model.bias, model.tied, model.context, model.window) == (False, False, 9, 5)
  job = make_job(GPT, request.config, print)
  state = origin.begin(job.initial_state(), work.first_arrays(GPT, job, tmp_path))
  expected = stored(DATA / "llama")
  query_NDH = np.asarray(state.params["transformer"]["layers"]["attention"]["query"]["kernel"])
  np.testing.assert_array_equal(query_NDH[1].T, expected["model.layers.1.self_attn.q_proj.weight"])
  np.testing.assert_array_equal(np.asarray(state.params["head"]["kernel"]).T, expected["lm_head.weight"])

  for name, takes in (("bert", GPT), ("vit", GPT), ("gpt2", VIT)):
    error = refused(capsys, takes, f"--init_from=hf:{DATA / name}")
    assert f'model_type="{name}"; experiments.{takes.name} takes' in error
  assert "experiments.mlp reads no Hugging Face layout" in refused(capsys, MLP, f"--init_from=hf:{DATA / 'gpt2'}")
  assert "nothing is downloaded" in refused(capsys, GPT, "--init_from=hf:gpt2")


def test_a_vision_transformer_goes_out_and_comes_back_with_another_head(tmp_path, capsys):
  shape = ["--model.layers=2", "--model.width=16", "--model.heads=2", "--model.pooling=class"]
  config, target = command.read(VIT, ["--config=digits", *shape]).config, tmp_path / "hf"
  job, random = make_job(VIT, config, print), np.random.default_rng(0)
  shapes = named(job.abstract_state.params)
  first = {name: random.normal(size=leaf.shape).astype(np.float32) for name, leaf in shapes.items()}
  told = interchange.write(VIT.interchange, config, job.data.splits, first, target)
  assert "as ViTForImageClassification" in told
  config = json.loads((target / "config.json").read_text())
  assert config["id2label"] == {str(i): str(i) for i in range(10)}
  assert (config["image_size"], config["num_channels"], config["patch_size"]) == (8, 1, 2)
  assert config["layer_norm_eps"] == 1e-6
  processor = json.loads((target / "preprocessor_config.json").read_text())
  assert 0.2 < processor["image_mean"][0] < 0.4  # of a pixel in [0, 1]

  def begun(directory):
    """(what a run of digits would begin with, what is said of it)"""
    request = command.read(VIT, ["--data.source=sklearn:digits", *STILL, f"--init_from=hf:{directory}"])
    job = make_job(VIT, request.config, print)
    capsys.readouterr()
    return work.first_arrays(VIT, job, tmp_path / "none"), capsys.readouterr().out

  found, _ = begun(target)
  assert {name.removeprefix("params/") for name in found} == set(first)
  for name, array in first.items():
    np.testing.assert_array_equal(found[f"params/{name}"], array)

  three = shutil.copytree(target, tmp_path / "three")
  heads = {name: array[:3].copy() for name, array in stored(target).items() if name.startswith("classifier")}
  save_file({**stored(target), **heads}, three / "model.safetensors", metadata={"format": "pt"})
  (three / "config.json").write_text(json.dumps({**config, "id2label": {str(i): f"c{i}" for i in range(3)}}))
  assert "as drawn: params/head/bias is [3] there and [10] here; params/head/kernel" in begun(three)[1]
  headless = shutil.copytree(target, tmp_path / "headless")
  rest = {name: array for name, array in stored(target).items() if name not in heads}
  save_file(rest, headless / "model.safetensors", metadata={"format": "pt"})
  assert "as drawn: params/head/bias only here; params/head/kernel only here" in begun(headless)[1]

  grey = ["--data.source=sklearn:digits", *STILL, f"--init_from=hf:{DATA / 'vit_grey'}"]
  error = refused(capsys, VIT, *grey, f"--workdir={tmp_path / 'fifth'}")
  assert "has image_size=(12, 8), and this run (8, 8)" in error


def test_what_cannot_be_exported(exported, tmp_path, capsys):
  run, target = exported
  assert "is there already and not empty" in refused(capsys, GPT, "export", f"--config={run}", f"--to={target}")
  assert "--to=DIRECTORY says where" in refused(capsys, GPT, "export", f"--config={run}")
  assert "--to=x belongs to the command export, not to train" in refused(capsys, GPT, "--config=stdlib", "--to=x")
  assert "experiments.mlp has no Hugging Face layout" in refused(capsys, MLP, "export", "--config=digits", "--to=x")
  to = f"--to={tmp_path / 'x'}"
  error = refused(capsys, GPT, "export", f"--config={run}", "--model.logit_softcap=30", to)
  assert "no layout can express this model (gpt2: logit_softcap=30.0, not 0.0; llama: mlp=gelu" in error
  error = refused(capsys, GPT, "export", "--config=stdlib", f"--workdir={tmp_path / 'none'}", to)
  assert "has no checkpoints" in error
  assert not (tmp_path / "x").exists()


def test_help_shows_the_word_where_it_is(capsys):
  assert "export --config=RUN --to=DIRECTORY" in said(capsys, GPT, "--help")
  assert "--to=" in said(capsys, VIT, "--help")
  assert "export" not in said(capsys, MLP, "--help")


def test_tensors_that_do_not_fit_end_a_run_before_it_begins(exported, text, tmp_path, capsys):
  _, target = exported
  broken = shutil.copytree(target, tmp_path / "broken")
  wrong = {**stored(target), "more": np.zeros(2, np.float32), "transformer.wpe.weight": np.zeros((4, 16), np.float32)}
  del wrong["transformer.h.1.mlp.c_fc.bias"]
  save_file(wrong, broken / "model.safetensors")
  line = [text, f"--init_from=hf:{broken}", "--text.tokenizer=init", *STILL, f"--workdir={tmp_path / 'run'}"]
  error = refused(capsys, GPT, *line)
  assert "missing: transformer.h.1.mlp.c_fc.bias; not of this model: more; misshapen: transformer.wpe.weight" in error
  (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
  assert "pytorch_model.bin is not read: only safetensors are" in refused(capsys, GPT, *line)
  assert not (tmp_path / "run").exists()
