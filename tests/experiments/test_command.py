"""The command line as a user meets it: presets, help, and one clear line with exit code 2 for whatever is wrong."""

import importlib
import json
import os
from pathlib import Path

import pytest

from experiments import command, flags, work
from experiments.cnn.__main__ import EXPERIMENT as CNN
from experiments.linear.__main__ import EXPERIMENT as LINEAR
from experiments.mlp.__main__ import EXPERIMENT as MLP
from research import throughput
from research.kernels import native

DRAWS_PICTURES = True

QUICK = ["--config=digits", "--run.steps=2", "--run.eval_every=2"]
FOLDERS = sorted(path.parent.name for path in Path(command.__file__).parent.glob("*/__main__.py"))


def refused(capsys, definition, arguments):
  """Runs a command that must fail; returns its one line, and the table that may stand below it."""
  assert command.main(definition, arguments) == 2
  error = capsys.readouterr().err
  assert all(row.startswith("  ") for row in error.splitlines()[1:]), error
  assert "Traceback" not in error
  return error


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_preset_parses_and_opens_with_a_comment(folder):
  definition = importlib.import_module(f"experiments.{folder}.__main__").EXPERIMENT
  assert definition.name == folder
  names = command.presets(definition)
  assert names
  for name in names:
    request = command.read(definition, [f"--config={name}"])
    assert request.workdir == Path("runs") / f"{folder}-{name}"
    assert (definition.directory / f"{name}.flags").read_text().startswith("# ")


def test_help_shows_groups_and_the_presets_values(capsys):
  assert command.main(CNN, ["--help"]) == 0
  text = capsys.readouterr().out
  for expected in ("usage:", "--model.widths=32,64", "the optimizer and its schedule:", "--optim.name=adamw", "digits"):
    assert expected in text
  assert command.main(CNN, ["--help", "--config=digits", "--seed=7"]) == 0
  assert "--seed=7" in capsys.readouterr().out


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_an_experiment_has_no_use_for_is_refused_and_not_in_help(folder, capsys):
  definition = importlib.import_module(f"experiments.{folder}.__main__").EXPERIMENT
  assert command.main(definition, ["--help"]) == 0
  text = capsys.readouterr().out
  leaves = {leaf.name: leaf for leaf in flags.leaves(definition.schema)}
  assert definition.schema.unused.keys() <= leaves.keys()
  for name, leaf in leaves.items():
    assert (f"  --{name}=" in text) != (name in definition.schema.unused)
    if name in definition.schema.unused:
      kinds = {bool: "true", int: "2", float: "0.5", str: "x"}
      other = kinds[type(leaf.field.default)]
      assert f"flags: --{name} " in refused(capsys, definition, ["preflight", f"--{name}={other}"])


def test_kernels_that_cannot_run_here_leave_no_directory(capsys, tmp_path, monkeypatch):
  monkeypatch.setattr(native, "PATH", tmp_path / "none.so")
  native.missing.cache_clear()
  try:
    assert command.main(CNN, [*QUICK, f"--workdir={tmp_path / 'run'}", "--kernels=conv=native"]) == 2
  finally:
    native.missing.cache_clear()
  assert "conv cannot run as native: it is not compiled" in capsys.readouterr().err
  assert not (tmp_path / "run").exists()


def test_kernels_that_cannot_run_on_these_arrays_leave_no_directory_either(capsys, tmp_path):
  gpt = importlib.import_module("experiments.gpt.__main__").EXPERIMENT
  line = [f"--data.source=text:{__file__}", "--text.tokenizer=byte", "--model.layers=1", "--model.width=8"]
  line += ["--model.heads=2", "--model.context=16", "--data.batch_size=8", "--run.steps=2", "--model.dtype=bfloat16"]
  line += [f"--workdir={tmp_path / 'run'}", "--kernels=attention=native"]
  assert "attention cannot run as native: it takes float32, not bfloat16" in refused(capsys, gpt, line)
  assert not [path for path in (tmp_path / "run").glob("*") if path.name != "lock"]


def test_kernels_asked_for_in_vain_are_told(capsys, tmp_path):
  assert command.main(CNN, [*QUICK, f"--workdir={tmp_path / 'run'}", "--kernels=attention=xla"]) == 0
  assert "--kernels=attention=xla has no effect on a training step: there is no attention" in capsys.readouterr().out


def test_the_kernels_that_ran_are_told_and_a_run_keeps_them(capsys, tmp_path):
  line = [*QUICK, f"--workdir={tmp_path / 'run'}"]
  assert command.main(CNN, [*line, "--kernels=conv=xla"]) == 0
  out = capsys.readouterr().out
  ours = ("dense.weight_gradient", "dropout", "max_pool", "max_pool.gradient")
  theirs = ("conv", "conv.input_gradient", "conv.weight_gradient", "dense.input_gradient", "dense.product")
  assert f"cpu: {', '.join(ours)}; xla: {', '.join(theirs)}" in out
  kernels = json.loads((tmp_path / "run" / "run.json").read_text())["kernels"]
  assert kernels == {**dict.fromkeys(ours, "cpu"), **dict.fromkeys(theirs, "xla")}
  page = (tmp_path / "run" / "report.html").read_text()
  assert all(name in page for name in kernels)
  assert refused(capsys, CNN, line).split()[-3:] == ["--kernels", "conv=xla", '""']
  assert command.main(CNN, ["preflight", *QUICK]) == 0
  assert "native: conv, conv.input_gradient, conv.weight_gradient; xla: dense" in capsys.readouterr().out
  assert "no operation 'con' (did you mean conv?)" in refused(capsys, CNN, [*QUICK, "--kernels=con=xla"])


@pytest.mark.parametrize(("devices", "kept"), [(1, 1), (8, 0)])
def test_programs_of_several_devices_of_a_cpu_are_not_kept(devices, kept, in_directory, monkeypatch):
  """Those that come back from the cache wait for each other for ever."""
  calls = []
  monkeypatch.setattr(work, "keep_compiled_programs", lambda: calls.append(1))
  monkeypatch.setattr(work, "train", lambda definition, request: 0)
  monkeypatch.setattr(work.jax, "device_count", lambda: devices)
  assert command.main(MLP, ["--config=iris", "--run.steps=1"]) == 0
  assert len(calls) == kept


def test_list_shows_each_preset_with_its_first_line(capsys):
  assert command.main(MLP, ["--list"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in lines] == command.presets(MLP)
  assert any("iris" in line and "150" in line for line in lines)


def test_a_changed_flag_gets_a_run_of_its_own():
  request = command.read(CNN, ["--config=digits", "--optim.learning_rate=0.01", "--run.log_every=3"])
  assert request.workdir == Path("runs/cnn-digits-learning_rate=0.01")


def test_a_run_is_named_after_the_file_and_not_after_the_way_to_it():
  assert command.read(MLP, ["--data.source=csv:/data/mine/flowers.csv"]).workdir == Path("runs/mlp-csv_flowers.csv")
  request = command.read(MLP, ["--config=iris", "--data.source=npz:deep/down/a.npz"])
  assert request.workdir == Path("runs/mlp-iris-source=npz_a.npz")


def test_a_run_of_another_experiment_is_told_with_its_own_command(capsys, in_directory):
  Path("w").mkdir()
  Path("w/run.flags").write_text("# experiment: cnn\n--model.name=plain\n")
  said = refused(capsys, MLP, ["sample", "--config=w"])
  assert "w is a run of experiments.cnn" in said
  assert "python -m experiments.cnn --config=w" in said


@pytest.mark.parametrize("name", ["../../etc", "a b", "a/b"])
def test_a_default_workdir_never_leaves_runs(name):
  for arguments in (["--config=iris", f"--data.source=csv:{name}"], [f"--data.source=csv:{name}"]):
    request = command.read(MLP, arguments)
    assert request.workdir.parent == Path("runs")
    assert "/" not in request.workdir.name


@pytest.mark.parametrize(
  ("definition", "arguments", "complaint"),
  [
    (CNN, ["--config=digist"], "did you mean digits?"),
    (CNN, ["--config=digits", "trian"], "did you mean train?"),
    (CNN, ["--config=digits", "train", "eval"], "no command"),
    (CNN, ["--config=."], "it is no run"),
    (CNN, ["--config"], "needs a value"),
    (CNN, ["--config=" + "x" * 5000], "no preset, file or run"),
    (MLP, ["--config=iris", "--run.epochs=1e9"], "at most 2,147,483,647"),
    (MLP, ["--config=iris", "--run.steps=3000000000"], "from 0 to 2147483647"),
    (CNN, [*QUICK, "--data.source=sklearn:digist"], "did you mean digits?"),
    (CNN, [*QUICK, "--data.source=sklaern:digits"], "did you mean sklearn?"),
    (CNN, [*QUICK, "--data.source=sklearn:iris"], "python -m experiments.mlp takes it"),
    (CNN, [*QUICK, "--model.kernel=9"], "kernel of 9 is larger than the image"),
    (CNN, [*QUICK, "--data.batch_size=2000"], "larger than the 1438 training examples"),
    (CNN, [*QUICK, "--data.batch_size=60", "--parallel.mesh=data:8"], "over 8 devices; 64 would"),
    (CNN, [*QUICK, "--parallel.mesh=data:16"], "wants 16 devices and there are 8"),
    (CNN, [*QUICK, "--parallel.mesh=rows:2"], "no axis 'rows'"),
    (CNN, [*QUICK, "--data.cutout=20"], "covers the whole image"),
    (MLP, ["--config=iris", "--data.flip"], "--data.flip needs images"),
    (LINEAR, ["--config=line", "--data.mixup=0.2"], "--data.mixup needs class labels"),
    (MLP, ["--config=iris", "--run.best_metric=validation/accuracy"], "--data.validation_fraction=0.1"),
    (
      MLP,
      ["--config=iris", "--data.validation_fraction=0.2", "--run.best_metric=validation/acuracy"],
      "is no metric (did you mean accuracy?); validation/ has",
    ),
    (MLP, ["--config=iris", "--data.source=csv:none.csv"], "none.csv"),
    (MLP, ["eval", "--config=iris"], "train it first"),
    (MLP, ["--config=iris", "--run.steps=5", "--optim.schedule=cosine", "--optim.warmup_steps=9"], "does not fit"),
  ],
  ids=lambda value: value[-1][:60] if isinstance(value, list) else "",
)
def test_one_line_and_exit_code_2(capsys, in_directory, definition, arguments, complaint):
  assert complaint in refused(capsys, definition, arguments)
  assert not list(in_directory.rglob("run.flags")), "a refused command left a run behind"


def test_a_table_of_one_class_is_refused(capsys, in_directory):
  Path("a.csv").write_text("height,animal\n" + "".join(f"{i}.5,cat\n" for i in range(20)))
  arguments = ["--data.source=csv:a.csv", "--data.batch_size=8", "--run.steps=2"]
  assert "all examples are of one class, 'cat'" in refused(capsys, MLP, arguments)
  assert not list(in_directory.rglob("run.flags"))


def test_a_run_directory_of_other_flags_is_refused_and_left_alone(capsys, in_directory):
  assert command.main(MLP, ["--config=iris", "--run.steps=2", "--workdir=w"]) == 0
  before = {path: path.read_bytes() for path in Path("w").rglob("*") if path.is_file()}
  other = ["--config=iris", "--run.steps=2", "--workdir=w", "--seed=1", "--optim.learning_rate=0.5"]
  line = refused(capsys, MLP, other)
  assert [row.split() for row in line.splitlines()[1:]] == [
    ["there", "here"], ["--seed", "0", "1"], ["--optim.learning_rate", "0.02", "0.5"],
  ]  # fmt: skip
  assert "experiments.mlp, not experiments.linear" in refused(capsys, LINEAR, ["--config=line", "--workdir=w"])
  assert before == {path: path.read_bytes() for path in Path("w").rglob("*") if path.is_file()}


def test_a_directory_with_other_files_is_refused(capsys, in_directory):
  Path("thesis").mkdir()
  Path("thesis/chapter.txt").write_text("mine")
  assert "holds files that are no run's" in refused(capsys, MLP, ["--config=iris", "--workdir=thesis"])
  assert os.listdir("thesis") == ["chapter.txt"]


def test_a_finished_run_is_told_and_its_flags_reproduce_it_bit_for_bit(capsys, in_directory):
  assert command.main(MLP, ["--config=iris", "--run.steps=6", "--workdir=first", "--data.batch_size=16"]) == 0
  assert command.main(MLP, ["--config=first"]) == 0
  assert "first is finished" in capsys.readouterr().out
  assert command.main(MLP, ["--config=first", "--workdir=second run"]) == 0
  first, second = (
    [
      {key: value for key, value in json.loads(line).items() if key != "time" and not throughput.is_one(key)}
      for line in Path(run, "metrics.jsonl").read_text().splitlines()
    ]
    for run in ("first", "second run")
  )
  assert first == second
  assert Path("first/run.flags").read_text() == Path("second run/run.flags").read_text()


def test_a_run_that_diverges_stops_with_76_and_stays_unfinished(capsys, in_directory):
  arguments = ["--config=iris", "--run.steps=30", "--run.eval_every=5", "--run.log_every=1000", "--workdir=w"]
  arguments += ["--optim.name=sgd", "--optim.learning_rate=1e30"]
  assert command.main(MLP, arguments) == 76
  said = capsys.readouterr().out
  assert "test/loss is not finite at step 5: stopped" in said
  assert "try a smaller --optim.learning_rate" in said
  assert not Path("w/result.json").exists()
  assert Path("w/report.html").exists()
  assert not [path for path in Path("w/checkpoints").iterdir() if path.name.isdigit()]


def test_a_run_on_a_table_repeats_from_another_directory(in_directory, monkeypatch):
  rows = "\n".join(f"{i},{i % 3},{'yes' if i % 2 else 'no'}" for i in range(40))
  Path("my table.csv").write_text("a,b,answer\n" + rows + "\n")
  arguments = ["--data.source=csv:my table.csv", "--data.batch_size=8", "--run.steps=2", "--workdir=w"]
  assert command.main(MLP, arguments) == 0
  Path("elsewhere").mkdir()
  monkeypatch.chdir("elsewhere")
  assert command.main(MLP, ["eval", "--config=../w"]) == 0
  assert command.main(MLP, ["--config=../w", "--workdir=again"]) == 0


def test_data_that_changed_are_refused(capsys, in_directory):
  table = Path("t.csv")
  table.write_text("a,answer\n" + "\n".join(f"{i},{'yes' if i % 2 else 'no'}" for i in range(40)) + "\n")
  arguments = ["--data.source=csv:t.csv", "--data.batch_size=8", "--run.steps=2", "--workdir=w"]
  assert command.main(MLP, arguments) == 0
  table.write_text(table.read_text().replace("yes", "perhaps"))
  said = refused(capsys, MLP, ["eval", "--config=w"])
  assert "is not the data that w was started with" in said
  assert "as they were then" in said


@pytest.mark.parametrize("damage", ["[]", "{", "\xff"])
def test_a_damaged_record_is_told_in_one_line(capsys, in_directory, damage):
  assert command.main(MLP, ["--config=iris", "--run.steps=2", "--workdir=w"]) == 0
  Path("w/result.json").unlink()
  Path("w/run.json").write_text(damage, encoding="latin-1")
  assert "w/run.json is damaged" in refused(capsys, MLP, ["--config=w"])


def test_an_interrupt_outside_training_is_no_traceback(capsys, monkeypatch):
  def interrupted(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(command, "read", interrupted)
  assert command.main(MLP, ["--config=iris"]) == 75
  assert capsys.readouterr().err == "stopped\n"


def test_eval_repeats_the_runs_result(capsys, in_directory):
  assert command.main(MLP, ["--config=iris", "--run.steps=6", "--workdir=w"]) == 0
  accuracy = json.loads(Path("w/result.json").read_text())["metrics"]["test/accuracy"]
  capsys.readouterr()
  assert command.main(MLP, ["eval", "--config=w"]) == 0
  assert f"test/accuracy                {accuracy:.6g}" in (told := capsys.readouterr().out)
  assert "other flags" not in told


def test_eval_says_where_the_checkpoint_was_made_with_other_flags(capsys, in_directory):
  """Mutation: without the look at the checkpoint's own flags its score passes for that of the flags given."""
  assert command.main(MLP, ["--config=iris", "--run.steps=6", "--workdir=w"]) == 0
  capsys.readouterr()
  assert command.main(MLP, ["eval", "--config=w", "--seed=3", "--model.activation=tanh"]) == 0
  told = capsys.readouterr().out
  assert "the checkpoint was made with other flags:\n" in told
  for name, there, here in (("--seed", "0", "3"), ("--model.activation", "relu", "tanh")):
    assert [name, there, here] in [line.split() for line in told.splitlines()]


def test_preflight_counts_parameters_and_writes_nothing(capsys, in_directory):
  assert command.main(MLP, ["preflight", "--config=iris", "--model.widths=16", "--data.batch_size=24"]) == 0
  text = capsys.readouterr().out
  assert f"parameters ({4 * 16 + 16 + 16 * 3 + 3:,}" in text
  flops = 3 * 2 * 24 * (4 * 16 + 16 * 3)
  assert f"FLOPs, an update     {flops:.4g}" in text
  assert "an update takes at least" in text
  assert os.listdir() == []


def test_preflight_as_json_tells_each_devices_share(capsys, in_directory):
  line = ["preflight", "--json", "--data.source=sklearn:digits", "--model.widths=64,32", "--data.batch_size=16"]
  found = {}
  for strategy in ("dp", "fsdp"):
    assert command.main(MLP, [*line, f"--parallel.strategy={strategy}", "--parallel.mesh=data:8"]) == 0
    found[strategy] = json.loads(capsys.readouterr().out)
  count = 64 * 64 + 64 + 64 * 32 + 32 + 32 * 10 + 10
  for facts in found.values():
    assert sum(row["count"] for row in facts["parameters"]) == count
    assert facts["FLOPs"]["model"] == 3 * 2 * 16 * (64 * 64 + 64 * 32 + 32 * 10)
    assert facts["FLOPs"]["hardware"] < facts["FLOPs"]["model"]  # the first layer's input needs no gradient
  assert found["dp"]["device memory"]["parameters"] == 4 * count
  # All is cut in eight but the head's bias, of classes.
  assert found["fsdp"]["device memory"]["parameters"] == 4 * (count - 10) / 8 + 40
  (reduced,) = found["dp"]["collectives"][:1]
  assert (reduced["kind"], reduced["devices"]) == ("all-reduce", 8)
  assert reduced["bytes"] >= 4 * count  # each gradient, and the sums of metrics
  assert command.main(MLP, [*line, "--parallel.mesh=data:1", "--model.dtype=bfloat16"]) == 0
  narrow = json.loads(capsys.readouterr().out)
  guess = narrow["estimate"]
  assert guess["mfu"] == pytest.approx(narrow["FLOPs"]["model"] / guess["seconds"] / guess["chip"]["flops"])
  kinds = {each["kind"] for each in found["fsdp"]["collectives"]}
  assert "all-gather" in kinds
  assert refused(capsys, MLP, ["--config=iris", "--json"]).startswith("flags: --json belongs to the command preflight")
  assert os.listdir() == []


def test_validation_best_checkpoint_is_what_is_reported(in_directory):
  arguments = ["--config=iris", "--run.steps=40", "--run.eval_every=2", "--optim.learning_rate=0.3", "--workdir=w"]
  arguments += ["--data.validation_fraction=0.3", "--run.best_metric=validation/accuracy", "--run.patience=4"]
  assert command.main(MLP, arguments) == 0
  lines = [json.loads(line) for line in Path("w/metrics.jsonl").read_text().splitlines()]
  scores = {line["step"]: line["validation/accuracy"] for line in lines if "validation/accuracy" in line}
  result = json.loads(Path("w/result.json").read_text())
  best = min(scores, key=lambda step: (-scores[step], step))
  assert result["best"]["step"] == best
  assert result["metrics"]["validation/accuracy"] == scores[best] == max(scores.values())
  assert result["step"] == min(best + 4 * 2, 40)


def test_resolved_flags_are_written_and_are_a_valid_config(in_directory):
  assert command.main(MLP, ["--config=iris", "--run.steps=2", "--workdir=w"]) == 0
  config, _ = flags.parse(MLP.schema, flags.read_lines(Path("w/run.flags")))
  assert config == command.read(MLP, ["--config=iris", "--run.steps=2"]).config
