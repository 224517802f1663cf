"""The decoded cache under what goes wrong: two processes, a kill half way, damage, a full disk."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from research.data import Feature, cache
from research.errors import UserError

SIZE = 1500  # three chunks
FEATURES = {"image": Feature((3, 2), "uint8"), "label": Feature((), "int32")}
IMAGES = np.random.default_rng(0).integers(0, 256, (SIZE, 3, 2), np.uint8)


def _begin():
  return FEATURES, lambda part: {"image": IMAGES[part.start : part.stop], "label": np.array(part, np.int32)}


def _decoded(folder, begin=_begin, progress=lambda line: None):
  return cache.decode_once("things", "f" * 64, SIZE, begin, folder, progress)


def _forbidden():
  pytest.fail("decoded again")


def _left(folder):
  return sorted(path.name for path in (folder / "decoded").iterdir() if not path.name.endswith(".lock"))


def test_arrays_are_as_decoded_mapped_and_read_only(tmp_path):
  _decoded(tmp_path)
  arrays = _decoded(tmp_path, _forbidden)
  np.testing.assert_array_equal(arrays["image"], IMAGES)
  np.testing.assert_array_equal(arrays["label"], np.arange(SIZE))
  assert arrays["label"].dtype == np.int32
  assert type(arrays["image"]) is np.ndarray
  assert isinstance(arrays["image"].base, np.memmap)
  with pytest.raises(ValueError, match="read-only"):
    arrays["image"][0] = 0


def test_an_entry_is_plain_npy_files(tmp_path):
  _decoded(tmp_path)
  np.testing.assert_array_equal(np.load(tmp_path / "decoded" / ("f" * 64) / "image.npy"), IMAGES)


def test_chunks_are_decoded_by_several_threads_and_kept_in_order(tmp_path, monkeypatch):
  monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4))
  meeting = threading.Barrier(2, timeout=20)
  order = []

  def begin():
    def decode(part):
      if part.start < 1024:  # passes only if the first two are decoded at the same time
        meeting.wait()
      order.append(part.start)
      return _begin()[1](part)

    return FEATURES, decode

  np.testing.assert_array_equal(_decoded(tmp_path, begin)["label"], np.arange(SIZE))
  assert sorted(order) == [0, 512, 1024]


@pytest.mark.parametrize("name", ["image.npy", "label.npy", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "empty"])
def test_damage_is_noticed_and_mended(tmp_path, name, damage):
  _decoded(tmp_path)
  path = tmp_path / "decoded" / ("f" * 64) / name
  content = bytearray(path.read_bytes())
  if damage == "delete":
    path.unlink()
  else:
    content[len(content) // 2] ^= 1
    path.write_bytes({"truncate": content[:-1], "flip": content, "empty": b""}[damage])
  lines = []
  np.testing.assert_array_equal(_decoded(tmp_path, progress=lines.append)["image"], IMAGES)
  assert lines == [
    "the cached copy of things is damaged or outdated and is made again",
    "decoding things: 1,500 examples, once",
  ]
  _decoded(tmp_path, _forbidden)


def test_a_very_large_entry_is_measured_but_not_read(tmp_path, monkeypatch):
  monkeypatch.setattr(cache, "_CHECK_BYTES", 0)
  _decoded(tmp_path)
  path = tmp_path / "decoded" / ("f" * 64) / "image.npy"
  monkeypatch.setattr(cache, "_crc32", _forbidden)
  _decoded(tmp_path, _forbidden)
  os.truncate(path, path.stat().st_size + 1)
  lines = []
  _decoded(tmp_path, progress=lines.append)
  assert len(lines) == 2


def test_an_entry_of_another_format_is_made_again(tmp_path):
  _decoded(tmp_path)
  path = tmp_path / "decoded" / ("f" * 64) / "manifest.json"
  path.write_text(json.dumps({**json.loads(path.read_text()), "format": 0}))
  lines = []
  _decoded(tmp_path, progress=lines.append)
  assert len(lines) == 2


@pytest.mark.parametrize("fault", [UserError("data: bad"), RuntimeError("bug"), KeyboardInterrupt()])
def test_what_decoding_raises_passes_and_leaves_nothing(tmp_path, fault):
  def begin():
    def decode(part):
      if part.start:
        raise fault
      return _begin()[1](part)

    return FEATURES, decode

  with pytest.raises(type(fault)):
    _decoded(tmp_path, begin)
  assert _left(tmp_path) == []
  np.testing.assert_array_equal(_decoded(tmp_path)["image"], IMAGES)


@pytest.mark.parametrize("wrong", ["shape", "count"])
def test_a_decoder_that_breaks_its_word_is_refused(tmp_path, wrong):
  def begin():
    decode = {
      "shape": lambda part: {"image": np.zeros((len(part), 9, 9), np.uint8), "label": np.array(part)},
      "count": lambda part: {"image": IMAGES[part.start : part.stop - 1], "label": np.array(part[:-1])},
    }[wrong]
    return FEATURES, decode

  with pytest.raises(ValueError, match="decoded"):
    _decoded(tmp_path, begin)
  assert _left(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match=r"cannot keep decoded things in \S+ \(Not a directory\); name another folder"):
    _decoded(tmp_path / "file")


def test_default_directory(monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  assert cache.directory("") == tmp_path / "flagship"
  monkeypatch.setenv("XDG_CACHE_HOME", "")
  monkeypatch.setenv("HOME", "/home/someone")
  assert str(cache.directory("")) == "/home/someone/.cache/flagship"
  assert str(cache.directory("~/mine")) == "/home/someone/mine"


# A process of its own that decodes; {0} runs at the start of every chunk's decoding.
CHILD = """
import resource, signal, sys, time
import numpy as np
from research.data import Feature, cache
from research.errors import UserError
folder = sys.argv[1]

def begin():
  print("began", flush=True)
  def decode(part):
    {0}
    return dict(image=np.full((len(part), 3, 2), 7, np.uint8), label=np.array(part, np.int32))
  return dict(image=Feature((3, 2), "uint8"), label=Feature((), "int32")), decode

try:
  arrays = cache.decode_once("things", "f" * 64, {1}, begin, folder, lambda line: print(line, flush=True))
  print("done", int(arrays["image"].sum()), flush=True)
except UserError as error:
  print("error", error, flush=True)
"""


@contextlib.contextmanager
def _child(folder, at_chunk, size=SIZE, before=""):
  code = before + CHILD.format(at_chunk, size)
  child = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
  try:
    yield child
  finally:
    child.kill()
    child.wait()
    child.stdout.close()


def test_a_second_process_waits_and_decodes_nothing(tmp_path):
  wait_for_go = f"""
    import pathlib
    while not pathlib.Path({str(tmp_path / "go")!r}).exists(): time.sleep(0.01)"""
  with _child(tmp_path, wait_for_go) as first:
    assert first.stdout.readline() == "decoding things: 1,500 examples, once\n"
    assert first.stdout.readline() == "began\n"
    with _child(tmp_path, "raise SystemExit") as second:
      assert second.stdout.readline() == "waiting for another process to decode things\n"
      (tmp_path / "go").write_text("")
      assert second.stdout.read() == first.stdout.read() == f"done {7 * 6 * SIZE}\n"


def test_a_kill_half_way_leaves_no_entry_and_is_cleaned_up(tmp_path):
  stop_at_second_chunk = "if part.start >= 1024: print('half', flush=True); time.sleep(600)"
  with _child(tmp_path, stop_at_second_chunk) as child:
    while child.stdout.readline() != "half\n":
      pass
    child.send_signal(signal.SIGKILL)
    child.wait()
  (left,) = _left(tmp_path)
  assert ".partial-" in left
  lines = []
  # Another set's writer cleans up too, since the dead one's lock is free.
  cache.decode_once("others", "e" * 64, SIZE, _begin, tmp_path, lines.append)
  assert _left(tmp_path) == ["e" * 64]
  np.testing.assert_array_equal(_decoded(tmp_path)["image"], IMAGES)
  assert _left(tmp_path) == ["e" * 64, "f" * 64]


def test_a_living_writer_is_not_cleaned_up(tmp_path):
  with _child(tmp_path, "time.sleep(600)") as child:
    while child.stdout.readline() != "began\n":
      pass
    cache.decode_once("others", "e" * 64, SIZE, _begin, tmp_path, lambda line: None)
    assert any(".partial-" in name for name in _left(tmp_path))


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
  # A limit on file size fails a write as a full disk does; a write through a memory map would kill the process.
  limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
  with _child(tmp_path, "pass", size=100_000, before=limit) as child:
    *_, last = child.stdout.read().splitlines()
  assert last.startswith(f"error data: cannot keep decoded things in {tmp_path}/decoded (File too large)")
  assert _left(tmp_path) == []
