"""Tables in Markdown."""

from ..markdown import one_line


def markdown(rows: list[dict]) -> str:
    """A table of dicts with the same keys; empty without rows."""
    if not rows:
        return ""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(each.values() for each in rows)]
    return "".join(f"| {' | '.join(map(_cell, cells))} |\n" for cells in lines)


def _cell(value) -> str:
    return one_line(value).replace("|", "\\|")
