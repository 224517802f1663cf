"""Contract 5: flags come from dataclasses, come back from their own text to the bit, and complain in one line."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import flags
from experiments.cnn.__main__ import Config as CNNConfig
from experiments.gpt.__main__ import Config as GPTConfig
from experiments.linear.__main__ import Config as LinearConfig
from experiments.mlp.__main__ import Config as MLPConfig
from experiments.schema import Data, Experiment
from research.errors import UserError

SCHEMAS = (LinearConfig, MLPConfig, CNNConfig, GPTConfig)


def value_of(leaf):
  """Any value that a flag allows."""
  metadata, default = leaf.field.metadata, leaf.field.default
  if metadata["choices"]:
    return st.sampled_from(metadata["choices"])
  if isinstance(default, bool):
    return st.booleans()
  if isinstance(default, int):
    low = 0 if metadata["low"] is None else int(metadata["low"])
    return st.integers(low, 2**31 if metadata["high"] is None else int(metadata["high"]))
  if isinstance(default, float):
    return st.floats(metadata["low"], metadata["high"], allow_nan=False, allow_infinity=False)
  if isinstance(default, tuple):
    return st.lists(st.integers(1, 4096), max_size=4).map(tuple)
  letters = st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp"))
  return st.text(letters).filter(lambda text: text == text.strip() and len(text.splitlines()) < 2)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__module__)
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_any_config_is_its_own_flag_file(schema, data):
  named = {leaf.name: data.draw(value_of(leaf), label=leaf.name) for leaf in flags.leaves(schema)}
  free = dataclasses.make_dataclass("Free", [], bases=(schema,), namespace={"check": lambda self: None}, frozen=True)
  config = flags.build(free, named)
  parsed, words = flags.parse(free, flags.to_text(config).splitlines())
  assert parsed == config
  assert words == []


@pytest.mark.parametrize(
  ("argument", "complaint"),
  [
    ("--optim.learning_rate=fast", "--optim.learning_rate=fast: expected a number, at least 0"),
    ("--optim.learning_rate=nan", "--optim.learning_rate=nan: expected a number, at least 0"),
    ("--optim.beta1=1.5", "--optim.beta1=1.5: expected a number from 0 to 1"),
    ("--data.batch_size=0", "--data.batch_size=0: expected a whole number, at least 1"),
    ("--data.batch_size=3.5", "--data.batch_size=3.5: expected a whole number, at least 1"),
    ("--data.flip=perhaps", "--data.flip=perhaps: expected true or false"),
    ("--optim.name=adm", "did you mean adam?"),
    ("--model.widths=8,wide", "whole numbers, at least 1, with commas between them"),
    ("--model.widht=8", "no flag --model.widht (did you mean --model.widths?)"),
    ("--learning_rate=1", "no flag --learning_rate (did you mean --optim.learning_rate?)"),
    ("--data.source=a\nb", "text without line breaks"),
  ],
)
def test_a_wrong_flag_is_told_with_what_would_be_right(argument, complaint):
  with pytest.raises(UserError) as error:
    flags.parse(MLPConfig, [argument])
  assert complaint in str(error.value)
  assert "\n" not in str(error.value).replace(argument, "")


@pytest.mark.parametrize(
  ("arguments", "complaint"),
  [
    (["--data.batch_size=10", "--optim.micro_batches=4"], "12 would"),
    (["--run.patience=3"], "--run.best_metric"),
    (["--run.best_metric=test/accuracy"], "choose a checkpoint by data that judge it"),
    (["--run.epochs=0"], "both 0"),
    (["--run.steps_per_call=4", "--data.feed=grain"], "--data.feed=device"),
    (["--optim.name=sgd", "--optim.learning_rate=0"], "trains nothing"),
  ],
)
def test_impossible_combinations_are_refused(arguments, complaint):
  with pytest.raises(UserError, match="flags: ") as error:
    flags.parse(MLPConfig, arguments)
  assert complaint in str(error.value)


def test_flag_files_nest_comment_and_override(tmp_path):
  (tmp_path / "parts").mkdir()
  (tmp_path / "parts" / "base.flags").write_text("# a comment\n\n--seed=3\n--optim.learning_rate=0.5\n")
  (tmp_path / "mine.flags").write_text("// another\n--flagfile=parts/base.flags\n--seed=4\n")
  config, _ = flags.parse(MLPConfig, [*flags.read_lines(tmp_path / "mine.flags"), "--data.batch_size=8"])
  assert (config.seed, config.optim.learning_rate, config.data.batch_size) == (4, 0.5, 8)


def test_a_flag_file_that_includes_itself_is_refused(tmp_path):
  (tmp_path / "a.flags").write_text("--flagfile=b.flags\n")
  (tmp_path / "b.flags").write_text("--flagfile=a.flags\n")
  with pytest.raises(UserError, match="includes itself"):
    flags.read_lines(tmp_path / "a.flags")


def test_a_line_that_is_no_flag_is_named(tmp_path):
  (tmp_path / "a.flags").write_text("--seed=1\nlearning_rate = 3\n")
  with pytest.raises(UserError, match="line 2"):
    flags.read_lines(tmp_path / "a.flags")


def test_every_flag_has_help_and_says_whether_it_changes_the_curve():
  for schema in SCHEMAS:
    for leaf in flags.leaves(schema):
      assert leaf.field.metadata["help"]
      assert isinstance(leaf.changes_curve, bool)
      assert len(f"  --{leaf.name}=") < 60


def test_a_groups_default_in_a_schema_stands_before_its_classes():
  @dataclasses.dataclass(frozen=True)
  class Ours(Experiment):
    data: Data = dataclasses.field(default_factory=lambda: Data(source="python:stdlib", test_fraction=0.0))

  config, _ = flags.parse(Ours, ["--data.batch_size=7"])
  assert config == Ours(data=Data(source="python:stdlib", test_fraction=0.0, batch_size=7))


def test_files_that_include_the_next_one_twice_are_refused(tmp_path):
  """Twenty-four of them are sixteen million. Mutation: without the count it has no end."""
  for level in range(24):
    (tmp_path / f"{level}.flags").write_text(f"--flagfile={level + 1}.flags\n" * 2)
  (tmp_path / "24.flags").write_text("")
  with pytest.raises(UserError, match="includes more than 1000 files"):
    flags.read_lines(tmp_path / "0.flags")
