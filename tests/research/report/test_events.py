"""Event files as TensorBoard's own reader sees them."""

import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from research.report import Report, record


def open_report(path, start_step=0):
  return Report(path, header={}, total_steps=10, start_step=start_step, batch_size=1, quiet=True)


def read(path):
  accumulator = EventAccumulator(str(path / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
  accumulator.Reload()
  return accumulator


def test_tensorboard_reads_the_numbers_at_their_steps_and_times(tmp_path):
  with open_report(tmp_path) as report:
    report.train(1, {"train/loss": 0.5})
    report.train(2, {"train/loss": float("nan")})
    report.evaluation(2, {"validation/loss": 0.75})
    accumulator = read(tmp_path)  # while the run still goes on
  scalars = accumulator.Scalars("train/loss")
  assert [event.step for event in scalars] == [1, 2]
  assert scalars[0].value == 0.5
  assert np.isnan(scalars[1].value)
  lines = record.read(tmp_path / "metrics.jsonl")
  assert [event.wall_time for event in scalars] == [line["time"] for line in lines[:2]]
  assert [(event.step, event.value) for event in accumulator.Scalars("validation/loss")] == [(2, 0.75)]


def test_after_a_resume_no_step_is_missing_or_there_twice(tmp_path):
  with open_report(tmp_path) as report:
    for step in range(1, 8):
      report.train(step, {"train/loss": step})
    report.sample(2, np.zeros((1, 2, 2, 1), np.uint8))
    report.sample(6, np.zeros((1, 2, 2, 1), np.uint8))
  (old,) = (tmp_path / "tensorboard").iterdir()
  old.rename(old.with_name("events.out.tfevents.0000000001.elsewhere.1"))  # another start has another name
  with open_report(tmp_path, start_step=4) as report:
    for step in range(5, 11):
      report.train(step, {"train/loss": 10 * step})
  accumulator = read(tmp_path)
  found = [(event.step, event.value) for event in accumulator.Scalars("train/loss")]
  assert found == [(step, step if step <= 4 else 10 * step) for step in range(1, 11)]
  assert [image.step for image in accumulator.Images("samples")] == [2]
  assert len(list((tmp_path / "tensorboard").iterdir())) == 1


@pytest.mark.parametrize("resumed", [False, True])
def test_pictures_and_texts_arrive_as_they_are(tmp_path, resumed):
  sample = {"main": np.zeros((2, 4, 6, 3), np.uint8), "walk": np.zeros((1, 4, 6, 1), np.uint8)}
  with open_report(tmp_path) as report:
    report.train(4, {"train/loss": 1.0})
    report.sample(3, sample)
    report.sample(4, "to be\nor not")
  if resumed:
    with open_report(tmp_path, start_step=4) as report:
      report.sample(4, "to be\nor not")  # repeated right after the resume
  accumulator = read(tmp_path)
  (image,) = accumulator.Images("samples")
  factor = 800 // (6 + 1 + 6)
  assert (image.step, image.height, image.width) == (3, factor * 4, factor * (6 + 1 + 6))
  assert image.encoded_image_string == (tmp_path / "samples" / "000003.png").read_bytes()
  (walk,) = accumulator.Images("samples/walk")
  assert (walk.step, walk.encoded_image_string) == (3, (tmp_path / "samples" / "walk" / "000003.png").read_bytes())
  (text,) = accumulator.Tensors("samples/text_summary")
  assert text.tensor_proto.string_val[0] == b"    to be\n    or not\n"


@pytest.mark.parametrize("fault", ["missing", "full"])
def test_training_goes_on_without_tensorboard(tmp_path, monkeypatch, capsys, fault):
  if fault == "missing":
    monkeypatch.setitem(sys.modules, "tensorboardX.proto.event_pb2", None)
  else:
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
  with Report(tmp_path, header={}, total_steps=2, batch_size=1) as report:
    report.train(1, {"train/loss": 0.5})
    report.train(2, {"train/loss": 0.5})
  assert capsys.readouterr().out.count("no TensorBoard events") == 1
  assert len(record.read(tmp_path / "metrics.jsonl")) == 2
