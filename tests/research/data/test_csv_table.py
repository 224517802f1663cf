"""csv: and the encoding of tables: what columns become, what a target is, and which files are refused where."""

import textwrap

import numpy as np
import pytest

from research.data import open_splits, table
from research.data.source import Options, View
from research.errors import UserError


@pytest.fixture
def written(tmp_path):
  def write(text: str, name: str = "t.csv", **encoding) -> str:
    (tmp_path / name).write_text(textwrap.dedent(text), **encoding)
    return f"csv:{tmp_path / name}"

  return write


def _opened(uri: str, **options):
  return open_splits(uri, test_fraction=0, **options)


TABLE = """\
  size,colour,weight,kind
  1,red,10,cat
  2,blue,10,dog
  ,red,10,cat
  3,,10,emu
"""


def test_numbers_are_standardised_and_categories_one_hot(written):
  parts = _opened(written(TABLE))
  schema, x = parts.train.schema, parts.train.column("features")
  assert schema.feature_names == ("size", "colour=(missing)", "colour=blue", "colour=red", "weight")
  std = np.sqrt(2 / 3)  # of 1, 2, 3
  np.testing.assert_allclose(x[:, 0], [-1 / std, 0, 0, 1 / std], atol=1e-6)  # missing is the mean
  np.testing.assert_array_equal(x[:, 1:4], [[0, 0, 1], [0, 1, 0], [0, 0, 1], [1, 0, 0]])
  np.testing.assert_array_equal(x[:, 4], 0)  # constant, not NaN
  assert schema.class_names == ("cat", "dog", "emu")
  np.testing.assert_array_equal(parts.train.column("label"), [0, 1, 0, 2])
  assert parts.notes == (
    "the target is column 'kind', one of 3 classes",
    "column 'size': 1 missing cells of 4 become the training mean",
    "column 'colour': 1 missing cells of 4 become a category of their own",
  )


def test_statistics_and_categories_come_from_training_alone(written):
  rows = "".join(f"{i},{'abc'[i % 3]},{i % 2}\n" for i in range(30))
  parts = open_splits(written("x,c,label\n" + rows), test_fraction=0.5)
  number_N = parts.train.column("features")[:, 0].astype(np.float64)
  np.testing.assert_allclose([number_N.mean(), number_N.std()], [0, 1], atol=1e-6)

  raw = table.raw_source(
    "raw",
    [table.Column("x"), table.Column("c", ("a", "b", "c"))],
    np.array([[0.0], [2.0], [np.nan], [9.0]]),
    np.array([[0], [1], [2], [table.MISSING]]),
    np.array([0, 1, 0, 1]),
    ("no", "yes"),
    "print",
  )
  encode = table.fit([table.Column("x"), table.Column("c", ("a", "b", "c"))], View(raw, [0, 1]))
  # mean 1, std 1; c and missing were never seen in training.
  np.testing.assert_array_equal(encode(raw).column("features"), [[-1, 1, 0], [1, 0, 1], [0, 0, 0], [8, 0, 0]])


@pytest.mark.parametrize(
  ("column", "option", "names", "values"),
  [
    ("0,1,0,1", "", ("0", "1"), [0, 1, 0, 1]),  # few whole numbers
    ("5,10,5,-3", "", ("-3", "5", "10"), [1, 2, 1, 0]),  # sorted as numbers
    ("1.0,2.0,1.0,2.0", "", ("1", "2"), [0, 1, 0, 1]),
    ("0.5,1,2,3", "", (), [0.5, 1, 2, 3]),
    ("0,1,0,1", "y:number", (), [0, 1, 0, 1]),
    ("0.5,1,0.5,1", "y:class", ("0.5", "1.0"), [0, 1, 0, 1]),
    ("b,a,b,a", "y", ("a", "b"), [1, 0, 1, 0]),
    ("true,false,true,x", "", ("false", "true", "x"), [1, 0, 1, 2]),
  ],
)
def test_what_a_target_is(written, column, option, names, values):
  rows = "".join(f"{i},{value}\n" for i, value in enumerate(column.split(",")))
  train = _opened(written("x,y\n" + rows), target=option).train
  assert train.schema.class_names == names
  np.testing.assert_array_equal(train.column(train.schema.output), np.array(values, np.float32))


def test_more_than_twenty_whole_numbers_are_a_regression(written):
  for distinct, output in ((20, "label"), (21, "target")):
    rows = "".join(f"{i},{i % distinct}\n" for i in range(60))
    assert _opened(written("x,y\n" + rows)).train.schema.output == output


def test_which_column_is_the_target(written):
  uri = written("label,x,a:b\n0,1,5.5\n1,2,6.5\n")
  assert _opened(uri).train.schema.feature_names == ("x", "a:b")  # label, though it is not last
  assert _opened(uri, target="x").train.schema.feature_names == ("label", "a:b")
  assert _opened(uri, target="a:b").train.schema.output == "target"
  assert _opened(uri, target="a:b:class").train.schema.class_names == ("5.5", "6.5")
  assert _opened(written("a,b\n1,2.5\n2,3\n", "last.csv")).train.schema.feature_names == ("a",)


def test_delimiters_quotes_byte_order_marks_blank_lines_and_dropped_columns(written):
  plain = _opened(written('name,x,y\n"a, b",1,p\n\nc,2,q\n') + "?drop=name").train
  for text in (
    "name;x;y\n'a';1;p\nc;2;q\n",
    "name\tx\ty\na\t1\tp\nc\t2\tq\n",
    "\ufeffname, x, y\r\na, 1 ,p\r\nc,2, q\r\n",
    'name, x, y\na, 1, "p"\n"c, d", "2", q\n',
  ):
    other = _opened(written(text, "other.csv", encoding="utf-8") + "?drop=name").train
    assert other.schema == plain.schema
    np.testing.assert_array_equal(other.column("features"), plain.column("features"))


def test_huge_numbers_do_not_overflow(written):
  x = _opened(written("x,y\n1e300,a\n-1e300,b\n")).train.column("features")
  np.testing.assert_allclose(x[:, 0], [1, -1], rtol=1e-6)


@pytest.mark.parametrize("value", ["0", "0.1", "-1e-320"])  # numpy's std of fifty 0.1s is 1e-17, not 0
def test_a_constant_is_zero(written, value):
  rows = f"{value},a\n{value},b\n" * 25
  np.testing.assert_array_equal(_opened(written("x,y\n" + rows)).train.column("features"), 0)


def test_the_fingerprint_is_of_the_content_and_the_target(written):
  first = _opened(written(TABLE)).fingerprint
  assert _opened(written(TABLE, "again.csv")).fingerprint == first
  assert _opened(written(TABLE.replace("cat", "cot"), "more.csv")).fingerprint != first
  assert _opened(written(TABLE), target="weight").fingerprint != first


NUMBERS = "".join(f"{i},{i % 2}\n" for i in range(30))


@pytest.mark.parametrize(
  ("text", "options", "line"),
  [
    ("a,b\n1,2\n3\n", {}, r"t\.csv line 3 has 1 fields, the header has 2"),
    ("a,b\n1,2\n\n3,4,5\n", {}, r"line 4 has 3 fields, the header has 2"),
    ('a,b\n"1\n1",2\n3\n', {}, r"line 4 has 1 fields"),  # a quoted line break counts
    ("a,b\n1,2\n", {"target": "c"}, r"no target column 'c' \(known: a, b\)"),
    ("age,price\n1,2\n", {"target": "prise"}, r"no target column 'prise' \(did you mean price\?\)"),
    ("a,b\n1,2\n", {"target": "b:klass"}, "after the column comes :class or :number"),
    ("a,b\n1,x\n2,?\n", {}, "line 3: the target, column 'b', is missing"),
    ("a,b\n1,x\nnan,y\n", {}, "line 3: column 'a' is nan, which no number may be; a missing one is left empty"),
    ("a,b\n1,x\n-inf,y\n", {}, "line 3: column 'a' is -inf"),
    ("a,b\n1,2\n2,NaN\n", {}, "line 3: column 'b' is NaN"),
    ("a,b\n1,2\n2,x\n", {"target": "b:number"}, "line 3: 'x' in column 'b' is not a number; 1 of its 2 cells are"),
    ("a,b\n" + NUMBERS + "3o,1\n", {}, "line 32: '3o' in column 'a' is not a number; 30 of its 31 cells are"),
    ("a,c,b\n" + "".join(f"t{i},u{i},{i % 2}\n" for i in range(30)), {}, r"own in 'a', 'c'; .*\.csv\?drop=a,c$"),
    ("a,b\n" + "".join(f"1,t{i}\n" for i in range(30)), {}, "column 'b', has 30 different texts in 30"),
    ("", {}, "is empty; line 1 names the columns"),
    ("a,b\n", {}, "has a header but no rows"),
    ("1,2\n3,4\n", {}, "line 1 holds numbers; it must name the columns"),
    ("a,a\n3,4\n", {}, "line 1: column name 'a' is repeated"),
    ("a,\n3,4\n", {}, "line 1: column name '' is empty"),
    ("a,b\n1,0.5\n2,1e300\n", {}, "the target of example 1 is inf, not a finite number"),
    ("a\n3\n4\n", {}, "has no feature columns"),
    ('a,b\n"1,2\n', {}, "line 2: unexpected end of data"),
  ],
)
def test_broken_tables_are_one_line_that_says_where(written, text, options, line):
  with pytest.raises(UserError, match=line) as caught:
    _opened(written(text), **options)
  assert "\n" not in str(caught.value)


def test_other_encodings_and_options_are_refused(written):
  uri = written("a,b\né,1\n", encoding="latin-1")
  with pytest.raises(UserError, match="not UTF-8"):
    _opened(uri)
  with pytest.raises(UserError, match="unknown option 'dorp'"):
    _opened(uri + "?dorp=a")
  with pytest.raises(UserError, match=r"no column to drop 'colur' \(did you mean colour\?\)"):
    _opened(written(TABLE) + "?drop=colur")
  with pytest.raises(UserError, match="both dropped and the target"):
    _opened(written(TABLE) + "?drop=kind")


def test_other_kinds_refuse_a_target():
  for scheme in ("sklearn:iris", "sklearn:digits", "synthetic:line", "npz:x", "idx:x", "folder:x", "tfds:x"):
    with pytest.raises(UserError, match="is for csv sources"):
      open_splits(scheme, target="y")


def test_options_default_to_silence():
  assert Options().progress("a line") is None
