"""Alarms: each sign is seen, noise is not, and a resumed run tells what one that was never stopped does."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.report import Report, alarms, record

DISTANCE, RECALL, MODES = "generated/frechet_distance", "generated/recall", "generated/modes"
LOSS = "train/discriminator_loss"


def steps(name, values):
  """The steps of the alarms in a run whose evaluations gave these values, 1,000 steps apart."""
  found = alarms.signs({"step": 1000 * place, "time": 0.0, name: value} for place, value in enumerate(values, 1))
  return [alarm.step for alarm in found]


@pytest.mark.parametrize(
  ("values", "expected"),
  [
    ([90, 40, 31, 60, 84], [5000]),
    ([90, 40, 31, 60, 31, 84, 30], []),  # two bad ones, not in a row
    ([10, 40, 90], []),  # the first evaluations may jump
    ([10, 40, 90, 80, 70], [5000]),
    ([90, 40, 40, 60, 60, 60], []),  # exactly 1.5 times is not worse
    ([90, 40, 40, 60.1, 60.1, 999, 999], [5000]),  # an episode is told once …
    ([90, 40, 40, 61, 61, 40, 61, 61], [5000]),  # … one good evaluation does not end it …
    ([90, 40, 40, 61, 61, 40, 40, 61, 61], [5000, 9000]),  # … two do
    ([90, 40, 40, float("nan"), float("inf")], [5000]),
    ([float("nan")] * 9, []),
    ([0.0, -1e-9, 0.0, 1e-9, 1e-9, 1e-9], []),  # nothing is worse than 0 by a factor
  ],
)
def test_a_distance_that_grows(values, expected):
  assert steps(DISTANCE, values) == expected
  assert steps("validation/frechet_distance", values) == expected
  assert steps("floor/frechet_distance", values) == []
  assert steps("generated/other_distance", values) == []


def test_a_step_that_is_repeated_counts_once():
  values = ((1, 90), (2, 40), (3, 31), (4, 60), (4, 60), (4, 60), (5, 31))
  assert alarms.signs({"step": step, "time": 0.0, DISTANCE: value} for step, value in values) == []


@pytest.mark.parametrize(
  ("values", "expected"),
  [
    ([1, 1, 0, 0, 0, 0], []),
    ([1, 1, 0, 0.009, -0.009, 0, 0, 0, 0, 0], [7000]),
    ([0, 0, 0, 0, 0.01, 0, 0, 0, 0], []),
    ([0] * 5 + [1] * 4 + [0] * 5, [5000]),
    ([0] * 5 + [1] * 5 + [0] * 5, [5000, 15000]),
    ([float("nan")] * 9, []),
  ],
)
def test_a_discriminator_that_has_won(values, expected):
  assert steps(LOSS, values) == expected
  assert steps("train/generator_loss", values) == []


@pytest.mark.parametrize(
  ("name", "values", "expected"),
  [
    (RECALL, [0.0, 0.01, 0.0, 0.0], []),  # it never had any
    (RECALL, [0.01, 0.3, 0.01, 0.4, 0.0], []),
    (RECALL, [0.01, 0.3, 0.019, 0.0, 0.0], [4000]),
    (RECALL, [0.3, 0.02, 0.02, 0.02], []),
    ("validation/recall", [0.9, 0.0, 0.0, 0.0], []),  # a classifier's recall is another thing
    (MODES, [1, 20, 9, 9, 3], [4000]),
    (MODES, [20, 10, 10, 10], []),
    (MODES, [20, 9, 11, 9, 20], []),
  ],
)
def test_lost_variety(name, values, expected):
  assert steps(name, values) == expected


@settings(deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 1000.0))
def test_noise_is_no_alarm(seed, scale):
  """A distance that has settled and keeps within a fifth of its mean never looks like a collapse."""
  noise = 1 + 0.1 * np.random.default_rng(seed).standard_normal(300).clip(-1.99, 1.99)
  assert steps(DISTANCE, (scale * noise).tolist()) == []


def test_an_alarm_says_what_when_and_what_to_do():
  lines = [{"step": step, "time": 0.0, DISTANCE: value} for step, value in enumerate((50, 31.2, 40, 60, 84.1), 1)]
  gan = [{"step": 1, "time": 0.0, LOSS: 1.0}, *lines]
  (plain,), (adversarial,) = alarms.signs(lines), alarms.signs(gan)
  assert plain.text.startswith(f"{DISTANCE} worsens: 84.10 at step 5, best was 31.20 at step 2; ")
  assert "--optim.learning_rate" in plain.text
  assert "--gan.r1=1" in adversarial.text
  assert "--gan" not in plain.text  # a diffusion model or an autoencoder has no such flag


COLLAPSE = [(step, {DISTANCE: value}) for step, value in enumerate((90, 40, 31, 60, 84, 99, 31, 31, 70, 90), 1)]


def run(path, first, last, start_step, capsys):
  """The alarms that a start tells which makes the evaluations from `first` to `last`."""
  with Report(path, header={}, total_steps=99, start_step=start_step, batch_size=1) as report:
    for step, scalars in COLLAPSE[first - 1 : last]:
      report.evaluation(step, scalars)
  lines = capsys.readouterr().out.splitlines()
  return [line for line in lines if line.startswith("alarm: ")]


def test_the_log_tells_each_alarm_once_and_whole(tmp_path, capsys):
  told = run(tmp_path, 1, 10, 0, capsys)
  found = alarms.signs(record.read(tmp_path / "metrics.jsonl"))
  assert told == [f"alarm: {alarm.text}" for alarm in found]
  assert [alarm.step for alarm in found] == [5, 10]


@pytest.mark.parametrize("kept", range(1, 10))
def test_a_resumed_run_tells_what_is_new_and_only_that(tmp_path, capsys, kept):
  whole = run(tmp_path / "whole", 1, 10, 0, capsys)
  run(tmp_path / "cut", 1, 8, 0, capsys)  # it was killed after step 8, and its checkpoint is of step `kept`
  told = run(tmp_path / "cut", kept, 10, kept, capsys)  # the loop evaluates step `kept` again
  assert told == whole[1:] if kept >= 5 else told == whole
  both = [alarms.signs(record.read(tmp_path / name / "metrics.jsonl")) for name in ("whole", "cut")]
  assert both[0] == both[1]


def test_a_line_of_training_costs_next_to_nothing():
  watch = alarms.Watch()
  line = {"step": 0, "time": 0.0, LOSS: 1.0, **{f"train/{name}": 1.0 for name in "abcdefgh"}}
  watch.see(line)
  times = []
  for _ in range(20):  # the quickest of several, on a machine that has other work too
    began = time.perf_counter()
    for step in range(100):
      line["step"] = step
      watch.see(line)
    times.append((time.perf_counter() - began) / 100)
  assert min(times) < 20e-6


def test_a_critic_whose_loss_is_zero_has_not_won():
  """Wasserstein's loss is minus a distance (Arjovsky et al. 2017): 0 is where it begins, and where fakes are good."""
  assert steps("train/critic_loss", [0.001, -0.002, 0.0] * 5) == []
  assert steps(LOSS, [0.001, 0.002, 0.0] * 5) == [5000]


def losses(values, **more):
  return alarms.signs([{"step": step, "train/loss": value, **more} for step, value in enumerate(values, 1)])


def test_a_loss_that_jumps():
  """Falling from 10 to about 3 with some noise, and one line in which a fifth of what was learned is lost again."""
  noise = np.random.default_rng(0).normal(0, 0.05, 100)
  curve = 3 + 7 * np.exp(-np.arange(100) / 10) + noise
  assert losses(curve) == []
  curve[60:63] = 5.5
  (alarm,) = losses(curve)
  assert alarm.step == 61
  assert alarm.text.startswith("the loss jumps to 5.500 at step 61 from about 3.0")
  assert "--run.skip_spikes=5" in alarm.text


@pytest.mark.parametrize("seed", range(5))
def test_losses_of_small_batches_are_no_spikes(seed):
  """A classifier that has learned its examples: most batches are at 0.01, and single ones at ten times that."""
  rng = np.random.default_rng(seed)
  learned = 0.01 * rng.lognormal(0, 1, 300)
  assert losses([*np.linspace(2.3, 0.05, 30), *learned]) == []
  assert losses(rng.normal(0.4, 0.1, 300)) == []


def test_skipped_updates_are_told_at_each_rise():
  lines = [{"step": step, "train/loss": 1.0} for step in range(1, 4)]
  lines += [{"step": step, "train/loss": 1.0, "train/skipped": 2.0} for step in range(4, 8)]
  lines += [{"step": 8, "train/loss": 1.0, "train/skipped": 3.0}]
  first, second = alarms.signs(lines)
  assert (first.step, second.step) == (4, 8)
  assert first.text.startswith("2 updates were skipped by step 4, 2 in all: a loss or a gradient was not finite; ")
  assert second.text.startswith("an update was skipped by step 8, 3 in all")
