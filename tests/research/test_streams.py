"""A log in an old encoding costs a character, and never the run."""

import io
import sys

import pytest

from research.report import Report
from research.streams import say_what_can_be_said


@pytest.mark.parametrize(
  ("encoding", "written"),
  [("utf-8", "−0.5 · × → ∞ 漢"), ("latin-1", "-0.5 · × -> inf ?"), ("ascii", "-0.5 | x -> inf ?")],
)
def test_a_stream_writes_what_it_can(encoding, written):
  stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
  say_what_can_be_said(stream, io.StringIO())
  print("−0.5 · × → ∞ 漢", end="", file=stream, flush=True)
  assert stream.buffer.getvalue().decode(encoding) == written


def test_a_negative_number_ends_no_run_whose_log_is_in_latin_1(tmp_path, monkeypatch):
  stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
  monkeypatch.setattr(sys, "stdout", stream)
  with Report(tmp_path, header={}, total_steps=1, batch_size=1) as report:
    report.evaluation(1, {"test/skill": -0.25})
  assert b"test/skill -0.2500" in stream.buffer.getvalue()
