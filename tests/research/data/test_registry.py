"""Schemes: unknown ones are answered with the nearest, and nothing heavy is imported before it is needed."""

import subprocess
import sys

import pytest

from research.data import open_splits
from research.errors import UserError
from research.nearest import hint


@pytest.mark.parametrize(
  ("uri", "line"),
  [
    ("tdfs:cifar10", r"no kind of source 'tdfs' in 'tdfs:cifar10' \(did you mean tfds\?\)"),
    ("iris", r"not SCHEME:NAME, such as sklearn:digits \(did you mean sklearn:iris\?\)"),
    ("tfds:", "nothing follows 'tfds'"),
    ("", "not SCHEME:NAME"),
    ("sklearn:irsi", r"no dataset 'sklearn:irsi' \(did you mean iris\?\)"),
    ("synthetic:spiral", r"did you mean spirals\?"),
    ("npz:nowhere/x.npz", "there is no file nowhere/x.npz, nor folder 'nowhere' in"),
  ],
)
def test_unknown_names_are_one_line_with_the_nearest(uri, line):
  with pytest.raises(UserError, match=line) as caught:
    open_splits(uri)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["npz", "csv", "idx", "folder"])
def test_a_missing_file_is_answered_with_the_nearest_name(scheme, tmp_path):
  (tmp_path / "mydata").write_text("")
  with pytest.raises(UserError, match=rf"there is no (file|folder) {tmp_path}/mydta \(did you mean mydata\?\)"):
    open_splits(f"{scheme}:{tmp_path}/mydta")


def test_a_slip_of_one_letter_beats_a_longer_name():
  assert hint("cifar11", ["cifar10", "cifar100", "cifar10_1", "cifar10_h"]) == " (did you mean cifar10?)"
  assert hint("IRIS", ["iris", "wine"]) == " (did you mean iris?)"
  assert hint("zzz", ["iris", "wine"]) == " (known: iris, wine)"
  assert hint("zzz", map(str, range(100))) == ""


def test_opening_imports_only_what_it_uses():
  heavy = "jax sklearn scipy PIL grain tensorflow_datasets tensorflow matplotlib pandas"
  code = f"""
import sys
from research.data import open_splits
for uri in ("sklearn:digits", "sklearn:iris", "synthetic:rings"):
  open_splits(uri)
print([name for name in {heavy.split()!r} if name in sys.modules])
"""
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == "[]"
