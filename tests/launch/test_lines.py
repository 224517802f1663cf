"""Output of several processes on one stream."""

import io

import pytest

from launch import lines
from launch.lines import Lines, prefix


@pytest.fixture
def out():
  return io.StringIO()


def fed(out, *pieces):
  one = Lines("[0] ", out)
  for piece in pieces:
    one.feed(piece)
  one.end()
  return out.getvalue()


def test_a_line_is_shown_once_it_is_whole(out):
  first, second = Lines("[0] ", out), Lines("[1] ", out)
  first.feed(b"hal")
  second.feed(b"whole\nnext")
  assert out.getvalue() == "[1] whole\n"
  first.feed(b"f\n")
  second.end()
  assert out.getvalue() == "[1] whole\n[0] half\n[1] next\n"


def test_each_line_is_one_write(out):
  writes = []
  out.write = writes.append
  fed(out, b"a\nb\n", b"c")
  assert writes == ["[0] a\n", "[0] b\n", "[0] c\n"]


@pytest.mark.parametrize(
  ("pieces", "shown"),
  [
    ([b"one\r\ntwo\r\n"], ["one", "two"]),
    ([b"one\r", b"\ntwo"], ["one", "two"]),
    ([b"10 %\r20 %\r30 %\ndone\n"], ["30 %", "done"]),
    ([b"\r10 %", b"\r20 %", b"\r30 %\n"], ["30 %"]),
    ([b"\n\nx\n"], ["", "", "x"]),
    ([b"caf\xc3", b"\xa9\n", b"\xff\n"], ["café", "\N{REPLACEMENT CHARACTER}"]),
    ([b"a\x0bb\x0cc\x1cd\n"], ["a\x0bb\x0cc\x1cd"]),  # line breaks to str.splitlines alone
    ([], []),
  ],
)
def test_what_a_terminal_would_be_left_with(out, pieces, shown, monkeypatch):
  monkeypatch.setattr(lines, "EVERY", 1e9)
  assert fed(out, *pieces) == "".join(f"[0] {line}\n" for line in shown)


def test_a_line_that_is_rewritten_is_shown_from_time_to_time(out, monkeypatch):
  now = [100.0]
  monkeypatch.setattr(lines.time, "monotonic", lambda: now[0])
  one = Lines("[0] ", out)
  for i in range(25):
    one.feed(b"\r%d of 25" % i)
    now[0] += 0.1
  one.feed(b"\n")
  states = out.getvalue().splitlines()
  assert 3 <= len(states) <= 4
  assert states[-1] == "[0] 24 of 25"
  assert len(set(states)) == len(states)


def test_a_line_without_end_is_not_kept_for_ever(out):
  one = Lines("[0] ", out)
  for _ in range(lines.LONGEST // 1000 + 1):
    one.feed(b"x" * 1000)
  assert len(out.getvalue()) > lines.LONGEST


def test_prefixes_are_equally_wide_and_coloured_on_a_terminal_alone():
  assert [prefix(rank, 12, False) for rank in (0, 11)] == ["[ 0] ", "[11] "]
  assert prefix(0, 1, False) == "[0] "
  assert prefix(0, 2, True) != prefix(1, 2, True)
  assert "\x1b[" in prefix(0, 2, True)
