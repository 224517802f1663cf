"""Plain lines where there is no terminal, a live line where there is one, and a terminal that is left as it was."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

import research
from research import throughput
from research.report import Report, terminal

ANSI = re.compile(r"\x1b")


def test_plain_output_is_whole_lines_without_control_codes(tmp_path, capsys):
  with Report(tmp_path, header={"data": "two\nlines"}, total_steps=1000, batch_size=4) as report:
    for step in range(1, 101):
      report.progress(step)
      report.train(step, {"train/loss": 0.5, "train/examples_per_second": 1234.5})
    report.evaluation(100, {"validation/accuracy": 0.123456})
    report.note("a note")
  out = capsys.readouterr().out
  assert not ANSI.search(out)
  assert "\r" not in out
  lines = out.splitlines()
  assert lines[0] == "data  two lines"
  # A hundred steps within five seconds are one line; an evaluation always is one.
  assert [line.startswith("step ") for line in lines] == [False, True, True, False]
  assert re.match(r"step 100/1,000 · validation/accuracy 12\.35% · 1,230 examples/s · \d+ s left$", lines[2])


def test_a_line_tells_tokens_the_share_of_the_peak_and_memory(tmp_path, capsys):
  measured = throughput.Update(examples=16, devices=2, tokens=16 * 64, flops=1e9, peak=1e10).speeds(10, 4.0)
  measured["train/device_memory_peak_bytes"] = 1.5 * 2**30
  with Report(tmp_path, header={}, total_steps=1000, batch_size=16) as report:
    report.progress(1)
    report.train(100, {"train/loss": 0.5, **measured})
  line = capsys.readouterr().out.splitlines()[0]
  speed = r"2,560 tokens/s \(1,280 a device\) · MFU 12\.5% · \d+ s left · 1\.5 GiB"
  assert re.fullmatch(rf"step 100/1,000 · train/loss 0\.5000 · {speed}", line)


def test_quiet_is_silent(tmp_path, capsys):
  with Report(tmp_path, header={"data": "x"}, total_steps=1, batch_size=1, quiet=True) as report:
    report.train(1, {"train/loss": 0.5})
    report.note("nothing")
    report.finish({"step": 1, "metrics": {}})
  assert capsys.readouterr() == ("", "")


def test_pace_forgets_what_is_long_ago():
  pace = terminal.Pace()
  assert pace.steps_per_second() is None
  pace.mark(0.0, 0)
  assert pace.steps_per_second() is None
  for second in range(1, 101):
    pace.mark(float(second), 2 * second if second <= 50 else 100 + 8 * (second - 50))
  assert pace.steps_per_second() == 8.0


def test_a_slow_step_still_has_a_pace():
  pace = terminal.Pace()
  for step in range(3):
    pace.mark(100.0 * step, step)
  assert pace.steps_per_second() == 0.01


@pytest.mark.parametrize(
  ("scalars", "shown"),
  [
    ({"validation/loss": 1.0, "test/accuracy": 0.5, "validation/accuracy": 0.4}, "test/accuracy"),
    ({"validation/loss": 1.0, "validation/accuracy": 0.4}, "validation/accuracy"),
    ({"validation/loss": 1.0}, "validation/loss"),
  ],
)
def test_the_metric_shown_is_the_headline_or_the_nearest_thing(scalars, shown):
  line = terminal.Terminal(10, 0, 1, "test/accuracy")
  line.evaluation(1, scalars)
  assert line.metric == (shown, scalars[shown])


def test_without_held_out_data_the_loss_of_training_is_told(tmp_path, capsys):
  with Report(tmp_path, header={}, total_steps=20, batch_size=4) as report:
    report.train(10, {"train/loss": 0.5, "train/accuracy": 0.25})
    report.evaluation(15, {})
    report.finish({"step": 20, "metrics": {}})
  lines = capsys.readouterr().out.splitlines()
  assert any(re.match(r"step 15/20 · train/loss 0\.5000( · |$)", line) for line in lines)
  assert re.search(r"^train/loss +0\.5000$", "\n".join(lines), re.MULTILINE)
  metrics = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert len(metrics) == 1  # told twice, measured once


def test_numbers_below_0_have_a_true_minus_on_the_terminal_and_none_in_files(tmp_path, capsys):
  with Report(tmp_path, header={}, total_steps=1, batch_size=4) as report:
    report.evaluation(1, {"test/skill": -0.25})
    report.finish({"step": 1, "metrics": {"test/skill": -0.25}})
  assert capsys.readouterr().out.count("−0.2500") == 2
  for name in ("metrics.jsonl", "result.json"):
    assert '"test/skill": -0.25' in (tmp_path / name).read_text()


SCRIPT = """
import sys, time
from research.report import Report
with Report(sys.argv[1], header={"data": "x"}, total_steps=40, batch_size=4) as report:
  for step in range(1, 41):
    report.progress(step)
    time.sleep(0.02)
    if step % 20 == 0:
      report.evaluation(step, {"validation/accuracy": 0.5})
  if sys.argv[2] == "crash":
    raise ValueError("the run crashed")
"""


def on_a_terminal(arguments, **environment):
  """What a program writes to a pseudo-terminal of 100 columns."""
  leader, follower = pty.openpty()
  environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30", **environment}
  root = Path(research.__file__).parents[1]
  with subprocess.Popen(arguments, stdout=follower, stderr=follower, env=environment, cwd=root) as process:
    os.close(follower)
    out = b""
    # Linux ends a terminal whose last writer is gone with an error, not with an end of file.
    try:
      while part := os.read(leader, 65536):
        out += part
    except OSError:
      pass
    process.wait()
  os.close(leader)
  return out.decode()


def test_a_terminal_shows_a_live_line_and_is_restored_after_a_crash(tmp_path):
  out = on_a_terminal([sys.executable, "-c", SCRIPT, tmp_path, "crash"], NO_COLOR="1")
  assert re.search(r"\d+/40 .*examples/s · \d+ s left", out)
  assert "validation/accuracy 50.00%" in out
  assert "the run crashed" in out
  # The cursor was hidden, and is shown again in the end.
  assert out.rindex("\x1b[?25h") > out.rindex("\x1b[?25l")
  # NO_COLOR allows bold and dim but no colour.
  assert not re.search(r"\x1b\[[\d;]*(3[0-7]|38|9[0-7])[\d;]*m", out)


def test_a_narrow_window_drops_the_least_wanted_facts_and_does_not_flicker():
  line = terminal.Live(1000, 0, 1, "test/accuracy")
  line.evaluation(1, {"test/accuracy": 0.5})
  line.train(1, {"train/loss": 0.25, "train/balance_loss": 1.0})
  line._memory = (0.0, "457 MiB")
  whole = "1/1,000 · loss 0.2500 · test/accuracy 50.00% · 457 MiB"
  assert line._fitting(len(whole)) == whole
  assert line._fitting(len(whole) - 1) == whole.removesuffix(" · 457 MiB")
  line._memory = (0.0, "1 B")  # it would fit now, and not in the next moment
  assert line._fitting(len(whole) - 1) == whole.removesuffix(" · 457 MiB")
  assert line._fitting(10) == "1/1,000"
  assert line._fitting(200).endswith(" · 1 B")
