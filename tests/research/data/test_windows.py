"""Windows of a text: each token is predicted once in evaluation, and both feeds cut the same windows."""

import jax
import numpy as np
import pytest

from research.data import feeds, tokenizers
from research.data.text import open_text
from research.data.windows import NO_TOKEN, windows
from research.errors import UserError
from research.parallel.mesh import make_mesh

BYTES = tokenizers.learn("byte", [])
DOCUMENTS = ["abcdefg", "hij", "klmnopqrstu"]


def made(length, stride, packed=False, documents=DOCUMENTS):
  return windows(documents, BYTES, name="a", length=length, stride=stride, packed=packed)


def text(row):
  return "".join("|" if token == BYTES.end else "." if token == NO_TOKEN else chr(token) for token in row)


def test_windows_by_hand():
  assert [text(row) for row in made(4, 4, documents=["abcdefghijk"]).column("tokens")] == ["abcde", "efghi", "ijk.."]
  assert [text(row) for row in made(4, 1, documents=["abcdefg"]).column("tokens")] == ["abcde", "bcdef", "cdefg"]
  assert [text(row) for row in made(9, 9).column("tokens")] == ["|abcdefg|h", "hij|klmnop", "pqrstu...."]


def test_a_masked_models_windows_hold_every_token_once():
  source = windows(DOCUMENTS, BYTES, name="a", length=9, stride=9, packed=True, ahead=0)
  assert [text(row) for row in source.column("tokens")] == ["|abcdefg|", "hij|klmno", "pqrstu..."]
  assert source.schema.features["segments"].shape == (9,)
  one = windows(["abcdefg"], BYTES, name="a", length=7, stride=1, packed=False, ahead=0)
  assert (one.size, text(one.gather([0])["tokens"][0])) == (1, "abcdefg")
  assert one.fingerprint != made(6, 1, documents=["abcdefg"]).fingerprint
  with pytest.raises(UserError, match=r"a has 7 tokens, fewer than a window of 8; --model\.context=6 would fit"):
    windows(["abcdefg"], BYTES, name="a", length=8, stride=1, packed=False, ahead=0)


def test_documents_have_numbers_where_they_are_kept_apart():
  packed = made(9, 9, packed=True).gather([0, 1, 2])
  assert packed["segments"].tolist() == [
    [0, 0, 0, 0, 0, 0, 0, 0, 1, 1], [1, 1, 1, 2, 2, 2, 2, 2, 2, 2], [2] * 6 + [NO_TOKEN] * 4
  ]  # fmt: skip
  assert "segments" not in made(9, 9).schema.features


@pytest.mark.parametrize("length", [1, 2, 5, 8, 23, 24, 30])
def test_side_by_side_every_token_but_the_first_is_a_target_once(length):
  source = made(length, length)
  targets = source.column("tokens")[:, 1:].ravel()
  np.testing.assert_array_equal(targets[targets != NO_TOKEN], source.tokens_T[1:])


@pytest.mark.parametrize("packed", [False, True])
def test_both_feeds_give_the_same_windows(packed):
  source, mesh = made(5, 1, packed), make_mesh("data:2")
  plan = feeds.Shuffled(0, 4, source.size)
  device, grain = (
    feeds.make_feeds(source, mesh, [plan], kind=kind, budget_bytes=0)[0] for kind in ("device", "grain")
  )
  for step in (0, 1, 7):
    ours = jax.jit(device.batch)(device.inputs(step), step)
    theirs = jax.jit(grain.batch)(grain.inputs(step), step)
    assert ours.keys() == theirs.keys()
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  grain.close()
  assert device.inputs(0)["tokens"].nbytes * (1 + packed) == source.nbytes  # the text, not its windows


def test_a_context_longer_than_the_text_is_refused():
  with pytest.raises(UserError, match=r"a has 7 tokens, fewer than a window of 7 .*; --model\.context=6 would fit"):
    made(7, 1, documents=["abcdefg"])
  assert made(7, 7, documents=["abcdefg"]).size == 1  # evaluation is content with a part


def test_what_validation_has_and_training_has_not_is_noted(tmp_path):
  (tmp_path / "a.txt").write_text("ab" * 50 + "axyx" * 3)
  splits = open_text(f"text:{tmp_path / 'a.txt'}", length=4, tokenizer="char", validation_fraction=0.1)
  assert splits.notes == ("the validation split has 9 characters that training has not",)
  assert splits.tokenizer.size == 4
  other = open_text(f"text:{tmp_path / 'a.txt'}", length=4, tokenizer="byte", validation_fraction=0.1)
  assert splits.fingerprint != other.fingerprint


def test_a_run_keeps_its_tokenizer_and_refuses_another(tmp_path):
  (tmp_path / "a.txt").write_text("abcd" * 50)
  open_with = lambda kind: open_text(f"text:{tmp_path / 'a.txt'}", length=4, tokenizer=kind)  # noqa: E731
  open_with("char").keep(tmp_path)
  open_with("char").keep(tmp_path)
  with pytest.raises(UserError, match="is not the tokenizer of these flags and data"):
    open_with("byte").keep(tmp_path)
