"""Tokenizers: any text comes back, bytes are counted exactly, and two are the same where their digests are."""

import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data import tokenizers
from research.errors import UserError

CORPUS = ["def f(x):\n  return x + 1\n", "naïve café — 東京 🙂\n", "def g(y):\n  return f(y)\n"] * 5


@pytest.fixture(scope="module")
def learned():
  return {kind: tokenizers.learn(kind, CORPUS, vocabulary=300) for kind in tokenizers.KINDS}


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_and_byte_pairs_know_every_text(learned, text):
  for kind in ("byte", "bpe"):
    tokenizer = learned[kind]
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids.tolist()) == text
    assert tokenizer.bytes_V[ids].sum() == len(text.encode())


def test_characters_are_those_of_training_and_one_for_all_others(learned):
  tokenizer = learned["char"]
  for document in CORPUS:
    ids = tokenizer.encode(document)
    assert tokenizer.decode(ids.tolist()) == document
    assert tokenizer.bytes_V[ids].sum() == len(document.encode())
  assert tokenizer.size == len(set("".join(CORPUS))) + 2
  assert tokenizer.encode("dQ∞").tolist()[1:] == [tokenizer.unknown] * 2
  assert tokenizer.decode([tokenizer.unknown, tokenizer.end]) == "\ufffd"


def test_byte_pairs_are_shorter_than_bytes(learned):
  text = CORPUS[0]
  assert len(learned["bpe"].encode(text)) < 0.7 * len(text)
  assert 257 < learned["bpe"].size <= 300
  assert learned["bpe"].decode([learned["bpe"].end]) == ""


WORDS = "the cat_sat on mat 42, and naïve cafés don't mind (really):\n    x = f(y1, zz) 東京"


@pytest.mark.parametrize("kind", [*tokenizers.KINDS, "word"])
def test_edges_find_the_words_that_the_text_has(kind):
  """By places in the text: a run of \\w is a word, and a token that has no part in one stands alone."""
  tokenizer = tokenizers.learn(kind, [WORDS, "the cat sat " * 9], vocabulary=290)
  ids_T = tokenizer.encode(WORDS)
  opens_V, closes_V = tokenizers.word_edges(tokenizer)
  goes_on_T = np.append(False, opens_V[ids_T[1:]] & closes_V[ids_T[:-1]])
  if kind == "word":
    assert not goes_on_T.any()
    return
  ends_T = np.cumsum(tokenizer.bytes_V[ids_T])
  assert ends_T[-1] == len(WORDS.encode())
  spans = [(len(WORDS[: m.start()].encode()), len(WORDS[: m.end()].encode())) for m in re.finditer(r"\w+", WORDS)]
  words_T = [
    next((span for span in spans if span[0] < end and begin < span[1]), place)
    for place, (begin, end) in enumerate(zip([0, *ends_T[:-1]], ends_T, strict=True))
  ]
  assert goes_on_T.tolist() == [False, *(one == other for one, other in itertools.pairwise(words_T))]
  assert goes_on_T.any()


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_what_is_saved_is_the_same_tokenizer(learned, kind, tmp_path):
  tokenizer = learned[kind]
  tokenizers.save(tokenizer, tmp_path / "a.json")
  again = tokenizers.load(tmp_path / "a.json")
  assert tokenizers.digest(again) == tokenizers.digest(tokenizer)
  np.testing.assert_array_equal(again.encode(CORPUS[1]), tokenizer.encode(CORPUS[1]))
  assert (again.size, again.end) == (tokenizer.size, tokenizer.end)


def test_digests_differ_where_tokenizers_do(learned):
  others = [tokenizers.learn("char", ["abc"]), tokenizers.learn("bpe", CORPUS, vocabulary=290)]
  digests = {tokenizers.digest(tokenizer) for tokenizer in [*learned.values(), *others]}
  assert len(digests) == 5


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_an_id_beyond_the_vocabulary_is_refused(learned, kind):
  tokenizer = learned[kind]
  for wrong in (-1, tokenizer.size):
    with pytest.raises(UserError, match=f"token {wrong} is outside the vocabulary of {tokenizer.size}"):
      tokenizer.decode([0, wrong])


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("{", "is damaged"),
    ("[]", "describes no tokenizer"),
    (json.dumps({"kind": "char", "characters": ""}), "describes no tokenizer"),
    (json.dumps({"kind": "bpe", "tokenizer": {"a": 1}}), "damaged"),
  ],
)
def test_a_damaged_file_is_refused(tmp_path, content, message):
  (tmp_path / "a.json").write_text(content)
  with pytest.raises(UserError, match=message):
    tokenizers.load(tmp_path / "a.json")
  with pytest.raises(UserError, match="cannot read the tokenizer"):
    tokenizers.load(tmp_path / "b.json")


def test_a_vocabulary_has_room_for_the_bytes():
  with pytest.raises(UserError, match="a byte-pair vocabulary of 200 has no room"):
    tokenizers.learn("bpe", CORPUS, vocabulary=200)
