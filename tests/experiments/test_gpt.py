"""Language models from the command line: trained, judged token by token, written from; and what is refused."""

import json
import shutil

import pytest

from experiments import command, kept, run_directory
from experiments.gpt.__main__ import EXPERIMENT as GPT
from experiments.gpt.writing import _Stream, stop_strings
from experiments.job import make_job
from research.data import tokenizers

TEXT = "the cat sat on the mat.\nthe dog sat on the log.\n" * 40
SMALL = [
  "--model.layers=2", "--model.width=16", "--model.heads=2", "--model.context=16", "--data.batch_size=8",
  "--text.tokenizer=char", "--optim.learning_rate=1e-2", "--run.log_every=10",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp("gpt")
  (folder / "a.txt").write_text(TEXT)
  workdir = folder / "run"
  arguments = [f"--data.source=text:{folder / 'a.txt'}", *SMALL, "--run.steps=60", f"--workdir={workdir}"]
  assert command.main(GPT, arguments) == 0
  return workdir


def said(capsys, *arguments):
  capsys.readouterr()
  assert command.main(GPT, ["sample", *arguments]) == 0
  return capsys.readouterr().out


def refused(capsys, *arguments):
  capsys.readouterr()
  assert command.main(GPT, list(arguments)) == 2
  error = capsys.readouterr().err
  assert all(row.startswith("  ") for row in error.splitlines()[1:]), error
  return error


def test_it_learns_and_every_token_of_the_validation_text_is_counted(trained):
  result = json.loads((trained / "result.json").read_text())["metrics"]
  assert result["validation/loss"] < 1.8  # of 2.9 at the start
  assert result["validation/bits_per_byte"] == pytest.approx(result["validation/loss"] / 0.693147, rel=1e-5)
  assert (trained / "tokenizer.json").exists()
  samples = sorted((trained / "samples").glob("*.txt"))
  assert len(samples[-1].read_text()) > 300


def test_writing_from_a_prompt(trained, capsys):
  run = f"--config={trained}"
  first = said(capsys, run, "--prompt=the cat", "--tokens=20", "--temperature=0")
  assert first == said(capsys, run, "--prompt=the cat", "--tokens=20", "--temperature=0")
  assert first.startswith("the cat")
  assert len(first) == len("the cat") + 20 + 1
  longer = said(capsys, run, "--prompt=the cat", "--tokens=40", "--temperature=0")
  assert longer.startswith(first[:12])
  stopped = said(capsys, run, "--prompt=the cat", "--tokens=40", "--temperature=0", r"--stop=zzz| ")
  assert stopped == "the cat" + longer[len("the cat") :].split(" ")[0].rstrip("\n") + "\n"


def test_writing_needs_no_text_but_the_tokenizer_that_the_run_began_with(trained, capsys, tmp_path):
  run, line = shutil.copytree(trained, tmp_path / "run"), ["--prompt=the cat", "--tokens=5"]
  expected = said(capsys, f"--config={run}", *line)
  text = trained.parent / "a.txt"
  text.rename(tmp_path / "gone.txt")
  try:
    assert said(capsys, f"--config={run}", *line) == expected
    assert "no file or folder" in refused(capsys, "sample", f"--config={run}", *line, "--text.tokenizer=byte")
    assert "no file or folder" in refused(capsys, "eval", f"--config={run}")
    whole = (run / "tokenizer.json").read_text()
    others = {"{": "is damaged", "{}": "describes no tokenizer", '{"kind": "byte"}': "not the one that it was started"}
    for content, message in others.items():
      (run / "tokenizer.json").write_text(content)
      assert message in refused(capsys, "sample", f"--config={run}", *line)
    (run / "tokenizer.json").unlink()
    assert "no file or folder" in refused(capsys, "sample", f"--config={run}", *line)
    (run / "tokenizer.json").write_text(whole)
    (run / "run.json").write_text("{}")  # as of a run from before it named the tokenizer
    assert "no file or folder" in refused(capsys, "sample", f"--config={run}", *line)
  finally:
    (tmp_path / "gone.txt").rename(text)


def test_a_run_without_its_text_has_the_state_of_the_run_with_it(tmp_path):
  """Epochs, a warm-up, documents kept apart and a best checkpoint, all of which need data in training."""
  (tmp_path / "a.txt").write_text(TEXT)
  line = [f"--data.source=text:{tmp_path / 'a.txt'}", *SMALL, "--run.epochs=0.5", "--optim.warmup_steps=50"]
  line += ["--text.packed", "--run.best_metric=validation/loss", "--data.feed=grain", f"--workdir={tmp_path / 'run'}"]
  request = command.read(GPT, line)
  job = make_job(GPT, request.config, print)
  (tmp_path / "run").mkdir()
  run_directory.claim(request.workdir, "gpt", request.config)
  job.data.splits.keep(request.workdir)
  record = {"data": job.data.splits.fingerprint, **job.data.splits.about, "started": "", "command": ""}
  run_directory.write_record(request.workdir, record)
  (tmp_path / "a.txt").unlink()
  found = kept.job(GPT, request)
  assert found.abstract_state == job.abstract_state
  assert found.data.splits.fingerprint == job.data.splits.fingerprint
  job.data.train.close()


def test_stop_strings_are_divided_by_bars_of_which_some_are_meant():
  assert stop_strings(r"|a b|\nc|d\|e\|") == ["a b", "\nc", "d|e|"]
  assert stop_strings("") == []


def test_characters_of_a_prompt_that_training_had_not_are_told(trained, capsys):
  capsys.readouterr()
  assert command.main(GPT, ["sample", f"--config={trained}", "--prompt=a ☃ cat é ☃", "--tokens=1"]) == 0
  assert capsys.readouterr().err == "training had no 'é', '☃': read as an unknown character\n"
  assert command.main(GPT, ["sample", f"--config={trained}", "--prompt=a cat", "--tokens=1"]) == 0
  assert capsys.readouterr().err == ""


def test_a_tokenizer_that_is_kept_is_not_learned_again(trained, capsys, monkeypatch):
  monkeypatch.setattr(tokenizers, "learn", None)
  assert command.main(GPT, ["eval", f"--config={trained}"]) == 0
  kept = trained / "tokenizer.json"
  content = kept.read_text()
  tokenizers.save(tokenizers.Characters("abc"), kept)
  try:
    assert "the tokenizer in" in refused(capsys, "eval", f"--config={trained}")
  finally:
    kept.write_text(content)


def test_many_texts_and_beams(trained, capsys, tmp_path):
  (tmp_path / "prompts").write_text("the cat\nthe dog sat\n")
  run = f"--config={trained}"
  many = said(capsys, run, f"--prompt_file={tmp_path / 'prompts'}", "--count=2", "--tokens=5", "--sample_seed=3")
  assert [f"--- {number}" in many for number in range(1, 6)] == [True] * 4 + [False]
  assert many.count("the dog sat") >= 2
  beams = said(capsys, run, "--prompt=the c", "--beams=3", "--tokens=4").splitlines()
  scores = [float(line.split()[0]) for line in beams]
  assert scores == sorted(scores, reverse=True)
  stop = beams[0][-2:]  # behind "score  the c" come four characters
  cut = said(capsys, run, "--prompt=the c", "--beams=3", "--tokens=4", f"--stop={stop}").splitlines()
  begins = beams[0].index("the c") + len("the c")
  assert cut[0] == beams[0][: beams[0].index(stop, begins)]
  assert len({line.split("  ", 1)[1] for line in cut}) == len(cut)


def test_a_stream_holds_back_what_may_become_a_stop_or_a_character():
  tokenizer = tokenizers.learn("byte", [])
  stream = _Stream(tokenizer, ["END", "\n\n"])
  pieces = [stream.add(token) for token in "a€bEN".encode()]
  assert pieces == ["a", "", "", "€", "b", "", ""]
  assert stream.add(ord("x")) == "ENx"
  assert [stream.add(token) for token in b"END"] == ["", "", ""]
  assert (stream.finished, stream.text) == (True, "a€bENx")
  ended = _Stream(tokenizer, [])
  assert (ended.add(ord("a")), ended.add(tokenizer.end), ended.finished, ended.add(ord("b"))) == ("a", "", True, "")


class Counting:
  """A tokenizer that notes how many tokens it was given to decode."""

  def __init__(self, tokenizer):
    self._tokenizer, self.end, self.most = tokenizer, tokenizer.end, 0

  def decode(self, ids):
    self.most = max(self.most, len(ids))
    return self._tokenizer.decode(ids)


EMOJI = "naïve 🙂🙂 €5, 東京 👩‍👩‍👧 \ufffd end"
PIECES = b"\xf0\x9f\xe2\x82\xf0\x9f\x99\x82\x82\xf0\x41"  # of characters, some of them broken off
STREAMS = [EMOJI.encode(), PIECES * 3, b"\x82" * 30, EMOJI.encode() + PIECES[:2]]


@pytest.mark.parametrize("kind", ["byte", "bpe"])
@pytest.mark.parametrize("stream_bytes", STREAMS)
def test_a_stream_is_what_decoding_all_gives_and_decodes_a_few_tokens_at_a_time(kind, stream_bytes):
  learned = tokenizers.learn(kind, [EMOJI, "naïve " * 20], vocabulary=270)
  ids = list(stream_bytes)
  if kind == "bpe":
    ids = learned.encode(stream_bytes.decode(errors="replace")).tolist()
    ids = ids[:9] + ids[10:] + ids[3:]  # a token fewer: characters fall apart
  counting, shown = Counting(learned), ""
  stream = _Stream(counting, [])
  for place, token in enumerate(ids, start=1):
    shown += stream.add(token)
    assert stream.text == learned.decode(ids[:place])
    assert shown == stream.text.rstrip("\ufffd")
  assert shown + stream.rest() == learned.decode(ids)
  assert counting.most <= 5


def test_a_stop_string_is_found_across_the_tokens_that_make_it():
  text = "one 🙂 two 🙂🙂 three"
  stream = _Stream(tokenizers.learn("byte", []), ["🙂🙂", "never"])
  shown = "".join(stream.add(token) for token in text.encode())
  assert (shown, stream.text, stream.finished) == ("one 🙂 two ", "one 🙂 two ", True)


def test_documents_kept_apart_and_byte_pairs_train(tmp_path):
  lines = [json.dumps({"text": f"number {number} is {number % 7}"}) for number in range(60)]
  (tmp_path / "a.jsonl").write_text("\n".join(lines))
  arguments = [
    f"--data.source=jsonl:{tmp_path / 'a.jsonl'}", *SMALL, "--text.tokenizer=bpe", "--text.vocabulary=280",
    "--text.packed", "--model.positions=rotary", "--run.steps=2", f"--workdir={tmp_path / 'run'}",
  ]  # fmt: skip
  assert command.main(GPT, arguments) == 0
  metrics = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
  assert metrics["validation/bits_per_byte"] < metrics["validation/loss"] / 0.693147  # a token is more than a byte


def test_a_run_of_another_text_or_tokenizer_is_refused(trained, capsys, tmp_path):
  other = tmp_path / "b.txt"
  other.write_text(TEXT.replace("cat", "cow"))
  error = refused(capsys, f"--config={trained}", f"--data.source=text:{other}")
  assert "belongs to another experiment: 1 flag differs" in error
  assert f"text:{other}" in error
  error = refused(capsys, "sample", f"--config={trained}", "--text.tokenizer=byte", "--tokens=3")
  assert "; --text.tokenizer=char there, byte here; " in error
  (trained.parent / "a.txt").write_text(TEXT.replace("cat", "cow"))
  try:
    assert "is not the data that" in refused(capsys, "eval", f"--config={trained}")
  finally:
    (trained.parent / "a.txt").write_text(TEXT)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--model.heads=3"], "3 heads do not divide a width of 16; a width of 18 would"),
    (["--model.context=4000"], "--model.context=1727 would fit"),
    (["--data.flip"], "--data.flip is for classifiers"),
    (["--data.source=text:missing.txt"], "no file or folder"),
    (["--data.source=sklearn:digits"], "is no text"),
    (["--text.tokenizer=words"], "one of char, byte, bpe"),
    (["sample", "--prompt=a", "--prompt_file=b"], "--prompt and --prompt_file are both given"),
    (["sample", "--beams=2", "--count=2"], "--beams is for one text"),
    (["sample", "--beams=2", "--top_k=3", "--min_p=0.1"], "so --top_k, --min_p would change nothing"),
  ],
)
def test_what_does_not_fit_is_said_in_one_line(capsys, tmp_path, arguments, message):
  (tmp_path / "a.txt").write_text(TEXT)
  line = [f"--data.source=text:{tmp_path / 'a.txt'}", *SMALL, f"--workdir={tmp_path / 'run'}", *arguments]
  assert message in refused(capsys, *line)
  assert not (tmp_path / "run").exists()


def test_a_prompt_longer_than_the_context_is_refused(trained, capsys):
  error = refused(capsys, "sample", f"--config={trained}", "--prompt=" + "the cat " * 4)
  assert "does not fit in a context of 16" in error
