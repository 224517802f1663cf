"""Files for the library `tokenizers`: it opens and writes them alike, and gives any text the ids that ours gives."""

import json

import pytest
import tokenizers as library
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data import library_file, tokenizers

CORPUS = ["def f(x):\n  return x + 1\n", "naïve café — 東京 🙂 👩‍👩‍👧\r\n\t\0 e\u0301", "the cat  sat"] * 3
REPLACED = ["a\ufffdb c"]  # what stands for other characters is itself a character here
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.text(st.sampled_from(sorted(set("".join(CORPUS)))))


@pytest.fixture(scope="module")
def pairs():
  """{kind: (ours, the library's)}"""
  ours = {kind: tokenizers.learn(kind, CORPUS, vocabulary=300) for kind in tokenizers.KINDS}
  ours["replaced"] = tokenizers.learn("char", REPLACED)
  return {name: (each, opened(library_file.to_library(each.content()))) for name, each in ours.items()}


def opened(description):
  return library.Tokenizer.from_str(json.dumps(description))


@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_the_library_gives_any_text_the_same_ids_and_writes_them_alike(pairs, text):
  for ours, theirs in pairs.values():
    ids = ours.encode(text).tolist()
    assert theirs.encode(text).ids == ids
    if ours.kind == "byte" or "\ufffd" not in ours.decode(ids):
      assert theirs.decode(ids) == ours.decode(ids)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_the_library_writes_the_file_as_it_reads_it_and_ours_is_made_from_it_again(pairs, kind, masked, tmp_path):
  ours, _ = pairs[kind]
  description = library_file.to_library(ours.content(), masked=masked)
  written = json.loads(opened(description).to_str())
  assert written == description
  (tmp_path / "tokenizer.json").write_text(json.dumps(written))
  again = tokenizers.load(tmp_path / "tokenizer.json")
  assert (again.kind, tokenizers.digest(again)) == (kind, tokenizers.digest(ours))


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_a_masked_models_file_knows_its_two_tokens(pairs, kind):
  ours, _ = pairs[kind]
  theirs = opened(library_file.to_library(ours.content(), masked=True))
  found = theirs.encode("the[MASK]cat").ids
  assert found == [ours.size + 1, *ours.encode("the"), ours.size, *ours.encode("cat")]
  assert theirs.get_vocab_size() == ours.size + 2
  blank = [] if kind == "bpe" else ours.encode(" ").tolist()  # which a byte pair's [MASK] stands for too
  assert theirs.encode(" [MASK]", add_special_tokens=False).ids == [*blank, ours.size]
  assert theirs.token_to_id("<|endoftext|>") == ours.end


def test_words_have_no_file_nor_has_a_vocabulary_with_room():
  assert library_file.to_library(tokenizers.learn("word", CORPUS).content()) is None
  pairs = tokenizers.learn("bpe", CORPUS, 300).content()
  assert library_file.to_library({**pairs, "size": 400}) == pairs["tokenizer"]
  assert library_file.to_library({**pairs, "size": 400}, masked=True) is None


def test_files_that_only_look_like_ours_are_not_taken_for_them(pairs, tmp_path):
  ours, _ = pairs["char"]
  description = library_file.to_library(ours.content())
  for change in ({"normalizer": {"type": "Lowercase"}}, {"pre_tokenizer": {"type": "Whitespace"}}):
    assert library_file.from_library({**description, **change}) is None
  vocabulary = {**description["model"]["vocab"], "cat": ours.size}
  assert library_file.from_library({**description, "model": {**description["model"], "vocab": vocabulary}}) is None
  for damaged in ([{"content": "[CLS]"}], "added", [3]):
    assert library_file.without_mask({"added_tokens": damaged}) == {"added_tokens": damaged}
