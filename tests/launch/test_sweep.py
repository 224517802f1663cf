"""A sweep: what its command may say, which trials there are, what they come to, and that it can be stopped anywhere."""

import csv
import json
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from experiments.mlp.__main__ import Config
from launch.sweep import __main__ as sweep
from launch.sweep import grammar, running, table
from launch.sweep.study import FILE, Study, choice, ended_at, name
from research.errors import UserError

MLP = ("--experiment=mlp", "--config=iris", "--data.validation_fraction=0.2", "--metric=validation/accuracy")
RATES = grammar.Range("optim.learning_rate", 1e-4, 1e-1, logarithmic=True, whole=False)
NAMES = grammar.Values("optim.name", ("sgd", "adamw"))


@pytest.mark.parametrize(
  ("text", "meant"),
  [
    ("optim.learning_rate=1e-3, 1e-2", grammar.Values("optim.learning_rate", ("1e-3", "1e-2"))),
    ("--model.widths=64;128,128", grammar.Values("model.widths", ("64", "128,128"))),
    ("model.widths=128,128;", grammar.Values("model.widths", ("128,128",))),
    ("parallel.mesh=data:4;data:2,model:2", grammar.Values("parallel.mesh", ("data:4", "data:2,model:2"))),
    ("optim.learning_rate=log:1e-4..1e-1", RATES),
    ("model.dropout=0..0.5", grammar.Range("model.dropout", 0.0, 0.5, False, False)),
    ("data.batch_size=log:8..512", grammar.Range("data.batch_size", 8, 512, True, True)),
  ],
)
def test_what_over_says(text, meant):
  assert grammar.parse(Config, [text]) == [meant]


@pytest.mark.parametrize(
  ("over", "complaint"),
  [
    (["optim.lerning_rate=1,2"], "did you mean --optim.learning_rate?"),
    (["model.widths=64,128"], "write ; between values"),
    (["optim.learning_rate"], "names no values"),
    (["optim.learning_rate=1,,2"], "expected a number"),
    (["optim.learning_rate=1,1"], "has 1 twice"),
    (["optim.learning_rate=1", "optim.learning_rate=2"], "given twice"),
    (["optim.learning_rate=2..1"], "the first end has to be less"),
    (["optim.learning_rate=log:0..1"], "begins above 0"),
    (["optim.learning_rate=1..2"], "a grid needs values"),
    (["data.batch_size=8..16.5"], "takes whole numbers"),
    (["optim.name=adamw,adm"], "did you mean adam?"),
    (["data.batch_size=32,0"], "--data.batch_size=0: expected a whole number, at least 1"),
    (["optim.micro_batches=1,3"], "does not divide into"),
  ],
)
def test_no_trial_begins_where_one_is_impossible(over, complaint, in_directory, capsys):
  assert sweep.main([*MLP, "--workdir=s", *(f"--over={each}" for each in over)]) == 2
  error = capsys.readouterr().err
  assert complaint in error
  assert error.startswith("sweep: ")
  assert "flags: " not in error
  assert error.count("\n") == 1
  assert not list(in_directory.iterdir())


@pytest.mark.parametrize(
  ("arguments", "complaint"),
  [
    (["--experiment=mpl"], "did you mean mlp?"),
    (["--metric=test/accuracy"], "choose by data that judge the choice"),
    (["--metric=accuracy"], "is no SPLIT/NAME, such as validation/accuracy"),
    (["--metric=vaildation/accuracy"], "did you mean validation/accuracy?"),
    (["eval"], "a sweep trains"),
    (["--print", "--collect"], "both given"),
    (["--print", "--method=tpe"], "no commands to print"),
    (["--jobs=2", "--places=A=1;A=2;A=3"], "leave --jobs out"),
    (["--places=A"], "is not VARIABLE=VALUE"),
    (["--run.stepz=4"], "did you mean --run.steps?"),
    (["--trials=3"], "--trials=3 is nothing for --method=grid"),
    (["--sweep_seed=1"], "--sweep_seed=1 is nothing for --method=grid"),
    (["--prune_after", "2"], "--prune_after=2 is nothing for --prune=none"),
    (["--seed=3"], "--seed is swept by --over and given as well"),
    (["--data.flip", "--over=data.flip=true,false"], "--data.flip is swept"),
    (["--nodata.flip", "--over=data.flip=true,false"], "--data.flip is swept"),
    (["--method=random", "--over=model.dropout=0..2"], "expected a number from 0 to 0.99"),
  ],
)
def test_flags_that_make_no_sweep(arguments, complaint, in_directory, capsys):
  assert sweep.main([*MLP, "--workdir=s", "--over=seed=0,1", *arguments]) == 2
  assert complaint in capsys.readouterr().err
  assert not list(in_directory.iterdir())


def test_a_grid_is_every_combination_under_names_that_tell_them():
  space = [grammar.Values("model.widths", ("64", "128,128")), NAMES]
  names = [grammar.name(number, each) for number, each in enumerate(grammar.grid(space))]
  assert names == ["000-widths=64-name=sgd", "001-widths=64-name=adamw", "002-widths=128,128-name=sgd",
                   "003-widths=128,128-name=adamw"]  # fmt: skip


# A trial's own evaluations, in order; the fifth and later trials of the median rule can be pruned.
RISING = [[0.5, 0.6, 0.7], [0.4, 0.5, 0.6], [0.3, 0.4, 0.5], [0.2, 0.3, 0.4], [0.1, 0.2, 0.3]]


def test_the_median_rule():
  """With five done, whose medians at each place are 0.3, 0.4, 0.5: a best so far below them ends a trial."""
  more = [[0.29, 0.9, 0.9], [0.3, 0.39, 0.9], [0.31, 0.41, 0.51], [0.6, 0.1, 0.1]]
  ends = ended_at([*RISING, *more[:1]], "validation/accuracy", "median", 1)
  assert ends == [None] * 5 + [1]
  assert ended_at([*RISING, more[1]], "validation/accuracy", "median", 1)[-1] == 2
  assert ended_at([*RISING, more[2]], "validation/accuracy", "median", 1)[-1] is None
  assert ended_at([*RISING, more[3]], "validation/accuracy", "median", 1)[-1] is None  # its best so far is 0.6
  assert ended_at([*RISING, more[0]], "validation/accuracy", "median", 2)[-1] is None  # 0.9 by then
  assert ended_at([*RISING, [0.31, 0.41, 0.51]], "validation/loss", "median", 1)[-1] == 1  # less is better


def test_successive_halving():
  """The first alone is the best so far; of those at a rung only the best third goes on."""
  curves = [[3.0] * 9, [4.0] * 9, [2.0, 2.0, 3.5], [1.0, 1.0, 1.0] + [1.0] * 6]
  assert ended_at(curves, "validation/loss", "halving", 1) == [None, 1, 3, None]
  assert ended_at(curves, "validation/loss", "halving", 3) == [None, 3, 3, None]
  assert ended_at(curves, "validation/loss", "none", 1) == [None] * 4


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_what_is_drawn_does_not_depend_on_how_often_a_sweep_was_killed(tmp_path, method):
  def draw(folder, reopening):
    folder.mkdir()
    make = lambda: Study(folder, [RATES, NAMES], method=method, trials=12, seed=3)  # noqa: E731
    study, drawn = make(), []
    while (trial := study.next()) is not None:
      drawn.append((name(trial), dict(trial.params)))
      if reopening:
        with open(folder / FILE, "ab") as file:  # killed within a line, with Optuna's lock in its hands
          file.write(b'{"op_code": 8, "worker')
        (folder / f"{FILE}.lock").symlink_to("nowhere")
        study = make()
        trial = study.next()  # the one that was under way
      study.done(trial, [trial.params["optim.learning_rate"]])
    return drawn

  at_once = draw(tmp_path / "a", False)
  assert at_once == draw(tmp_path / "b", True)
  assert len({each["optim.learning_rate"] for _, each in at_once}) == 12
  assert all(1e-4 <= each["optim.learning_rate"] <= 1e-1 for _, each in at_once)


def test_a_study_goes_on_with_what_was_under_way_and_tries_again_what_failed(tmp_path):
  study = Study(tmp_path, [NAMES])
  first = study.next()
  study.failed(first, "exit code 1: oh")
  study.next()
  study = Study(tmp_path, [NAMES])
  under_way = study.next()
  assert choice(under_way) == {"optim.name": "adamw"}
  assert study.next() is None
  study.done(under_way, [0.3, 0.2])
  assert study.retry() == 1
  again = study.next()
  assert (name(again), choice(again)) == (name(first), {"optim.name": "sgd"})
  study.done(again, [0.1])
  assert [trial.state.name for trial in study.newest().values()] == ["COMPLETE", "COMPLETE"]
  assert study.retry() == 0


FAKE = textwrap.dedent("""
  import fcntl, json, pathlib, signal, sys, time
  run, values, end = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
  run.mkdir(parents=True, exist_ok=True)
  lock = open(run / "lock", "a")
  fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  with open(run / "metrics.jsonl", "w") as file:
    for step, value in enumerate(values, start=1):
      file.write(json.dumps({"step": 10 * step, "time": 0.0, "validation/loss": value}) + "\\n")
  if end == "waits":
    time.sleep(60)
  if end == "crashes":
    print("some words"); print("the reason", file=sys.stderr); sys.exit(1)
  if end == "stops":
    sys.exit(77)
  (run / "result.json").write_text('{"step": 10, "wall_seconds": 1.0, "metrics": {}}')
""")


# Stands where Python would, and notes that it was started: a run that is whole after its first evaluation.
TRIAL = """#!{python} -S
import json, os, sys
flags = dict(each[2:].split("=", 1) for each in sys.argv[3:] if "=" in each)
run = flags["workdir"]
os.makedirs(run, exist_ok=True)
with open("starts", "a") as file:
  file.write(os.path.basename(run) + "\\n")
with open(os.path.join(run, "metrics.jsonl"), "w") as file:
  file.write(json.dumps({{"step": 1, "time": 0.0, "validation/loss": 0.5}}) + "\\n")
with open(os.path.join(run, "result.json"), "w") as file:
  json.dump({{"step": 1, "wall_seconds": 1.0, "metrics": {{}}}}, file)
"""


def local(folder, ends, **options):
  """A sweep over seeds whose trials do what `ends` says: (values, how it ends) of each."""
  study = Study(folder, [grammar.Values("seed", tuple(map(str, range(len(ends)))))], **options)

  def command(trial):
    values, end = ends[trial.number]
    return [sys.executable, "-c", FAKE, folder / "runs" / name(trial), json.dumps(values), end]

  said = []
  return study, running.Local(study, folder, command, "validation/loss", [{}], said.append), said


def test_how_trials_end(tmp_path):
  ends = [([3.0, 2.0, 2.5], "is done"), ([4.0], "waits"), ([1.0], "crashes"), ([0.5], "is done"), ([0.4], "stops")]
  study, trials, _ = local(tmp_path, ends, prune="halving")
  assert not trials.run(lambda: False)  # one has not ended
  rows = table.rows(study.newest(), tmp_path, "validation/loss")
  assert [(row["name"], row["state"], row["value"]) for row in rows] == [
    ("003-seed=3", "done", 0.5),
    ("000-seed=0", "done", 2.0),
    ("001-seed=1", "pruned", 4.0),  # worse than the first's first evaluation
    ("004-seed=4", "unfinished", 0.4),
    ("002-seed=2", "failed", 1.0),
  ]
  assert rows[1]["best_step"] == 20
  assert rows[-1]["reason"] == "exit code 1: the reason"
  text = table.markdown(rows, ["seed"], {"metric": "validation/loss", "experiment": "fake"})
  assert "2 done, 1 pruned, 1 unfinished, 1 failed" in text
  assert "- `002-seed=2` failed: exit code 1: the reason" in text
  assert f"python -m research.report {rows[0]['run']} {rows[1]['run']}" in text


def test_a_trial_that_another_process_is_at_is_waited_for(tmp_path):
  _, trials, said = local(tmp_path, [([1.0], "is done")])
  held = [sys.executable, "-c", FAKE, str(tmp_path / "runs" / "000-seed=0"), "[2.0]", "waits"]
  with subprocess.Popen(held) as other:
    while not running.busy(tmp_path / "runs" / "000-seed=0"):
      time.sleep(0.02)
    asked = []

    def stop():  # asked twice before the first look, and then at each
      asked.append(None)
      if len(asked) == 5:
        other.send_signal(signal.SIGTERM)
      return False

    assert trials.run(stop)
  assert said == ["000-seed=0 is being run by another process", "000-seed=0 begins",
                  "000-seed=0 is done: validation/loss 1"]  # fmt: skip


def test_a_metric_that_runs_do_not_have_ends_the_sweep_and_its_trials(tmp_path):
  study, trials, _ = local(tmp_path, [([1.0], "waits")])
  trials.metric = "validation/los"
  with pytest.raises(UserError, match=r"did you mean validation/loss\?"):
    trials.run(lambda: False)
  assert not running.busy(tmp_path / "runs" / "000-seed=0")
  assert study.newest()["000-seed=0"].state.name == "RUNNING"


@pytest.mark.parametrize("how", [[], ["--collect"]])
def test_the_right_metric_goes_on_in_the_directory_of_a_wrong_one(how, in_directory, capsys):
  """What has been run is not run again, and keeps its name."""
  fake = in_directory / "python"
  fake.write_text(TRIAL.format(python=sys.executable))
  fake.chmod(0o755)
  arguments = ["--experiment=mlp", "--config=iris", "--workdir=s", "--over=seed=0,1", f"--python={fake}"]
  if how:
    assert sweep.main([*arguments, "--print", "--metric=validation/los"]) == 0
    subprocess.run(capsys.readouterr().out.split("\n")[0], shell=True, check=True)
  assert sweep.main([*arguments, *how, "--metric=validation/los"]) == 2
  error = capsys.readouterr().err
  assert "did you mean validation/loss?" in error
  assert "the same command with another --metric goes on" in error
  before = (in_directory / "starts").read_text()
  assert before == "000-seed=0\n"
  assert sweep.main([*arguments, *how, "--metric=validation/loss"]) == 0
  rows = list(csv.DictReader((in_directory / "s" / "table.csv").read_text().splitlines()))
  assert [(row["name"], row["validation/loss"]) for row in rows][:1] == [("000-seed=0", "0.5")]
  assert (in_directory / "starts").read_text().count("000") == (1 if how else 2)


def test_a_sweep_of_real_runs_is_stopped_and_goes_on(in_directory, monkeypatch, capsys):
  """The second trial cannot be: iris has no images to pad."""
  arguments = [*MLP, "--workdir=s", "--over=data.pad_crop=0,2", "--run.steps=6", "--run.eval_every=3",
               "--model.widths=4"]  # fmt: skip

  class Stop:
    def __enter__(self):
      return lambda: any(in_directory.glob("s/runs/*/run.flags"))

    def __exit__(self, *_exception):
      pass

  with monkeypatch.context() as patch:
    patch.setattr(sweep, "StopRequest", Stop)
    assert sweep.main(arguments) == 75
  assert "1 unfinished, 1 waiting" in capsys.readouterr().out

  assert sweep.main([*arguments, "--jobs=2"]) == 0
  assert "000-pad_crop=0 goes on" in capsys.readouterr().out
  done, failed = csv.DictReader((in_directory / "s" / "table.csv").read_text().splitlines())
  result = json.loads((in_directory / "s" / "runs" / "000-pad_crop=0" / "result.json").read_text())
  assert done["state"] == "done"
  assert done["step"] == "6"
  assert float(done["validation/accuracy"]) >= result["metrics"]["validation/accuracy"]
  assert failed["state"] == "failed"
  assert failed["reason"].startswith("exit code 2: ")
  assert "pad_crop" in failed["reason"]
  assert {path.name for path in (in_directory / "s").glob("*.png")} == {"curves.png", "flags.png"}

  assert sweep.main([*arguments, "--optim.beta1=0.8"]) == 2
  assert "belongs to another sweep (--optim.beta1=0.9 there, 0.8 here)" in capsys.readouterr().err
  with sweep.locked(in_directory / "s", "sweep"):
    assert sweep.main(arguments) == 2
  assert "another process is using s" in capsys.readouterr().err


def test_runs_of_another_engine_are_printed_and_collected(in_directory, capsys):
  arguments = [*MLP, "--workdir=s", "--over=model.widths=4;4,4", "--python=python"]
  assert sweep.main([*arguments, "--print"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[1] == (
    "python -m experiments.mlp --config=iris --data.validation_fraction=0.2 --model.widths=4,4"
    " --workdir=s/runs/001-widths=4,4"
  )
  assert sweep.main([*arguments, "--print"]) == 0
  assert capsys.readouterr().out.splitlines() == lines

  run = in_directory / "s" / "runs" / "001-widths=4,4"
  run.mkdir(parents=True)
  evaluated = {"step": 5, "time": 1.0, "validation/accuracy": 0.75}
  (run / "metrics.jsonl").write_text(json.dumps(evaluated) + "\n")
  (run / "result.json").write_text(json.dumps({"step": 5, "wall_seconds": 2.0, "metrics": {}}))
  assert sweep.main([*arguments, "--collect"]) == 0
  assert "1 done, 1 unfinished" in capsys.readouterr().out
  assert "| 1 | 4,4 | **75.00%** | 5 |" in (in_directory / "s" / "table.md").read_text()


def test_a_directory_of_other_things_is_refused(in_directory, capsys):
  (in_directory / "s").mkdir()
  (in_directory / "s" / "thesis.tex").write_text("")
  assert sweep.main([*MLP, "--workdir=s", "--over=seed=0,1"]) == 2
  assert "holds files that are no sweep's" in capsys.readouterr().err


def test_each_place_has_its_environment():
  options = sweep.Sweep(experiment="mlp", workdir="s", places="CUDA_VISIBLE_DEVICES=0,1;CUDA_VISIBLE_DEVICES=2,3")
  assert options.environments == [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"}]
  assert sweep.Sweep(experiment="mlp", workdir="s", jobs=3).environments == [{}] * 3
