"""The part of the page that looks at single predictions: confusion matrix, per-class table, worst mistakes, scatter.

It draws what predictions.npz holds and asks neither the model nor the data.
"""

import base64
import html

import numpy as np

from research.report import forecasts, samples, svg, tables
from research.report.measures import say, say_number
from research.report.predictions import Predictions

_LARGEST_MATRIX = 24  # classes; beyond that only the pairs that are confused most are told
_SCATTER_POINTS = 2000


def sections(predictions: Predictions | None) -> str:
  """HTML for a classifier's, a forecaster's or a regression's predictions; "" for none of them."""
  if not predictions:
    return ""
  if "truth" in predictions:
    return forecasts.section(predictions)
  if "label" in predictions:
    return _classifier(predictions)
  return _regression(predictions) if "target" in predictions else ""


def data_uri(picture: bytes, kind: str = "image/png") -> str:
  """The address of a picture that the page carries in itself."""
  return f"data:{kind};base64,{base64.b64encode(picture).decode()}"


def _classifier(predictions: Predictions) -> str:
  names = predictions["class_names"].tolist()
  counts = tables.confusion_matrix(predictions["label"], predictions["prediction"], len(names))
  wrong = int(counts.sum() - np.trace(counts))
  parts = [
    "<h2>Right and wrong</h2>",
    f'<p class="lead">{counts.sum():,} examples, {wrong:,} of them classified wrongly. '
    "Each row is a true class, each column what the model said.</p>",
    '<div class="two">' if len(names) <= 12 else "",
  ]
  if len(names) <= _LARGEST_MATRIX:
    parts.append(f'<div class="card scroll">{_confusion(counts, names)}</div>')
  parts.append(f'<div class="card scroll">{_pairs(counts, names)}{_per_class(counts, names)}</div>')
  parts.append("</div>" if len(names) <= 12 else "")
  parts.append(_mistakes(predictions, names))
  return "".join(parts)


def _confusion(counts: np.ndarray, names: list[str]) -> str:
  cell = 84 if len(names) <= 5 else 54 if len(names) <= 8 else 38  # pixels
  long = " long" if 8 * max(map(len, names)) > cell else ""
  head = "".join(f"<th><span>{html.escape(name)}</span></th>" for name in names)
  rows = []
  for true, name in enumerate(names):
    total = max(1, int(counts[true].sum()))
    cells = "".join(_cell(int(counts[true, said]), total, true == said) for said in range(len(names)))
    rows.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
  return (f'<table class="confusion{long}" style="--cell:{cell}px"><thead><tr><th></th>{head}</tr></thead>'
          f"<tbody>{''.join(rows)}</tbody></table>")


def _cell(count: int, total: int, right: bool) -> str:
  if not count:
    return '<td class="none">·</td>'
  share = count / total
  # Mistakes are few where a model is any good: a root keeps them visible beside the diagonal.
  strength = share if right else min(1.0, 0.15 + 1.3 * share**0.5)
  classes = " ".join(["right" if right else "wrong", *(["deep"] if strength > 0.6 else [])])
  return f'<td class="{classes}" style="--v:{strength:.2f}" title="{100 * share:.1f}% of the row">{count:,}</td>'


def _pairs(counts: np.ndarray, names: list[str]) -> str:
  """The pairs that are confused most often, where there are more classes than a matrix can show."""
  if len(names) <= _LARGEST_MATRIX:
    return ""
  wrong = counts - np.diag(np.diag(counts))
  rows = []
  for flat in np.argsort(-wrong, axis=None, kind="stable")[:12]:
    true, said = np.unravel_index(flat, wrong.shape)
    if wrong[true, said]:
      rows.append(f"<tr><td>{html.escape(names[true])} → <span class=said>{html.escape(names[said])}</span></td>"
                  f'<td class="number">{wrong[true, said]:,} of {counts[true].sum():,}</td></tr>')
  return f"<h3>Most often confused</h3><table>{''.join(rows)}</table><br>" if rows else ""


def _per_class(counts: np.ndarray, names: list[str]) -> str:
  rows = []
  for place, row in enumerate(tables.per_class(counts, names)):
    average = place >= len(names)
    kind = f' class="average{" first" if place == len(names) else ""}"' if average else ""
    bar = "" if average else f'<span class="bar"><i style="width:{100 * row.f1:.1f}%"></i></span>'
    rows.append(f"<tr{kind}><td>{html.escape(row.name)}</td>" + "".join(
      f'<td class="number">{text}</td>'
      for text in (f"{row.precision:.3f}", f"{row.recall:.3f}", f"{bar}{row.f1:.3f}", f"{row.support:,}")
    ) + "</tr>")
  head = '<th>class</th>' + "".join(f'<th class="number">{n}</th>' for n in ("precision", "recall", "F1", "examples"))
  return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _mistakes(predictions: Predictions, names: list[str]) -> str:
  worst = predictions["worst"]
  if not worst.size:
    return ""
  lead = (
    "The wrong answers with the largest loss: the true class, <span class=said>what the model said</span>, and how "
    "sure it was."
  )
  pictures = _pictures(predictions)
  entries = []
  for place, row in enumerate(worst):
    true, said = (html.escape(names[predictions[column][row]]) for column in ("label", "prediction"))
    sure = f"{100 * float(predictions['probability'][row]):.1f}%" if "probability" in predictions else ""
    index = f"#{int(predictions['index'][row])}" if "index" in predictions else f"#{row}"
    if pictures:
      entries.append(
        f'<figure><img src="{pictures[place]}" alt="example {index}"><figcaption>{true} → '
        f"<span class=said>{said}</span><br><small>{sure} · {index}</small></figcaption></figure>"
      )
    else:
      loss = say_number(float(predictions["loss"][row]))
      entries.append(f"<tr><td>{index}</td><td>{true}</td><td class=said>{said}</td>"
                     f'<td class="number">{sure}</td><td class="number">{loss}</td></tr>')
  if pictures:
    body = f'<div class="mistakes">{"".join(entries)}</div>'
  else:
    head = "<th>example</th><th>true</th><th>said</th><th class=number>sure</th><th class=number>loss</th>"
    body = f'<div class="card scroll"><table><tr>{head}</tr>{"".join(entries[:12])}</table></div>'
  return f'<h2>Worst mistakes</h2><p class="lead">{lead}</p>{body}'


def _pictures(predictions: Predictions) -> list[str]:
  """Data addresses of the worst mistakes' pictures; [] where there are none, or nothing here can write PNG files."""
  try:
    return [data_uri(samples.png(image_HWC)) for image_HWC in predictions.get("worst_images", ())]
  except ImportError:
    return []


def _regression(predictions: Predictions) -> str:
  target, prediction = predictions["target"], predictions["prediction"]
  # Evenly spaced places: every part of the split is seen, whatever its order.
  shown = np.unique(np.linspace(0, len(target) - 1, min(len(target), _SCATTER_POINTS)).astype(int))
  rows = "".join(f'<tr><td>{name}</td><td class="number">{say(name, value)}</td></tr>'
                 for name, value in tables.regression(target, prediction).items())
  count = f"{len(target):,} examples" + (f", {len(shown):,} of them drawn" if len(shown) < len(target) else "")
  return (f'<h2>Predictions</h2><p class="lead">{count}; on the dashed line a prediction is exact.</p>'
          f'<div class="two"><div class="card"><h3>predicted over true</h3>'
          f"{svg.scatter(target[shown].tolist(), prediction[shown].tolist())}</div>"
          f'<div class="card"><table>{rows}</table></div></div>')
