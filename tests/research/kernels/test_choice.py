"""Which form runs: every order of say, every platform, every refusal; and what is told of it."""

import concurrent.futures
import logging

import jax
import jax.numpy as jnp
import pytest

from research.errors import UserError
from research.kernels import choice
from research.kernels.choice import Form, Op

VALUE = {"xla": 1.0, "cpu": 2.0, "cuda_only": 3.0, "small": 4.0}


def constant(name):
  return lambda x, **options: jnp.full_like(x, VALUE[name])


def at_most_4(shapes, dtypes, platform, *, limit=4):
  return None if shapes[0][0] <= limit else f"{shapes[0][0]} rows are more than {limit}"


FORMS = {
  "xla": Form(constant("xla")),
  "cpu": Form(constant("cpu")),
  "cuda_only": Form(constant("cuda_only"), platforms=("cuda",)),
  "small": Form(constant("small"), limits=at_most_4),
}


def test_a_name_is_of_one_operation(op):
  with pytest.raises(ValueError, match="two operations fake"):
    Op("fake", FORMS, {})


def test_what_is_asked_for_in_vain_is_said(op):
  forms = {"fake": "small", "fake.gradient": "xla"}
  assert choice.without_effect("fake=cpu", forms) == []
  assert choice.without_effect("fake=small", forms) == ["--kernels=fake=small: fake.gradient cannot, and xla runs"]
  (line,) = choice.without_effect("fake=cpu,attention=xla", forms)
  assert line == "--kernels=attention=xla has no effect on a training step: there is no attention in it"


@pytest.fixture
def op():
  """An operation whose value tells its form."""
  made = Op("fake", FORMS, {"cpu": ("small", "cpu"), "cuda": ("cuda_only",)})
  Op("fake.gradient", {"xla": FORMS["xla"], "cpu": FORMS["cpu"]}, {})
  yield made
  del choice.OPS["fake"], choice.OPS["fake.gradient"]


def form_of(value):
  return {number: name for name, number in VALUE.items()}[float(value.ravel()[0])]


def test_the_argument_goes_before_the_context_before_the_flag_before_the_table(op):
  x = jnp.zeros(3)
  assert form_of(op(x)) == "small"
  with choice.configured("fake=cpu"):
    assert form_of(op(x)) == "cpu"
    with choice.use(fake="xla"):
      assert form_of(op(x)) == "xla"
      assert form_of(op(x, form="small")) == "small"
    assert form_of(op(x)) == "cpu"
  assert form_of(op(x)) == "small"


def test_a_form_gives_more_only_where_no_other_can_be_in_the_program(op):
  """Branches that a platform decides between have to give the same."""
  forms = {**FORMS, "xla": Form(FORMS["xla"].run, alone=lambda x: (constant("xla")(x), "more"))}
  x = jnp.zeros(3)
  del choice.OPS["fake"]
  divided = Op("fake", forms, {"cuda": ("cuda_only",)})
  assert form_of(divided(x)) == "xla"
  assert divided(x, form="xla")[1] == "more"
  del choice.OPS["fake"]
  assert Op("fake", forms, {})(x)[1] == "more"


ROWS = {"cpu": "small", "cuda": "cuda_only", "tpu": "xla", "rocm": "xla"}


@pytest.mark.parametrize(("platform", "form"), ROWS.items())
def test_each_platform_has_its_own_row_of_the_table_when_a_program_is_lowered(op, platform, form):
  text = jax.jit(op).trace(jnp.zeros(3)).lower(lowering_platforms=(platform,)).as_text()
  assert {name for name, value in VALUE.items() if f"dense<{value:e}".replace("e+00", "") in text} == {form}


def test_a_backend_that_no_table_knows_has_xlas_form(op, monkeypatch):
  monkeypatch.setattr(choice.jax, "default_backend", lambda: "another")
  with choice.recording() as found:
    jax.eval_shape(op, jnp.zeros(3))
  assert found == {"fake": "xla"}


def test_a_form_of_the_table_that_cannot_run_is_passed_over_and_logged_once(op, caplog):
  with caplog.at_level(logging.WARNING, logger=choice.__name__):
    assert [form_of(op(jnp.zeros(rows))) for rows in (5, 5, 3)] == ["cpu", "cpu", "small"]
    assert [record.getMessage() for record in caplog.records] == [
      "kernels: fake does not run as small: 5 rows are more than 4"
    ]
    assert form_of(op(jnp.zeros(5), limit=9)) == "small"  # an option is part of the question
  assert len(caplog.records) == 1


def test_what_is_passed_over_can_be_noted_instead_of_logged(op, caplog):
  with caplog.at_level(logging.WARNING, logger=choice.__name__):
    op(jnp.zeros(7))
    with choice.noting() as notes:
      op(jnp.zeros(7))
      op(jnp.zeros(6))
    assert notes == ["fake does not run as small: 7 rows are more than 4",
                     "fake does not run as small: 6 rows are more than 4"]  # fmt: skip
    op(jnp.zeros(7))
    op(jnp.zeros(6))
  assert [record.getMessage().removeprefix("kernels: ") for record in caplog.records] == notes


def test_a_form_asked_for_by_name_never_falls_back(op):
  for ask in (lambda x: op(x, form="small"), lambda x: _used(op, x, fake="small")):
    with pytest.raises(UserError, match="fake cannot run as small: 5 rows are more than 4"):
      ask(jnp.zeros(5))
  with pytest.raises(UserError, match="cannot run as cuda_only: it runs on cuda, and this is cpu"):
    op(jnp.zeros(3), form="cuda_only")
  with pytest.raises(UserError, match=r"fake has no form 'cpv' \(did you mean cpu\?\)"):
    op(jnp.zeros(3), form="cpv")


def test_a_form_that_this_machine_cannot_run_is_refused_before_anything_is_traced(op):
  told = "--kernels=fake=cuda_only: fake cannot run as cuda_only: it runs on cuda, and this is cpu"
  with pytest.raises(UserError, match=told), choice.configured("fake=cuda_only"):
    pass
  assert op.asked is None


def _used(op, x, **forms):
  with choice.use(**forms):
    return op(x)


def test_a_jitted_function_is_traced_anew_in_another_context(op):
  jitted = jax.jit(lambda x: op(x))
  x = jnp.zeros(3)
  assert form_of(jitted(x)) == "small"
  with choice.use(fake="xla"):
    assert form_of(jitted(x)) == "xla"
    with choice.use(**{"fake.gradient": "cpu"}):  # what was said before still holds
      assert form_of(jitted(x)) == "xla"
  assert form_of(jitted(x)) == "small"


def test_the_flag_holds_in_every_thread_and_the_context_in_its_own(op):
  with choice.configured("fake=cpu"), choice.use(fake="xla"), concurrent.futures.ThreadPoolExecutor(1) as pool:
    assert form_of(pool.submit(op, jnp.zeros(3)).result()) == "cpu"
    assert form_of(pool.submit(choice.carried(op), jnp.zeros(3)).result()) == "xla"


def test_what_is_traced_is_recorded(op):
  with choice.recording() as outer:
    jax.eval_shape(op, jnp.zeros(3))
    with choice.recording() as inner, choice.use(fake="xla"):
      jax.eval_shape(op, jnp.zeros(3))
  assert inner == {"fake": "xla"}
  assert outer == {"fake": "small+xla"}
  op(jnp.zeros(3))
  assert outer == {"fake": "small+xla"}
  assert choice.say({"b": "xla", "c": "cpu", "a": "xla"}) == "cpu: c; xla: a, b"


def test_a_name_means_all_its_parts_and_a_part_goes_before(op):
  assert choice.parse("") == {}
  assert choice.parse("fake=xla") == {"fake": "xla", "fake.gradient": "xla"}
  assert choice.parse("fake=small") == {"fake": "small"}  # the gradient has no such form
  assert choice.parse("fake.gradient=cpu, fake=xla") == {"fake": "xla", "fake.gradient": "cpu"}


@pytest.mark.parametrize(
  ("written", "message"),
  [
    ("fake", "is no list of OPERATION=FORM"),
    ("fake=xla,fake=cpu", "each operation once"),
    ("fale=xla", r"no operation 'fale' \(did you mean fake\?\)"),
    ("fake.gradient=small", r"fake.gradient has no form 'small'"),
    ("fake=", "has no form ''"),
  ],
)
def test_what_is_not_there_is_said(op, written, message):
  with pytest.raises(UserError, match=message):
    choice.parse(written)


def test_a_table_of_forms_that_there_are_not_is_a_mistake_of_ours():
  for forms, table in (({"cpu": FORMS["cpu"]}, {}), (FORMS, {"cpu": ("gpu",)}), (FORMS, {"gpu": ("cpu",)})):
    with pytest.raises(ValueError, match="kernels: fake"):
      Op("fake", forms, table)
  assert "fake" not in choice.OPS


@pytest.mark.parametrize("name", sorted(choice.OPS))
def test_every_row_of_every_table_names_what_runs_there(name):
  op = choice.OPS[name]
  for platform, forms in op.table.items():
    for form in forms:
      assert not op.forms[form].platforms or platform in op.forms[form].platforms
  assert not op.forms["xla"].platforms
  assert op.forms["xla"].limits is None
