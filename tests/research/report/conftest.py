"""A small finished run that never trained, for everything that reads run directories."""

import json

import numpy as np
import pytest

from research.report import Report, pictures

HOSTILE = "<script>alert('$x')</script>"


@pytest.fixture
def make_run(tmp_path, monkeypatch):
  """Makes tmp_path/name: four steps, validation at steps 2 and 4. `draw` makes the PNG files too (a second)."""

  def make(name="one", learning_rate="0.1", draw=False, **finish):
    path = tmp_path / name
    path.mkdir()
    (path / "run.flags").write_text(
      f"# experiment: mlp\n--workdir={path}\n--optim.learning_rate={learning_rate}\n--seed=0\n--note=a=b <i>\n"
    )
    environment = {"command": "python -m experiments.mlp --config=x", "defaults": {"seed": "0"}, "parameters": 1234567}
    environment["defaults"]["optim.learning_rate"] = "0.1"
    (path / "run.json").write_text(json.dumps(environment))
    with Report(path, header={"data": "x"}, total_steps=4, batch_size=2, quiet=True) as report:
      for step in range(1, 5):
        report.train(step, {"train/loss": 1 / step, "train/learning_rate": 0.1})
        if step % 2 == 0:
          report.evaluation(step, {"validation/accuracy": 0.75 if step == 2 else 0.5, "validation/loss": 2 / step})
      report.sample(4, np.full((3, 4, 4, 1), 200, np.uint8))
      with monkeypatch.context() as patch:
        if not draw:
          patch.setattr(pictures, "write_all", lambda run, folder: [])
        report.finish({"step": 4, "metrics": {"test/loss": 0.5, "test/accuracy": 0.625}, "best": {}}, **finish)
    return path

  return make


@pytest.fixture
def classified():
  """`finish` arguments of a classifier: eight examples, three of them wrong; the 6th is the worst mistake."""
  rows = {
    "label": np.array([0, 0, 0, 1, 1, 1, 2, 2], np.int32),
    "prediction": np.array([0, 0, 1, 1, 1, 2, 2, 0], np.int32),
    "loss": np.array([0.1, 0.1, 1.5, 0.1, 0.1, 4.0, 0.1, 2.0], np.float32),
    "probability": np.array([0.9, 0.9, 0.7, 0.9, 0.9, 0.98, 0.9, 0.8], np.float32),
    "index": np.arange(100, 108),
  }
  names = ("cat", HOSTILE, "$\\frac{1}{$")


  def images(indices):
    """Grey pictures, each as bright as its index tells."""
    return np.full((len(indices), 4, 4, 1), 10 * (indices - 100)[:, None, None, None], np.uint8)

  return {"rows": rows, "class_names": names, "images": images}
