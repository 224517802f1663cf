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


def of_library(folder, learned, **beside):
  """A Hugging Face directory's files, of the byte pairs that were learned."""
  (folder / "tokenizer.json").write_text(json.dumps(beside.pop("tokenizer", learned["bpe"].content()["tokenizer"])))
  for name, content in beside.items():
    (folder / f"{name}.json").write_text(json.dumps(content))
  return tokenizers.load(folder / "tokenizer.json")


def test_the_librarys_own_file_is_the_same_tokenizer(learned, tmp_path):
  found = of_library(tmp_path, learned, tokenizer_config={"eos_token": tokenizers.END}, config={"vocab_size": 257})
  assert tokenizers.digest(found) == tokenizers.digest(learned["bpe"])
  longer = dict(learned["bpe"].content()["tokenizer"])
  longer["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
  found = of_library(tmp_path, learned, tokenizer=longer)
  assert found.decode(found.encode(CORPUS[0]).tolist()) == CORPUS[0]


def test_another_end_more_tokens_and_room_for_yet_more(learned, tmp_path):
  text, size = json.dumps(learned["bpe"].content()["tokenizer"]).replace(tokenizers.END, "<eot>"), learned["bpe"].size
  other = json.loads(text)
  new = {**other["added_tokens"][0], "special": False, "normalized": False}
  other["added_tokens"].append({**new, "id": size, "content": "&&"})
  beside = {"tokenizer_config": {"eos_token": {"content": "<eot>"}}, "config": {"vocab_size": size + 9}}
  found = of_library(tmp_path, learned, tokenizer=other, **beside)
  assert (found.end, found.end_token, found.size) == (learned["bpe"].end, "<eot>", size + 9)
  assert len(found.bytes_V) == size + 9
  ids = found.encode("a &&<eot>b")
  assert size in ids
  assert found.end in ids
  assert found.bytes_V[ids].sum() == len(b"a &&b")
  assert found.decode([*ids.tolist(), size + 5]) == "a &&b"
  tokenizers.save(found, tmp_path / "kept.json")
  kept = tokenizers.load(tmp_path / "kept.json")
  assert tokenizers.digest(kept) == tokenizers.digest(found) != tokenizers.digest(learned["bpe"])
  assert (kept.end, kept.size) == (found.end, size + 9)
  with pytest.raises(UserError, match="without a token <end>"):
    of_library(tmp_path, learned, tokenizer=other, tokenizer_config={"eos_token": "<end>"})


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"model": {"type": "WordPiece"}}, "is no byte-level BPE .WordPiece with ByteLevel."),
    ({"decoder": {"type": "Metaspace"}}, "is no byte-level BPE .BPE with Metaspace."),
    ({"decoder": None}, "is no byte-level BPE .BPE with no decoder."),
  ],
)
def test_a_file_of_another_kind_of_tokenizer(learned, tmp_path, change, message):
  with pytest.raises(UserError, match=message):
    of_library(tmp_path, learned, tokenizer={**learned["bpe"].content()["tokenizer"], **change})
