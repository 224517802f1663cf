"""Tuned parameters: which measurement counts where, and the command that measures."""

import json

import jax
import jax.numpy as jnp
import pytest

import research.kernels  # noqa: F401  every operation names what of it can be tuned
from research.kernels import choice, tune, tuning

KIND = "a processor"


@pytest.fixture
def tunable(monkeypatch, tmp_path):
  """An operation that sleeps not at all with step=2, and otherwise multiplies matrices; its file is elsewhere."""
  monkeypatch.setattr(tuning, "path", lambda op: tmp_path / f"{op}.json")
  monkeypatch.setattr(tuning, "this_kind", lambda: KIND)
  tuning.tuned.cache_clear()

  def run(x):
    step = made.parameters("case")["step"]
    if step == 3:
      raise ValueError("blocks of 3 do not fit")
    for _ in range(0 if step == 2 else 20):
      x = x @ x * 1e-3
    return x

  made = tuning.Tunable("fake", "xla", {"step": 1, "other": 7}, [{"step": 2}, {"step": 3}, {"step": 1}],
                        {"case": lambda: (run, (jnp.ones((256, 256)),))})  # fmt: skip
  choice.Op("fake", {"xla": choice.Form(run)}, {})
  yield made
  del tuning.TUNABLES["fake", "xla"], choice.OPS["fake"]
  tuning.tuned.cache_clear()


def measured(tmp_path, by_version, kind=KIND):
  (tmp_path / "fake.json").write_text(json.dumps({"xla": {kind: by_version}}))
  tuning.tuned.cache_clear()


def test_this_version_goes_before_the_newest_and_that_before_the_default(tunable, tmp_path, monkeypatch):
  monkeypatch.setattr(tuning, "version", lambda name: "0.10.2")
  assert tunable.parameters("case") == {"step": 1, "other": 7}
  measured(tmp_path, {"0.9.9": {"case": {"step": 9}}, "0.12.0.1": {"case": {"step": 12}}})
  assert tunable.parameters("case") == {"step": 12, "other": 7}  # 0.12 is newer than 0.9, whatever the letters say
  measured(tmp_path, {"0.10.2": {"case": {"step": 10}}, "0.12.0.1": {"case": {"step": 12}}})
  assert tunable.parameters("case")["step"] == 10
  assert tunable.parameters("another case")["step"] == 1
  assert tunable.parameters("case", "another device")["step"] == 1
  with tuning.trying("fake", "xla", {"step": 4}):
    with tuning.trying("fake", "xla", {"step": 5}):
      assert tunable.parameters("case")["step"] == 5
    assert tunable.parameters("case")["step"] == 4
  assert tunable.parameters("case")["step"] == 10


def test_the_command_keeps_the_fastest_and_tells_what_does_not_run(tunable, tmp_path, capsys):
  measured(tmp_path, {"0.1": {"case": {"step": 8}}})
  assert tune.main(["fake", "--rounds=3"]) == 0
  out = capsys.readouterr().out
  assert 'case: {"step": 3, "other": 7}: blocks of 3 do not fit' in out
  assert "←" in next(line for line in out.splitlines() if '"step": 2' in line)
  by_version = json.loads((tmp_path / "fake.json").read_text())["xla"][KIND]
  assert by_version == {"0.1": {"case": {"step": 8}}, jax.__version__: {"case": {"step": 2, "other": 7}}}
  assert tunable.parameters("case")["step"] == 2


def test_what_can_be_tuned_is_listed_and_what_cannot_is_refused(capsys):
  assert tune.main([]) == 0
  assert "attention --form=chunked: float32, 32" in capsys.readouterr().out
  assert tune.main(["atention"]) == 2
  assert "nothing of 'atention'" in capsys.readouterr().err


@pytest.mark.parametrize("op", sorted({op for op, _ in tuning.TUNABLES}))
def test_what_is_committed_names_what_there_is(op):
  """A form, a case or a parameter that was renamed would silently fall back to its default."""
  for form, by_kind in tuning.tuned(op).items():
    known = tuning.TUNABLES[op, form]
    for by_version in by_kind.values():
      for cases in by_version.values():
        assert cases.keys() <= known.cases.keys()
        assert all(parameters.keys() <= known.default.keys() for parameters in cases.values())


@pytest.mark.parametrize(("op", "form"), [key for key in tuning.TUNABLES if key[1] == "chunked"])
def test_the_cases_are_what_the_form_looks_up(op, form, monkeypatch):
  """Each case's own function asks for its own parameters."""
  asked = []
  known = tuning.TUNABLES[op, form]
  monkeypatch.setattr(type(known), "parameters", lambda self, case, kind=None: asked.append(case) or dict(self.default))
  for case, make in known.cases.items():
    run, arrays = make()
    asked.clear()
    jax.eval_shape(run, *arrays)
    assert set(asked) == {case}
