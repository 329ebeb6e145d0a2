"""Draws docs/phases.svg, the three phases of two iterations, for light and dark pages.

python docs/draw_phases.py
"""

from pathlib import Path

STYLE = """
  text { font: 15px system-ui, sans-serif; fill: #1f2328 }
  .small { font-size: 13px } .title { font-weight: 600 }
  .learns { fill: #ddf4ff; stroke: #0969da } .frozen { fill: #f6f8fa; stroke: #8c959f; stroke-dasharray: 4 3 }
  .arrow { stroke: #57606a; fill: none; marker-end: url(#head) } .head { fill: #57606a }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .learns { fill: #0c2d6b; stroke: #58a6ff } .frozen { fill: #161b22; stroke: #8b949e }
    .arrow { stroke: #9198a1 } .head { fill: #9198a1 }
  }
"""
BOX, GAP, MARGIN, HEIGHT = 134, 62, 14, 46  # of the two boxes of a phase
PANEL = 2 * BOX + GAP + 2 * MARGIN  # width of a phase
# title, the two boxes (name, whether it learns), what goes from the first to the second, and what is compared
PHASES = [
    (
        "1  encoder, iteration 1",
        ("random projection", False),
        ("encoder", True),
        "codes",
        "predicts codes of masked patches",
    ),
    ("2  tokenizer", ("encoder", False), ("tokenizer", True), "features", "its codes rebuild the features"),
    ("3  encoder, iteration 2", ("tokenizer", False), ("encoder", True), "codes", "predicts codes of masked patches"),
]


def box(x: int, y: int, name: str, learns: bool) -> str:
    kind = "learns" if learns else "frozen"
    rectangle = f'<rect class="{kind}" x="{x}" y="{y}" width="{BOX}" height="{HEIGHT}" rx="8"/>'
    return (
        rectangle + f'<text class="small" x="{x + BOX / 2}" y="{y + HEIGHT / 2 + 4}" text-anchor="middle">{name}</text>'
    )


def panel(number: int, title: str, left: tuple, right: tuple, passed: str, learned: str) -> str:
    x, y = number * PANEL + MARGIN, 52
    start, end, middle = x + BOX + 4, x + BOX + GAP - 4, y + HEIGHT / 2
    return "\n".join(
        [
            f'<text class="title" x="{x}" y="32">{title}</text>',
            box(x, y, *left),
            box(x + BOX + GAP, y, *right),
            f'<path class="arrow" d="M{start} {middle} H{end - 4}"/>',
            f'<text class="small" x="{(start + end) / 2}" y="{middle - 8}" text-anchor="middle">{passed}</text>',
            f'<text class="small" x="{x}" y="{y + HEIGHT + 24}">{learned}</text>',
        ]
    )


def draw() -> str:
    """The picture as SVG."""
    width, height = len(PHASES) * PANEL, 168
    legend = "".join(
        f'<rect class="{kind}" x="{x}" y="142" width="16" height="12" rx="3"/>'
        f'<text class="small" x="{x + 22}" y="152">{kind}</text>'
        for x, kind in ((MARGIN, "learns"), (MARGIN + 84, "frozen"))
    )
    head = '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">',
            "<title>The encoder learns from a random projection, a tokenizer from it, the encoder from that</title>",
            f'<style>{STYLE}</style><defs>{head}<path class="head" d="M0 0 L8 4 L0 8 z"/></marker></defs>',
            *(panel(number, *phase) for number, phase in enumerate(PHASES)),
            legend,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    Path(__file__).with_name("phases.svg").write_text(draw())
