"""A run goes on with its own flags or says which differ; every flag of every experiment, one at a time.

Switched off once: with `changes_curve` always false in `run_directory.differences` every mutation is let through, and
`test_each_flag_that_changes_the_curve_is_refused_by_name` fails for each experiment.
"""

import dataclasses
import json

import pytest

from experiments import command as commands
from experiments import flags, run_directory
from experiments.mlp.__main__ import EXPERIMENT as MLP
from research.errors import UserError
from tests.experiments.definitions import EXPERIMENTS

TINY = [
  "--config=iris", "--run.steps=20", "--run.eval_every=10", "--run.checkpoint_every=5", "--data.batch_size=8",
  "--parallel.mesh=data:1", "--model.widths=8",
]  # fmt: skip


def another(leaf, value):
  """A value that the flag takes beside its own."""
  metadata = leaf.field.metadata
  if metadata["choices"]:
    return next(choice for choice in metadata["choices"] if choice != value)
  if isinstance(value, bool):
    return not value
  if isinstance(value, tuple):
    return (*value, 3)
  if isinstance(value, str):
    return f"{value}x"
  step = 1 if isinstance(value, int) else 0.125
  high = metadata["high"]
  return value + step if high is None or value + step <= high else value - step


def replaced(config, name, value):
  head, _, rest = name.partition(".")
  return dataclasses.replace(config, **{head: replaced(getattr(config, head), rest, value) if rest else value})


@pytest.mark.parametrize("definition", EXPERIMENTS, ids=lambda each: each.name)
def test_each_flag_that_changes_the_curve_is_refused_by_name(tmp_path, definition):
  config = definition.schema()
  run_directory.claim(tmp_path, definition.name, config)
  there = flags.values(config)
  for leaf in flags.leaves(definition.schema):
    changed = replaced(config, leaf.name, another(leaf, there[leaf.name]))
    found = run_directory.differing(tmp_path, changed)
    assert [each.name for each in found] == [leaf.name] * leaf.changes_curve, leaf.name
    if leaf.changes_curve:
      ours = flags.write_value(flags.values(changed)[leaf.name])
      with pytest.raises(UserError, match=f"--allow_change={leaf.name} ") as error:
        run_directory.refuse("it", found)
      assert error.value.table[1].split() == [
        f"--{leaf.name}", *(flags.write_value(there[leaf.name]) or '""').split(), *ours.split(),
      ]  # fmt: skip
      with run_directory.owned(tmp_path, definition.name, changed, [leaf.name]):
        pass


@pytest.fixture
def begun(tmp_path, stopping_after, capsys):
  with stopping_after(7):
    assert commands.main(MLP, [*TINY, f"--workdir={tmp_path}"]) == commands.STOPPED
  capsys.readouterr()
  return tmp_path


def goes_on(workdir, capsys, *more):
  code = commands.main(MLP, [*TINY, *more, f"--workdir={workdir}"])
  return code, capsys.readouterr()


def test_a_changed_flag_is_shown_in_two_columns(begun, capsys):
  code, told = goes_on(begun, capsys, "--optim.learning_rate=0.5", "--optim.clip_norm=1")
  assert code == 2
  assert told.err.splitlines() == [
    f"run: {begun} belongs to another experiment: 2 flags differ; give another --workdir, or"
    " --allow_change=optim.learning_rate,optim.clip_norm to go on with these",
    "                         there  here",
    "  --optim.learning_rate  0.02   0.5",
    "  --optim.clip_norm      0.0    1.0",
  ]


def test_what_is_allowed_goes_on_and_is_told(begun, capsys):
  more = ["--optim.learning_rate=0.5", "--allow_change=optim.learning_rate"]
  code, told = goes_on(begun, capsys, *more)
  assert code == 0, told.err
  assert "from step 6 on --optim.learning_rate=0.5, before 0.02" in told.out
  record = json.loads((begun / "run.json").read_text())
  assert record["changes"] == [{"step": 6, "flag": "optim.learning_rate", "from": "0.02", "to": "0.5"}]
  assert "--optim.learning_rate=0.5\n" in (begun / "run.flags").read_text()


def test_what_is_allowed_may_be_stopped_and_goes_on_without_being_allowed_again(begun, capsys, stopping_after):
  with stopping_after(3):
    code, _ = goes_on(begun, capsys, "--optim.learning_rate=0.5", "--allow_change=optim.learning_rate")
  assert code == commands.STOPPED
  code, told = goes_on(begun, capsys, "--optim.learning_rate=0.5")
  assert code == 0, told.err
  assert len(json.loads((begun / "run.json").read_text())["changes"]) == 1


def test_what_turns_out_to_be_impossible_changes_nothing(begun, capsys):
  code, told = goes_on(begun, capsys, "--model.widths=16", "--allow_change=model.widths")
  assert code == 2
  assert "is of another model" in told.err
  assert "--model.widths=8\n" in (begun / "run.flags").read_text()
  code, told = goes_on(begun, capsys)
  assert code == 0, told.err


def test_other_data_are_allowed_by_a_flag_that_says_which_they_are_and_differs(tmp_path, capsys, stopping_after):
  table = tmp_path / "table.csv"
  table.write_text("a,b\n" + "".join(f"{i},{'xy'[i % 2]}\n" for i in range(40)))
  workdir, own = tmp_path / "run", [f"--data.source=csv:{table}"]
  with stopping_after(7):
    assert goes_on(workdir, capsys, *own)[0] == commands.STOPPED
  table.write_text(table.read_text().replace("5,", "9,"))
  code, told = goes_on(workdir, capsys, *own, "--allow_change=data.batch_size")
  assert code == 2
  assert "is not the data that" in told.err
  for name, value in (("data.batch_size", "4"), ("seed", "4")):
    code, told = goes_on(workdir, capsys, *own, f"--{name}={value}", f"--allow_change={name}")
    assert code == 2
    assert "is not the data that" in told.err
  (workdir / "run.json").unlink()  # and where nothing but the checkpoint knows
  code, told = goes_on(workdir, capsys, *own, "--data.batch_size=4", "--allow_change=data.batch_size")
  assert code == 2
  assert "was made with other data" in told.err
  code, told = goes_on(workdir, capsys, *own, "--data.split_seed=4", "--allow_change=data.split_seed")
  assert code == 0, told.err


def test_a_finished_run_goes_on_to_more_steps_where_that_is_allowed_and_never_to_fewer(begun, capsys):
  assert goes_on(begun, capsys)[0] == 0
  code, told = goes_on(begun, capsys, "--run.steps=30", "--allow_change=run.steps")
  assert code == 0, told.err
  assert "going on from step 20" in told.out
  assert json.loads((begun / "result.json").read_text())["step"] == 30
  code, told = goes_on(begun, capsys, "--run.steps=10", "--allow_change=run.steps")
  assert code == 2
  assert "has made 30 updates already, more than the 10 asked for" in told.err


def test_a_page_that_the_disk_did_not_take_is_drawn_when_asked_again(begun, capsys):
  assert goes_on(begun, capsys)[0] == 0
  (begun / "report.html").unlink()
  code, told = goes_on(begun, capsys)
  assert code == 0
  assert "is finished" in told.out
  assert (begun / "report.html").exists()


def test_lost_lines_cost_neither_the_best_checkpoint_nor_silence(tmp_path, capsys, stopping_after):
  """Mutation: without `Checkpoints.best` the last one is taken for the best, and the best one is deleted."""
  workdir = tmp_path / "run"
  own = ["--data.validation_fraction=0.2", "--run.best_metric=validation/loss", "--run.eval_every=5",
         "--run.keep_checkpoints=1", "--optim.learning_rate=3", "--optim.schedule=constant"]  # fmt: skip
  with stopping_after(17):
    assert goes_on(workdir, capsys, *own)[0] == commands.STOPPED
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  scores = {line["step"]: line["validation/loss"] for line in lines if "validation/loss" in line}
  best = min(scores, key=scores.get)
  assert best in {int(path.name) for path in (workdir / "checkpoints").iterdir()}
  assert best < 17
  (workdir / "metrics.jsonl").write_text("")
  code, told = goes_on(workdir, capsys, *own)
  assert code == 0, told.err
  assert "metrics.jsonl is gone: the curve begins at step " in told.out
  result = json.loads((workdir / "result.json").read_text())
  assert result["best"]["validation/loss"] <= scores[best]


def test_an_account_that_is_no_text_costs_the_account_alone(begun, capsys):
  (begun / "goodput.jsonl").write_bytes(b'\xff\xfe{}\n{"seconds": {"steps": 1.0}}\n')
  code, told = goes_on(begun, capsys)
  assert code == 0, told.err


def test_flags_that_are_gone_are_damage(begun, capsys):
  (begun / "run.flags").write_text("")
  code, told = goes_on(begun, capsys)
  assert code == 2
  assert "run.flags is damaged: it has no flags" in told.err


def test_a_curve_that_is_gone_is_told(begun, capsys):
  (begun / "metrics.jsonl").unlink()
  code, told = goes_on(begun, capsys)
  assert code == 0
  assert "metrics.jsonl is gone: the curve begins at step 6" in told.out


def test_a_checkpoint_knows_its_own_flags(begun, capsys):
  """run.flags was edited by hand."""
  path = begun / "run.flags"
  path.write_text(path.read_text().replace("--optim.learning_rate=0.02", "--optim.learning_rate=0.5"))
  code, told = goes_on(begun, capsys, "--optim.learning_rate=0.5")
  assert code == 2
  assert "checkpoints/6 belongs to another experiment: 1 flag differs" in told.err


def test_another_order_of_examples_is_refused(begun, capsys, monkeypatch):
  from experiments import history

  monkeypatch.setattr(history, "_order", lambda job: "0" * 64)
  code, told = goes_on(begun, capsys)
  assert code == 2
  assert "was made with another order of the examples; give another --workdir" in told.err


def test_other_versions_are_told(begun, capsys, monkeypatch):
  from research import provenance

  code_of = provenance.code
  monkeypatch.setattr(provenance, "code", lambda: (f := code_of()) | {"versions": {**f["versions"], "jax": "9.9"}})
  code, told = goes_on(begun, capsys)
  assert code == 0
  assert "(now 9.9): the curve may differ" in told.out


def test_what_is_no_flag_cannot_be_allowed(capsys):
  assert commands.main(MLP, [*TINY, "--allow_change=learning_rat"]) == 2
  assert "names no flag (did you mean --optim.learning_rate?)" in capsys.readouterr().err
  assert commands.main(MLP, ["eval", *TINY, "--allow_change=seed"]) == 2
  assert "--allow_change is for training, not for eval" in capsys.readouterr().err
