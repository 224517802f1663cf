"""sklearn:NAME, the small real sets that ship inside scikit-learn, read from its data files.

scikit-learn itself is not imported: that takes longer than compiling a small model. A test holds these against it.
"""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np

from research import nearest
from research.data import check, fingerprint, table
from research.data.source import ArraySource, Dataset, Feature, Options, Schema
from research.errors import UserError

_CELL = ("radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity", "concave points",
         "symmetry", "fractal dimension")  # fmt: skip
_COLUMNS = {
  "iris": ("sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)"),
  "wine": ("alcohol", "malic_acid", "ash", "alcalinity_of_ash", "magnesium", "total_phenols", "flavanoids",
           "nonflavanoid_phenols", "proanthocyanins", "color_intensity", "hue", "od280/od315_of_diluted_wines",
           "proline"),
  "breast_cancer": (*(f"mean {x}" for x in _CELL), *(f"{x} error" for x in _CELL), *(f"worst {x}" for x in _CELL)),
  "diabetes": ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"),
}  # fmt: skip
_FILES = {"iris": "iris.csv", "wine": "wine_data.csv", "breast_cancer": "breast_cancer.csv"}
_PIXEL_SCALE = 15  # digits are counts 0..16; 0..240 keeps them exact, and visible as a picture


def open_dataset(rest: str, options: Options) -> Dataset:
  """digits: "image" (8, 8, 1) uint8, the counts 0..16 times 15. iris, wine, breast_cancer: "features", standardised.
  diabetes: raw columns (not sklearn's scaled ones, which look at all rows), standardised; a regression."""
  if rest == "digits":
    return _digits()
  if rest == "diabetes":
    features_ND, target_N = (_numbers(f"diabetes_{part}.csv.gz", None) for part in ("data_raw", "target"))
    return table.numeric_dataset("sklearn:diabetes", _COLUMNS[rest], {"all": (features_ND, target_N)}, ())
  if rest not in _COLUMNS:
    raise UserError(f"data: no dataset 'sklearn:{rest}'{nearest.hint(rest, [*_COLUMNS, 'digits'])}")
  with _data_file(_FILES[rest]).open() as stream:
    class_names = tuple(stream.readline().strip().split(",")[2:])
  rows_ND = _numbers(_FILES[rest], ",", skiprows=1)
  if rest == "wine":
    class_names = ("class_0", "class_1", "class_2")
  parts = {"all": (rows_ND[:, :-1], rows_ND[:, -1].astype(np.int64))}
  return table.numeric_dataset(f"sklearn:{rest}", _COLUMNS[rest], parts, class_names)


def _digits() -> Dataset:
  rows_ND = _numbers("digits.csv.gz", ",")
  image_NHWC = (rows_ND[:, :-1] * _PIXEL_SCALE).astype(np.uint8).reshape(-1, 8, 8, 1)
  arrays = {"image": image_NHWC, "label": rows_ND[:, -1].astype(np.int32)}
  schema = Schema({"image": Feature((8, 8, 1), "uint8"), "label": Feature((), "int32")}, tuple("0123456789"))
  source = ArraySource("sklearn:digits", schema, arrays, fingerprint.arrays(arrays))
  check.outputs(source)
  return Dataset({"all": source})


def _numbers(file: str, delimiter: str | None, skiprows: int = 0) -> np.ndarray:
  path = _data_file(file)
  with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as stream:
    return np.loadtxt(stream, delimiter=delimiter, skiprows=skiprows)


def _data_file(file: str) -> Path:
  found = importlib.util.find_spec("sklearn")  # finds the package without importing it
  if found is None or not found.submodule_search_locations:
    raise UserError("data: sklearn: sources need scikit-learn: pip install scikit-learn")
  path = Path(found.submodule_search_locations[0]) / "datasets" / "data" / file
  if not path.is_file():
    raise UserError(f"data: this scikit-learn has no {path}; install version 1.9, whose files are known")
  return path
