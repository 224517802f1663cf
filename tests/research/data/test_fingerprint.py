"""Digests: of content, not of memory layout, byte order or place; remembered for large files only while they stay."""

import hashlib
import os

import numpy as np

from research.data import fingerprint as fingerprints


def test_arrays_ignore_layout_and_byte_order_but_nothing_else():
  x = np.arange(12, dtype="<i4").reshape(3, 4)
  same = [x.astype(">i4"), np.asfortranarray(x), np.repeat(x, 2, axis=0)[::2]]
  assert {fingerprints.arrays({"x": array}) for array in (x, *same)} == {fingerprints.arrays({"x": x})}
  others = [{"y": x}, {"x": x.astype("<i8")}, {"x": x.reshape(4, 3)}, {"x": x + 1}, {"x": x, "y": x}]
  assert fingerprints.arrays({"x": x}) not in {fingerprints.arrays(other) for other in others}


def test_arrays_are_the_same_on_every_machine():
  # The definition, written out: name, dtype, shape, then the bytes.
  expected = hashlib.sha256(b"x:<i4:(2,);" + b"\x01\0\0\0\x02\0\0\0").hexdigest()
  assert fingerprints.arrays({"x": np.array([1, 2], np.int32)}) == expected


def test_text_does_not_run_together():
  assert fingerprints.text("ab", "c") != fingerprints.text("a", "bc") != fingerprints.text("abc")


def test_large_files_are_read_again_only_when_they_change(tmp_path, monkeypatch):
  root, cache = tmp_path / "root", tmp_path / "cache"
  root.mkdir()
  (root / "a").write_bytes(bytes(2 << 20))
  reads = []
  real = fingerprints.file
  monkeypatch.setattr(fingerprints, "file", lambda path: reads.append(path) or real(path))
  first = fingerprints.files(root, ["a"], cache)
  assert fingerprints.files(root, ["a"], cache) == first
  assert len(reads) == 1
  with open(root / "a", "r+b") as file:
    file.write(b"\x01")  # same size
  os.utime(root / "a", ns=(1, 1))
  assert fingerprints.files(root, ["a"], cache) != first
  assert len(reads) == 2


def test_files_do_not_count_their_place_and_survive_a_damaged_or_unwritable_memory(tmp_path):
  for place in ("here", "there"):
    (tmp_path / place).mkdir()
    (tmp_path / place / "a").write_bytes(b"a" * (2 << 20))
  cache = tmp_path / "cache"
  digest = fingerprints.files(tmp_path / "here", ["a"], cache)
  assert fingerprints.files(tmp_path / "there", ["a"], cache) == digest
  for memo in (cache / "fingerprints").iterdir():
    memo.write_text('{"stamp": ')
  assert fingerprints.files(tmp_path / "here", ["a"], cache) == digest
  assert fingerprints.files(tmp_path / "here", ["a"], tmp_path / "here" / "a") == digest  # a cache that is a file
