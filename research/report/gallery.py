"""The part of the page that shows what the model makes: the newest samples of each kind, the film, and the way there.

It shows the files under samples/ as they are, and leaves out what would make the page too large to be sent around.
"""

import html
from pathlib import Path

from research.report import film, findings, samples
from research.report.run_directory import Run

_MOST_EARLIER = 6  # pictures of the main kind beside the newest
_MOST_BYTES = 4_000_000  # of all samples but the film, which has a limit of its own
_PIXEL = 15  # a true pixel of an enlarged picture is drawn no larger than this many of the page's
_WIDE_ENOUGH = 320  # of the page's pixels: so wide a picture may always be
_STRETCH = 1.3  # what was not enlarged is drawn at most so much larger: it would only blur


def section(run: Run) -> str:
  """HTML for a run's samples; "" where there are none."""
  if not run.samples:
    return ""
  room = _Room(_MOST_BYTES)
  main = run.samples.get(samples.MAIN, [])
  name = _heading(samples.title(main[-1])) if main else "Samples"
  stage, earlier, cards = "", "", []
  if len(main) > 1:
    shown = [_figure(run, main[-1], room, "the newest"), _film(run, main)]
    if len(main) == 2:  # too few for a film, and for a row of earlier ones
      shown.append(_figure(run, main[0], room, "the first"))
    stage = f'<div class="stage">{"".join(shown)}</div>'
  elif main and len(run.samples) > 1:
    cards.append(_card(name, _figure(run, main[-1], room)))
  elif main:
    stage = f'<div class="stage">{_figure(run, main[-1], room)}</div>'
  cards += [
    _card(_heading(kind), _figure(run, paths[-1], room)) for kind, paths in run.samples.items() if kind != samples.MAIN
  ]
  if len(main) > 2:
    entries = "".join(_figure(run, path, room, small=True) for path in reversed(_spread(main[:-1])))
    earlier = f'<h3 class="earlier">Earlier</h3><div class="samples">{entries}</div>' if entries else ""
  three = " three" if len(cards) % 3 == 0 else ""
  kinds = f'<div class="kinds{three}">{"".join(cards)}</div>' if cards else ""
  return f"<h2>{name}</h2>{stage}{kinds}{earlier}"


def _card(heading: str, body: str) -> str:
  return f'<div class="card"><h3>{heading}</h3>{body}</div>'


class _Room:
  """How many bytes of pictures still fit into the page."""

  def __init__(self, left: int):
    self._left = left

  def takes(self, size: int) -> bool:
    fits = size <= self._left
    self._left -= size if fits else 0
    return fits


def _heading(name: str) -> str:
  return html.escape(name.replace("_", " ").capitalize())


def _spread(paths: list[Path]) -> list[Path]:
  """A few of the files, evenly over the run, the first and the last of them too."""
  last = len(paths) - 1
  places = sorted({round(index * last / (_MOST_EARLIER - 1)) for index in range(_MOST_EARLIER)})
  return [paths[place] for place in places]


def _figure(run: Run, path: Path, room: _Room, more: str = "", small: bool = False) -> str:
  """One sample under its step; where there is no room for it its path, or nothing if it is a small one."""
  step = f"step {int(path.stem):,}"
  if not room.takes(path.stat().st_size):
    name = html.escape(str(path.relative_to(run.path)))
    return "" if small else f"<figure><pre>{name} is too large for this page</pre></figure>"
  if path.suffix == ".png":
    body = f'<img src="{findings.data_uri(path.read_bytes())}" alt="samples at {step}"{"" if small else _drawn(path)}>'
  else:
    body = f"<pre>{html.escape(path.read_text('utf-8', errors='replace'))}</pre>"
  caption = f"{step} <small>{more}</small>" if more else step
  return f"<figure>{body}<figcaption>{caption}</figcaption></figure>"


def _drawn(path: Path) -> str:
  """Attributes of a picture that has the page's width for itself: how much of it is enough, and if it is smoothed."""
  try:
    image = film.pixels(path)
  except (ImportError, OSError, SyntaxError):
    return ""
  factor, width = film.enlargement(image), image.shape[1]
  if factor == 1:
    return f' class="smooth" style="max-width:{round(_STRETCH * width)}px"'
  return f' style="max-width:{max(_WIDE_ENOUGH, _PIXEL * width // factor)}px"'


def _film(run: Run, main: list[Path]) -> str:
  path = run.path / film.PATH
  if not path.is_file():
    return ""
  source = findings.data_uri(path.read_bytes(), "image/webp")
  steps = f"step {int(main[0].stem):,} to {int(main[-1].stem):,}"
  return (f'<figure><img src="{source}" alt="the samples from {steps}, as a film">'
          f"<figcaption>{steps} <small>the way there</small></figcaption></figure>")
