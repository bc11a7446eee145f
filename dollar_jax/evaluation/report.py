"""A report as one HTML file that needs nothing else: no network, no fonts.

    write_report(path, "Distillation", [
      Section("Results", [Text("..."), Table(rows), Figure(plot)]),
      Section("Clips", [ClipGrid(clips, names, prompts, fps=8)]),
    ])

Whatever is passed is escaped; it follows the reader's light or dark setting
and the width of a phone.
"""

import base64
import dataclasses
import hashlib
import html
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import matplotlib as mpl
import numpy as np
from matplotlib import figure as mpl_figure

from dollar_jax.evaluation import mosaic, page, plots
from dollar_jax.files import write_text

_CELL = 128  # pixels that a small clip is enlarged to
_INTERVAL = "_interval"


class Block(Protocol):
  """Part of a section."""

  def html(self) -> str:
    """Returns the block as HTML."""


@dataclasses.dataclass(frozen=True)
class Section:
  """A heading and what stands below it."""

  title: str
  blocks: Sequence[Block]


@dataclasses.dataclass(frozen=True)
class Text:
  """Paragraphs, an empty line between them."""

  body: str

  def html(self) -> str:
    """Returns the block as HTML."""
    return "".join(
      f"<p>{_escaped(paragraph)}</p>"
      for paragraph in re.split(r"\n\s*\n", self.body.strip())
    )


@dataclasses.dataclass(frozen=True)
class Code:
  """Commands or output, as they are."""

  body: str

  def html(self) -> str:
    """Returns the block as HTML."""
    return f"<pre><code>{_escaped(self.body.strip())}</code></pre>"


@dataclasses.dataclass(frozen=True)
class Folded:
  """A block that is seen once its title is clicked."""

  title: str
  block: Block

  def html(self) -> str:
    """Returns the block as HTML."""
    title = _escaped(self.title)
    return f"<details><summary>{title}</summary>{self.block.html()}</details>"


@dataclasses.dataclass(frozen=True)
class Highlights:
  """The few numbers to remember: (value, what it is) pairs."""

  items: Sequence[tuple[Any, str]]

  def html(self) -> str:
    """Returns the block as HTML."""
    return '<dl class="highlights">{}</dl>'.format(
      "".join(
        f"<div><dt>{_escaped(label)}</dt><dd>{_shown(value)}</dd></div>"
        for value, label in self.items
      )
    )


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of values.

  A column "x_interval" holding [low, high] is shown small beside "x".

  Attributes:
    rows: column → value (text, number, bool or None).
    columns: column → heading, in order (default: all columns of the rows).
    note: a line below it.
  """

  rows: Sequence[Mapping[str, Any]]
  columns: Mapping[str, str] | None = None
  note: str = ""

  def html(self) -> str:
    """Returns the block as HTML."""
    columns = self.columns
    if columns is None:
      keys = dict.fromkeys(key for row in self.rows for key in row)
      columns = {
        key: key.replace("_", " ")
        for key in keys
        if not key.endswith(_INTERVAL)
      }
    head = "".join(
      f'<th scope="col">{_escaped(title)}</th>' for title in columns.values()
    )
    cells = [_column(self.rows, key, i == 0) for i, key in enumerate(columns)]
    body = "".join(
      f"<tr>{''.join(row)}</tr>" for row in zip(*cells, strict=True)
    )
    return _figure(
      f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>",
      self.note,
    )


@dataclasses.dataclass(frozen=True)
class Figure:
  """A matplotlib figure, as SVG whose black takes the page's ink.

  Attributes:
    figure: the figure.
    title: what it shows, for those who cannot see it.
    note: a line below it.
  """

  figure: mpl_figure.Figure
  title: str
  note: str = ""

  def html(self) -> str:
    """Returns the block as HTML."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.title}):
      self.figure.savefig(
        file, format="svg", transparent=True, metadata=nothing
      )
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace("#000000", "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # the ids of one figure must not be those of another
    own = "f" + hashlib.sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{own}-", svg)
    # three quarters of its size is the smallest that can be read
    least = 72 * self.figure.get_figwidth()
    label = f'<svg role="img" aria-label="{_escaped(self.title)}"'
    label += f' style="min-width: {least:.0f}px"'
    return _figure(svg.replace("<svg", label, 1), self.note)


@dataclasses.dataclass(frozen=True)
class ClipGrid:
  """Clips side by side: a row for every method, a column for every prompt.

  Attributes:
    clips: uint8 [R, C, F, H, W, 3].
    rows: R names.
    columns: C prompts.
    fps: frames a second.
    note: a line below it.
  """

  clips: np.ndarray
  rows: Sequence[str]
  columns: Sequence[str]
  fps: float
  note: str = ""

  def html(self) -> str:
    """Returns the block as HTML."""
    clips = np.asarray(self.clips)
    plots.check_names(clips, self.rows, self.columns)
    scale = max(1, _CELL // clips.shape[3])
    frames = mosaic.mosaic(clips, scale)
    size_class = "clips" if scale > 1 else "clips large"
    kind, data = mosaic.encode(frames, self.fps)
    size = f'width="{frames.shape[2]}" height="{frames.shape[1]}"'
    if kind.startswith("video/"):
      still = _data_url("image/png", mosaic.png(frames[len(frames) // 2]))
      picture = (
        f"<video {size} autoplay loop muted playsinline "
        f'poster="{still}" src="{_data_url(kind, data)}"></video>'
      )
      button = '<button type="button" hidden>Pause</button>'
    else:
      picture = f'<img {size} alt="" src="{_data_url(kind, data)}">'
      button = ""
    heads = "".join(f"<span>{_escaped(c)}</span>" for c in self.columns)
    sides = "".join(f"<b>{_escaped(r)}</b>" for r in self.rows)
    style = f"--rows:{len(self.rows)};--columns:{len(self.columns)}"
    return _figure(
      f'<div class="{size_class}" style="{style}">'
      f"<i></i>{heads}{sides}{picture}</div>",
      self.note,
      button,
    )


def write_report(
  path: str | os.PathLike,
  title: str,
  sections: Sequence[Section],
  *,
  summary: str = "",
  footer: str = "",
) -> None:
  """Writes the page that `render` makes; it appears whole or not at all.

  Args:
    path: the HTML file.
    title: as there.
    sections: as there.
    summary: as there.
    footer: as there.

  Raises:
    ValueError: if a block holds what it cannot show.
    OSError: if the file cannot be written.
  """
  write_text(path, render(title, sections, summary=summary, footer=footer))


def render(
  title: str,
  sections: Sequence[Section],
  *,
  summary: str = "",
  footer: str = "",
) -> str:
  """Makes the page of a report.

  Args:
    title: heading of the page.
    sections: what is in it.
    summary: a line or two below the heading.
    footer: a line at the end, such as the command that made it.

  Raises:
    ValueError: if a block holds what it cannot show.
  """
  body = "".join(
    f"<section><h2>{_escaped(section.title)}</h2>"
    f"{''.join(block.html() for block in section.blocks)}</section>"
    for section in sections
  )
  return page.PAGE.format(
    title=_escaped(title),
    summary=_escaped(summary),
    body=body,
    footer=_escaped(footer),
    style=page.STYLE,
    script=page.SCRIPT,
  )


def _escaped(text: Any) -> str:
  return html.escape(str(text), quote=True)


def _figure(content: str, note: str, extra: str = "") -> str:
  caption = f"<figcaption>{extra}{_escaped(note)}</figcaption>"
  return (
    f'<figure><div class="wide" tabindex="0">{content}</div>'
    f"{caption if note or extra else ''}</figure>"
  )


def _column(
  rows: Sequence[Mapping[str, Any]], key: str, first: bool
) -> list[str]:
  """The cells of a column; its numbers have equally many decimals."""
  values = [row.get(key) for row in rows]
  sizes = [abs(v) for v in values if _is_real(v) and math.isfinite(v)]
  size = float(np.median(sizes)) if sizes else 0.0
  cells = []
  for row, value in zip(rows, values, strict=True):
    shown = _shown(value, size)
    interval = row.get(key + _INTERVAL)
    if interval is not None:
      low, high = (_shown(end, size) for end in interval)
      shown += f" <small>[{low}, {high}]</small>"
    if first:
      cells.append(f'<th scope="row">{shown}</th>')
    elif isinstance(value, str | bool):
      cells.append(f"<td>{shown}</td>")
    else:
      cells.append(f'<td class="number">{shown}</td>')
  return cells


def _is_real(value: Any) -> bool:
  return isinstance(value, float | np.floating)


def _shown(value: Any, size: float | None = None) -> str:
  """A value for people, escaped; a number as a usual one of `size` is."""
  if value is None:
    return "–"
  if isinstance(value, bool | np.bool_):
    return "yes" if value else "no"
  if isinstance(value, int | np.integer):
    return f"{value:,}"
  if not _is_real(value):
    return _escaped(value)
  if not math.isfinite(value):
    return "–" if math.isnan(value) else "∞" if value > 0 else "−∞"
  size = abs(value) if size is None else size
  if 0 < size < 0.001:
    return f"{value:.1e}".replace("-", "−")
  digits = sum(size <= bound for bound in (1, 10, 100))
  return f"{value:,.{digits}f}".replace("-", "−")


def _data_url(kind: str, data: bytes) -> str:
  return f"data:{kind};base64,{base64.b64encode(data).decode()}"
