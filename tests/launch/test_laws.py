"""The studies of laws and of learning rates from the command line, with a trainer that knows the law it obeys."""

import csv
import json
import sys

import pytest

from experiments import command
from experiments.job import make_job
from launch.experiment import find
from launch.scaling.__main__ import main
from launch.scaling.family import Family, Size, sizes_of
from research.errors import UserError

# Stands where Python would: `-m experiments.gpt [preflight --json] --flags`. Width 48 fails until it is mended.
TRAINER = """#!{python} -S
import json, math, os, sys
flags = dict(each[2:].split("=", 1) for each in sys.argv[3:] if "=" in each)
width, depth = int(flags["model.width"]), int(flags["model.layers"])
hidden = 12 * depth * width ** 2
n = hidden + 257 * width
if "preflight" in sys.argv:
  print("a note")
  print(json.dumps({{
    "parameters": [{{"name": "embed/embedding", "count": 257 * width}}, {{"name": "a/kernel", "count": hidden}}],
    "run": {{"batch": {{"segments": "int32[16, 65]", "tokens": "int32[16, 65]"}}}},
    "FLOPs": {{"model": 6.0 * n * 1024}},
  }}, indent=1))
  sys.exit()
with open(os.environ["STARTS"], "a") as file:
  file.write(os.path.basename(flags["workdir"]) + "\\n")
if width == 48 and not os.path.exists(os.environ["STARTS"] + ".mended"):
  print("no memory", file=sys.stderr)
  sys.exit(1)
if "optim.learning_rate" in flags:
  rate, base = float(flags["optim.learning_rate"]), int(flags["model.mup_base_width"])
  if rate > 0.1:
    sys.exit(76)
  best = 0.016 if base else 0.016 * 32 / width
  loss = 2.0 + 0.1 * math.log(rate / best) ** 2
else:
  loss = 1.5 + 300 * n ** -0.5 + 800 * (int(flags["run.steps"]) * 1024) ** -0.4
os.makedirs(flags["workdir"], exist_ok=True)
with open(os.path.join(flags["workdir"], "result.json"), "w") as file:
  json.dump({{"step": 1, "metrics": {{"validation/loss": loss}}}}, file)
"""
STUDY = (
  "laws", "--config=stdlib", "--sizes=16x1,32x2,48x2,64x3,96x4", "--head_width=16", "--budgets=1e11,1e12,1e13",
  "--held_out=128x6@1e14", "--bootstrap=20", "--data.batch_size=16", "--model.context=64",
)  # fmt: skip

TOKENS = ("--data.batch_size=16", "--model.context=64")  # as the trainer has them
SHORT = ("laws", "--config=stdlib", "--sizes=32x2", "--budgets=1e12")
MUP = ("laws", "--mup", "--config=stdlib", "--sizes=32x2,64x2")


@pytest.fixture
def starts(in_directory, monkeypatch):
  """The trainer in place of Python; → the names of the runs that it was started for so far."""
  trainer = in_directory / "trainer"
  trainer.write_text(TRAINER.format(python=sys.executable))
  trainer.chmod(0o755)
  monkeypatch.setattr(sys, "executable", str(trainer))
  monkeypatch.setenv("STARTS", str(in_directory / "starts"))
  return lambda: (in_directory / "starts").read_text().split()


def rows_of(path):
  with open(path) as file:
    return {row["name"]: row for row in csv.DictReader(file)}


def test_a_law_is_found_predicts_a_larger_run_and_goes_on_where_it_was(starts, in_directory, capsys):
  assert main(STUDY) == 0
  folder = in_directory / "runs" / "laws"
  rows = rows_of(folder / "points.csv")
  assert len(rows) == 16  # five sizes, three budgets, and the held-out run
  assert {name: row["reason"] for name, row in rows.items() if row["ok"] != "True"} == {
    f"48x2-c1e{n}-s0": "exit code 1: no memory" for n in (11, 12, 13)
  }
  fit = json.loads((folder / "fit.json").read_text())["fits"]["parameters"]
  law, held_out = fit["law"], fit["held out"]
  assert abs(law["alpha"] - 0.5) < 0.01
  assert abs(law["beta"] - 0.4) < 0.01
  assert abs(held_out["error"]) < 1e-3
  assert held_out["interval"][0] < held_out["predicted"] < held_out["interval"][1]
  assert abs(fit["FLOPs per parameter and token"] - 6) < 1e-6
  row = rows["64x3-c1e12-s0"]
  assert int(row["parameters"]) - int(row["non_embedding"]) == 257 * 64
  assert int(row["tokens"]) == 1024 * round(1e12 / (6 * 1024 * int(row["parameters"])))
  for name in ("isoflop.png", "frontier.png", "predicted.png", "laws.md"):
    assert (folder / name).stat().st_size > 500
  first = starts()
  assert first.index("held_out-128x6-c1e14-s0") == len(first) - 1  # after it was predicted
  assert "predicted for 128x6" in capsys.readouterr().out

  points = folder / "points.jsonl"
  points.write_text("".join(line for line in points.read_text().splitlines(True) if '"32x2-c1e12-s0"' not in line))
  (in_directory / "starts.mended").touch()
  assert main((*STUDY, "--retry")) == 0
  assert sorted(starts()[len(first) :]) == ["32x2-c1e12-s0", *(f"48x2-c1e{n}-s0" for n in (11, 12, 13))]
  assert all(row["ok"] == "True" for row in rows_of(folder / "points.csv").values())
  assert main((*STUDY, "--optim.weight_decay=0.5")) == 2
  assert "--optim.weight_decay=0.5 here" in capsys.readouterr().err


def test_maximal_update_keeps_the_best_rate_where_it_was(starts, in_directory, capsys):
  rates = "--rates=0.001,0.002,0.004,0.008,0.016,0.032,0.5"
  assert main(("laws", "--mup", "--config=stdlib", "--sizes=32x2,64x2,128x2", rates, "--report=told")) == 0
  assert len(starts()) == 42
  table = (in_directory / "told" / "transfer.md").read_text().splitlines()
  cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]
  assert [(row[0], row[1], row[5]) for row in cells] == [
    ("32", "0.016", "0.016"), ("64", "0.008", "0.016"), ("128", "0.004", "0.016")
  ]  # fmt: skip
  assert cells[2][4] == "2.192"  # 2 + 0.1 ln² 4: what the narrowest's rate costs the widest
  assert (in_directory / "told" / "transfer.png").stat().st_size > 500
  rows = rows_of(in_directory / "told" / "points.csv")
  assert rows["maximal-64x2-r0.5-s0"]["reason"].startswith("exit code 76")
  assert "6 of 42 points failed" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["lawz"], "did you mean laws"),
    (["laws", "--config=stdlib"], "--sizes and --budgets are needed, as in --sizes=32x2,64x3 and --budgets=1e12,3e12"),
    (["laws", "--sizes=32x2", "--budgets=1e12"], "--config is needed, as in --config=stdlib"),
    (MUP, "--rates is needed, as in --rates=1e-3,2e-3,4e-3"),
    ([*MUP, "--rates=a"], "--rates=a is not numbers above 0 with commas between them, as in 1e-3,2e-3,4e-3"),
    ([*SHORT, "--held_out=16"], "--held_out=16 is not WIDTHxDEPTH@FLOPs, as in 96x4@1e13"),
    ([*SHORT, "--held_out=16x1@lots"], "--held_out=16x1@lots is not WIDTHxDEPTH@FLOPs, as in 96x4@1e13"),
    ([*SHORT, *TOKENS, "--budgets=1e9"], "1e+09 FLOPs are at most 6 updates of 32x2, at least 1.54e+08 each"),
    ([*SHORT, *TOKENS, "--held_out=64x3@1e9"], "are at most 1 updates of 64x3, at least 9.25e+08 each"),
    (["laws", "--config=stdlib", "--sizes=32", "--budgets=1e9"], "WIDTHxDEPTH"),
    (["laws", "--config=stdlib", "--sizes=32x2", "--budgets=lots"], "numbers above 0"),
    (["laws", "--config=stdlib", "--sizes=32x2", "--budgets=1e9", "--held_out=64x2"], "WIDTHxDEPTH@FLOPs"),
    (["laws", "--config=stdlib", "--sizes=33x2", "--head_width=16", "--budgets=1e9"], "do not fill"),
    (["laws", "--config=stdlib", "--sizes=32x2", "--budgets=1e9", "--optim.larning_rate=1"], "optim.learning_rate"),
    (["laws", "--config=stdlib", "--sizes=32x2", "--budgets=1e9", "--rates=1"], "belong to --mup"),
    ([*SHORT, "--run.steps=9"], "--budgets says what they have"),
    ([*SHORT, "--model.width=9"], "--sizes says what they have"),
    ([*SHORT, "--seed=1"], "--seeds says what they have"),
    ([*MUP, "--rates=1,2,3", "--optim.learning_rate=9"], "--rates says what they have"),
    (["laws", "--mup", "--config=stdlib", "--sizes=32x2,64x3", "--rates=1,2,3"], "several depths"),
  ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(arguments, words, in_directory, capsys):
  assert main(arguments) == 2
  error = capsys.readouterr().err
  assert words in error
  assert error.count("\n") == 1
  assert not list(in_directory.iterdir())


def test_a_budget_too_small_for_a_size_is_refused(starts, capsys):
  """What preflight counts is more than the flags tell."""
  assert main(("laws", "--config=stdlib", *TOKENS, "--sizes=32x2", "--budgets=3.5e9")) == 2
  error = capsys.readouterr().err
  assert "3.5e+09 FLOPs are 17 updates of 32x2, 2.02e+08 each; take a budget of 4e+09," in error


@pytest.mark.parametrize(
  "flags",
  [
    ("gpt", "--config=stdlib", "--data.source=text:text.txt"),
    ("gpt", "--config=stdlib", "--data.source=text:text.txt", "--model.mlp=swiglu", "--model.kv_heads=1"),
    ("gpt", "--config=stdlib", "--data.source=text:text.txt", "--model.experts=4"),
    ("vit", "--config=digits"),
  ],
)
def test_an_update_takes_no_less_than_the_flags_tell(flags, in_directory):
  (in_directory / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 400)
  experiment, *rest = flags
  family = Family(experiment, (*rest, "--data.batch_size=8"), 0, "validation/loss", in_directory)
  definition = find(experiment)
  config = command.read(definition, [*family.flags, *family.flags_of(Size(32, 2))]).config
  counted = make_job(definition, config, lambda line: None).counting()()
  least = family.least_flops(Size(32, 2))
  assert least <= counted
  assert least > counted / 8 or experiment == "vit"


def test_sizes_are_widths_and_depths():
  assert sizes_of("32x2,64x3") == [Size(32, 2), Size(64, 3)]
  with pytest.raises(UserError, match="twice"):
    sizes_of("32x2,32x2")


@pytest.mark.slow
def test_real_runs_of_a_tiny_family(in_directory):
  (in_directory / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 400)
  flags = (
    "--config=stdlib", "--data.source=text:text.txt", "--data.validation_fraction=0.2", "--data.batch_size=8",
    "--model.context=8", "--optim.name=adamw", "--optim.learning_rate=0.01", "--model.mup_base_width=16",
  )  # fmt: skip
  study = ("--sizes=16x1,32x1,48x1", "--budgets=4e8,8e8", "--bootstrap=20")
  assert main(("laws", *flags, *study)) == 0
  rows = rows_of(in_directory / "runs" / "laws" / "points.csv")
  assert all(row["ok"] == "True" for row in rows.values()), rows
  for row in rows.values():
    spent = json.loads((in_directory / "runs/laws/runs" / row["name"] / "result.json").read_text())
    assert spent["step"] == int(row["updates"])
    assert abs(float(row["flops"]) / float(row["budget"]) - 1) < 0.05
