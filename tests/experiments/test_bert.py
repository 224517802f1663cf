"""BERT from the command line: pretrained, fine-tuned from that run or from scratch, asked to fill; what is refused."""

import json
import re

import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from experiments import command
from experiments.bert.__main__ import EXPERIMENT as BERT
from experiments.bert.__main__ import open_data

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")
SMALL = [
  "--data.batch_size=16", "--data.validation_fraction=0", "--run.log_every=10", "--optim.learning_rate=1e-2",
  "--parallel.mesh=data:1",
]  # fmt: skip
SHAPE = ["--model.layers=1", "--model.width=8", "--model.heads=2", "--model.context=12"]

DRAWS_PICTURES = True


@pytest.fixture(scope="module")
def table(tmp_path_factory):
  lines = [f'"the {"red cat" if i % 3 else "old dog"} sat on mat {i}",{"cat" if i % 3 else "dog"}' for i in range(60)]
  path = tmp_path_factory.mktemp("bert") / "a.csv"
  path.write_text("\n".join(["note,animal", *lines]) + "\n")
  return path


@pytest.fixture(scope="module")
def pretrained(table):
  workdir = table.parent / "run"
  line = [f"--data.source=csv:{table}", *SMALL, *SHAPE, "--text.vocabulary=280", "--run.steps=4"]
  assert command.main(BERT, [*line, f"--workdir={workdir}"]) == 0
  return workdir


def scores(workdir):
  return json.loads((workdir / "result.json").read_text())["metrics"]


def refused(capsys, *arguments):
  capsys.readouterr()
  assert command.main(BERT, list(arguments)) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1, error
  return error


def test_pretraining_reads_texts_without_their_classes(pretrained):
  assert set(scores(pretrained)) == {"test/loss", "test/perplexity", "test/accuracy"}
  config = command.read(BERT, [f"--config={pretrained}"]).config
  assert set(open_data(config, print, pretrained).train.schema.features) == {"tokens"}
  saved = ocp.load(pretrained / "checkpoints" / "4")["params"]
  assert saved["embed"]["embedding"].shape == (282, 8)  # [MASK] and [CLS] beyond the tokenizer's own
  assert saved["head_bias"].shape == (282,)
  assert (pretrained / "tokenizer.json").exists()


def test_fine_tuning_begins_with_what_pretraining_has_learned(pretrained, table, tmp_path, capsys):
  line = [f"--data.source=csv:{table}", "--text.vocabulary=280", "--task=classify", *SMALL]
  # A learning rate of almost nothing: what the first update starts from is what it leaves.
  line += ["--optim.learning_rate=1e-12", "--run.steps=1", f"--init_from={pretrained}", "--classify.labels=20"]
  assert command.main(BERT, [*line, f"--workdir={tmp_path / 'run'}"]) == 0
  told = capsys.readouterr().out
  assert re.search(r"as drawn: params/head/bias only here; .*params/pooler/kernel only here\n", told)
  assert "20 train" in told
  before, after = (ocp.load(path)["params"] for path in (pretrained / "checkpoints/4", tmp_path / "run/checkpoints/1"))
  assert set(before) - set(after) == {"transform_dense", "transform_norm", "head_bias"}
  assert set(after) - set(before) == {"pooler", "head"}
  for module in ("embed", "position_embed", "embed_norm", "transformer"):
    for ours, theirs in zip(leaves(after[module]), leaves(before[module]), strict=True):
      np.testing.assert_allclose(ours, theirs, atol=1e-9)
  assert json.loads((tmp_path / "run/tokenizer.json").read_text()) == json.loads(
    (pretrained / "tokenizer.json").read_text()
  )


def leaves(tree):
  return [leaf for key in sorted(tree) for leaf in leaves(tree[key])] if isinstance(tree, dict) else [tree]


def test_from_scratch_it_tells_cats_from_dogs(table, tmp_path):
  line = [f"--data.source=csv:{table}", "--task=classify", "--text.tokenizer=word", "--classify.pooling=mean"]
  line += [*SMALL, *SHAPE, "--model.dropout=0", "--run.steps=80", f"--workdir={tmp_path / 'run'}"]
  assert command.main(BERT, line) == 0
  assert scores(tmp_path / "run")["test/accuracy"] == 1.0
  assert scores(tmp_path / "run")["test/macro_f1"] == 1.0
  assert (tmp_path / "run" / "pictures" / "confusion.png").exists()


def test_running_text_is_judged_alike_in_batches_of_any_size(tmp_path, capsys):
  (tmp_path / "a.txt").write_text("the cat sat on the mat.\nthe dog sat on the log.\n" * 40)
  line = [f"--data.source=text:{tmp_path / 'a.txt'}", *SMALL, *SHAPE, "--text.tokenizer=char", "--masks.whole_words"]
  line += ["--run.steps=2", "--data.validation_fraction=0.2", "--data.test_fraction=0"]
  assert command.main(BERT, [*line, f"--workdir={tmp_path / 'run'}"]) == 0
  capsys.readouterr()
  assert command.main(BERT, ["eval", f"--config={tmp_path / 'run'}", "--data.eval_batch_size=3"]) == 0
  told = dict(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  "))
  for name, value in scores(tmp_path / "run").items():
    assert float(told[name]) == pytest.approx(value, rel=1e-5)


def test_it_fills_what_is_masked(pretrained, table, capsys):
  capsys.readouterr()
  prompt = "--prompt=the [MASK] cat sat [MASK]"
  assert command.main(BERT, ["sample", f"--config={pretrained}", prompt, "--count=3"]) == 0
  lines = capsys.readouterr().out.splitlines()[-8:]
  assert (lines[0], lines[4]) == ("[MASK] 1", "[MASK] 2")
  probabilities = [float(line.split()[0]) for line in lines[1:4]]
  assert 1 >= probabilities[0] >= probabilities[1] >= probabilities[2] > 0
  source = table.rename(table.with_suffix(".gone"))  # only the tokenizer is needed, which the run has kept
  try:
    assert command.main(BERT, ["sample", f"--config={pretrained}", prompt, "--count=3"]) == 0
    assert capsys.readouterr().out.splitlines()[-8:] == lines
  finally:
    source.rename(table)
  assert "a context of 12 holds 11 tokens" in refused(
    capsys, "sample", f"--config={pretrained}", "--prompt=[MASK]" + " the cat" * 9
  )
  assert 'nothing to fill: --prompt="import [MASK]"' in refused(capsys, "sample", f"--config={pretrained}")


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--masks.share=0.95"], "--masks.share=0.95: expected a number from 0.01 to 0.9"),
    (["--masks.share=0"], "expected a number from 0.01 to 0.9"),
    (["--task=classify", "--masks.whole_words"], "--masks… belongs to --task=pretrain"),
    (["--classify.labels=5"], "--classify… belongs to --task=classify"),
    (["--data.label_smoothing=0.1"], "--data.label_smoothing belongs to --task=classify"),
    (["--task=classify", "--classify.labels=500"], "48 training examples of 2 classes; from 2 to 48 would do"),
    (["--text.tokenizer=init"], "--text.tokenizer=init is the tokenizer of --init_from, which is not given"),
    (["--text.packed"], "--text.packed is for running text"),
    (["--data.flip"], "--data.flip is for images"),
    (["--model.experts=2"], "--model.experts is for experiments.gpt"),
    (["--model.heads=3"], "3 heads do not divide a width of 8"),
    (["--data.source=sklearn:digits"], "is no text"),
    (["sample", "--prompt=the cat"], "has no [MASK] to fill"),
  ],
)
def test_what_does_not_fit_is_said_in_one_line(table, tmp_path, capsys, arguments, message):
  line = [f"--data.source=csv:{table}", *SMALL, *SHAPE, f"--workdir={tmp_path / 'run'}", *arguments]
  assert message in refused(capsys, *line)
  assert not (tmp_path / "run").exists()


def test_a_context_longer_than_the_text_is_refused(tmp_path, capsys):
  (tmp_path / "a.txt").write_text("the cat sat on the mat.\n" * 4)
  line = [f"--data.source=text:{tmp_path / 'a.txt'}", "--text.tokenizer=byte", "--model.context=120"]
  assert "fewer than a window of 119; --model.context=66 would fit" in refused(capsys, *line)


def test_runs_that_it_cannot_begin_with(pretrained, table, tmp_path, capsys):
  line = [f"--data.source=csv:{table}", "--task=classify", *SMALL, f"--workdir={tmp_path / 'run'}"]
  error = refused(capsys, *line, f"--init_from={pretrained}", "--text.tokenizer=word")
  assert "has another tokenizer (digest" in error
  other = tmp_path / "mlp"
  other.mkdir()
  (other / "run.flags").write_text("# experiment: mlp\n--model.widths=12\n")
  assert "is a run of experiments.mlp, not of experiments.bert" in refused(capsys, *line, f"--init_from={other}")
  error = refused(capsys, *line, f"--init_from={pretrained}", "--text.tokenizer=init", "--model.width=16")
  assert "is of another model: params/embed/embedding is [282, 8] there and [282, 16] here" in error
  assert not (tmp_path / "run").exists()
