"""Tables in Markdown."""


def markdown(rows: list[dict]) -> str:
    """A table of dicts with the same keys; empty without rows."""
    if not rows:
        return ""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(each.values() for each in rows)]
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)
