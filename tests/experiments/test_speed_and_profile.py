"""--run.profile_steps and the speeds in metrics.jsonl, as a user has them."""

import json
from pathlib import Path

import pytest

from experiments import command
from experiments.gpt.__main__ import EXPERIMENT as GPT
from experiments.mlp.__main__ import EXPERIMENT as MLP
from research.parallel import peak

TEXT = [
  f"--data.source=text:{__file__}", "--text.tokenizer=byte", "--model.layers=1", "--model.width=8", "--model.heads=2",
  "--model.context=16", "--data.batch_size=8", "--run.steps=12", "--run.log_every=2", "--run.eval_every=6",
  "--parallel.mesh=data:4",
]  # fmt: skip


def lines(workdir):
  found = [json.loads(line) for line in Path(workdir, "metrics.jsonl").read_text().splitlines()]
  return [line for line in found if "train/loss" in line]


def test_a_language_models_speeds_and_profile(capsys, in_directory):
  assert command.main(GPT, [*TEXT, "--workdir=w", "--run.profile_steps=3:9"]) == 0
  out = capsys.readouterr().out
  assert "profile of 6 updates from step 3 on: " in out
  assert out.count("% of all operations") == 5
  summary = json.loads(Path("w/profile/summary.json").read_text())
  assert (summary["updates"], summary["devices"]) == ([3, 9], 4)
  assert any(each["name"].startswith("transformer/layers/") for each in summary["operations"])
  assert "The 6 updates from step 3 on took" in Path("w/report.html").read_text()

  found = lines("w")
  assert [line["step"] for line in found] == [2, 4, 6, 8, 10, 12]
  # The first line has a speed only because the first update, which compiles, is not in it.
  for line in found:
    examples, tokens = line["train/examples_per_second"], line["train/tokens_per_second"]
    assert tokens == pytest.approx(16 * examples)
    assert line["train/examples_per_second_per_device"] == pytest.approx(examples / 4)
    assert line["train/tokens_per_second_per_device"] == pytest.approx(tokens / 4)
    assert line["train/host_memory_peak_bytes"] >= line["train/host_memory_bytes"] > 2**20
  # Model FLOPs are the same in each line: the share of the peak over the speed is a constant, and known beforehand.
  ratios = [line["train/mfu"] / line["train/examples_per_second"] for line in found]
  assert ratios == pytest.approx([ratios[0]] * 6)


def test_an_mlps_share_of_the_peak_is_that_of_its_hand_count(monkeypatch, in_directory):
  monkeypatch.setattr("experiments.job.peak_flops", lambda devices, dtype, quiet: 1e9)
  arguments = ["--config=iris", "--model.widths=16", "--run.steps=6", "--run.log_every=1", "--workdir=w"]
  assert command.main(MLP, [*arguments, "--data.batch_size=16", "--parallel.mesh=data:2"]) == 0
  first, *rest = lines("w")
  assert not {"train/mfu", "train/examples_per_second"} & first.keys()  # nothing but the update that compiled
  flops = 3 * 2 * (4 * 16 + 16 * 3)  # of an example
  for line in rest:
    assert line["train/mfu"] == pytest.approx(line["train/examples_per_second"] * flops / 2 / 1e9)


def test_a_resumed_run_begins_its_speed_anew(stopping_after, in_directory):
  arguments = ["--config=iris", "--run.steps=8", "--run.log_every=1", "--data.batch_size=16", "--workdir=w"]
  with stopping_after(4):  # one time of asking is before the first update
    assert command.main(MLP, arguments) == command.STOPPED
  assert command.main(MLP, arguments) == 0
  speeds = {line["step"]: line.get("train/examples_per_second") for line in lines("w")}
  assert len(speeds) == 8
  assert [step for step, speed in speeds.items() if speed is None] == [1, 4]


def test_a_share_of_the_peak_that_is_kept_for_the_next_start(monkeypatch, tmp_path, in_directory):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  arguments = ["--config=iris", "--run.steps=3", "--run.log_every=1", "--data.batch_size=16", "--workdir=w"]
  assert command.main(MLP, arguments) == 0
  assert peak.path().is_relative_to(tmp_path)
  (rate,) = json.loads(peak.path().read_text()).values()
  assert 1e8 < rate < 1e14
  assert all(line["train/mfu"] > 0 for line in lines("w")[1:])


@pytest.mark.parametrize(
  ("value", "complaint"),
  [
    ("10", "--run.profile_steps=10 is not FIRST:LAST, two steps such as 10:15"),
    ("1:2:3", "is not FIRST:LAST"),
    ("-1:5", "is not FIRST:LAST"),
    ("a:b", "is not FIRST:LAST"),
    ("7:7", "holds no update; 7:12 would be five from step 7 on"),
    ("9:2", "holds no update"),
    ("10:31", "ends after the run, which has 30 updates"),
  ],
)
def test_steps_that_are_none_are_one_line_and_nothing_is_written(capsys, in_directory, value, complaint):
  arguments = ["--config=iris", "--run.steps=30", f"--run.profile_steps={value}", "--workdir=w"]
  assert command.main(MLP, arguments) == 2
  error = capsys.readouterr().err
  assert complaint in error
  assert error.count("\n") == 1
  assert not Path("w").exists()


def test_a_profile_may_be_asked_of_a_run_that_was_begun_without(capsys, stopping_after, in_directory):
  arguments = ["--config=iris", "--run.steps=8", "--data.batch_size=16", "--workdir=w"]
  with stopping_after(4):
    assert command.main(MLP, arguments) == command.STOPPED
  assert command.main(MLP, [*arguments, "--run.profile_steps=2:6"]) == 0
  assert "profile of 3 updates from step 3 on" in capsys.readouterr().out
