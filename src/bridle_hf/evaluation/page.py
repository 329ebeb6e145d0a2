"""Parts of the report page: the macros of page.html, which escapes whatever is put in, and figures."""

from pathlib import Path

import jinja2

from ..files import write_whole
from . import plots


def _cell(value):
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    undefined=jinja2.StrictUndefined,
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters["cell"] = _cell
_macros = _environment.get_template("page.html").module


def write_page(path, title, subtitle, parts):
    """Write a self-contained HTML page: no scripts, no fonts, nothing to download.

    Args:
        path: of the HTML file.
        title, subtitle (`str`): plain text.
        parts: of the page's body, in order, made by the functions below; plain text is escaped.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, _macros.page(title, subtitle, parts))


def heading(text, note=""):
    """A section's heading and a sentence below it."""
    return _macros.heading(text, note)


def warning(text):
    """A sentence that is not to be overlooked."""
    return _macros.warning(text)


def figure(name, drawings, caption, layout="panels"):
    """Matplotlib figures with one caption: side by side where there is room ("panels"), or scrolling ("wide")."""
    svgs = [plots.to_svg(drawing, f"{name}-{number}", caption) for number, drawing in enumerate(drawings)]
    return _macros.figure(svgs, caption, layout)


def table(columns, rows):
    """A table of cells (text, or numbers shown with four significant digits; None is a dash)."""
    return _macros.table(columns, rows)


def tiles(values):
    """Single figures side by side: name -> text."""
    return _macros.tiles(values)


def player(sound, label):
    """An `<audio>` element that holds its sound, a wav file in base64, and what it is."""
    return _macros.player(sound, label)


def players(title, found):
    """Several of these below a title."""
    return _macros.players(title, found)
