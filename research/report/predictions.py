"""predictions.npz: each example of the final split, what was true and what was said, and the worst mistakes' pictures.

It holds plain arrays only (loaded without pickle), so that the page can be drawn again without the model or the data.
"""

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from research.errors import UserError
from research.report.atomic import write_atomically

WORST = 24
_LARGEST_SIDE = 160  # pixels; larger pictures are thinned out

Predictions = dict[str, np.ndarray]


def collect(
  rows: Mapping[str, np.ndarray],
  class_names: Sequence[str] = (),
  images: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Predictions:
  """The rows of a split, with the class names and the worst mistakes' places and pictures.

  Args:
    rows: values_N; a classifier's "label", "prediction" (integers), "loss", "probability" (of the prediction) and
      "index"; a regression's "target", "prediction", "loss"; a forecaster's "truth", "forecast" and "seasonal_naive"
      (N, H), "naive", each example one row later than the one before.
    class_names: of the classes 0, 1, …; their numbers if empty.
    images: indices_M → images_MHWC uint8.
  """
  predictions = {name: np.asarray(values) for name, values in rows.items()}
  if "label" not in predictions:
    return predictions
  label, prediction = predictions["label"], predictions["prediction"]
  count = max([len(class_names), *(1 + int(values.max(initial=-1)) for values in (label, prediction))])
  names = [*map(str, class_names), *map(str, range(len(class_names), count))]
  predictions["class_names"] = np.array(names, dtype=str)
  predictions["worst"] = worst_mistakes(predictions)
  if images is not None and "index" in predictions and predictions["worst"].size:
    images_MHWC = np.asarray(images(predictions["index"][predictions["worst"]]))
    stride = -(-max(images_MHWC.shape[1:3]) // _LARGEST_SIDE)
    channels = slice(None) if images_MHWC.shape[-1] in (1, 3) else slice(1)  # what is no colour is shown in grey
    predictions["worst_images"] = images_MHWC[:, ::stride, ::stride, channels]
  return predictions


def worst_mistakes(predictions: Predictions) -> np.ndarray:
  """Places of the wrongly classified examples with the largest loss, the worst first (NaN is worst of all)."""
  wrong = np.flatnonzero(predictions["label"] != predictions["prediction"])
  loss = np.nan_to_num(predictions["loss"][wrong].astype(np.float64), nan=np.inf)
  return wrong[np.argsort(-loss, kind="stable")][:WORST]


def write(path: Path, predictions: Predictions) -> None:
  """Atomically writes the arrays. Raises UserError if the directory cannot be written."""
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **predictions)
  write_atomically(path, buffer.getvalue())


def read(path: Path) -> Predictions | None:
  """The arrays of `path`, None if it does not exist. Raises UserError for a damaged file, or one with pickles in it."""
  if not path.exists():
    return None
  try:
    # From memory: numpy leaves the file open where it is damaged.
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
      return {name: file[name] for name in file.files}
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(f"report: {path} is damaged ({error}); delete it to do without") from error
