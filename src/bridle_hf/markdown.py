"""Text of people's in Markdown: nothing of it is markup, and none leaves its line or its cell of a table."""

import re
from typing import Any

import jinja2
from markupsafe import Markup

# What begins markup somewhere in a line, and an underscore at the edge of a word.
SPECIAL = re.compile(r"[\\`*{}\[\]<>|&~$!#]|(?<![^\W_])_|_(?![^\W_])")
PLAIN_CODE = re.compile(r"[^`|<>&]+")


def one_line(value: Any) -> str:
    """A value as text without line breaks and control characters."""
    return "".join(char if char.isprintable() else "\ufffd" for char in " ".join(str(value).split()))


def escape(value: Any) -> Any:
    """A value as text that Markdown shows as it is; numbers and markup pass.

    Every `{{ ... }}` of a card goes through it, see `card_environment`.
    """
    if isinstance(value, int | float | Markup | jinja2.Undefined):
        return value
    return Markup(SPECIAL.sub(lambda found: f"&#{ord(found[0])};", one_line(value)))


def code(value: Any) -> Markup:
    """A value in the type of code, as `{{ name | code }}`."""
    text = one_line(value)
    return Markup(f"`{text}`" if PLAIN_CODE.fullmatch(text) else f"<code>{escape(text)}</code>")


def card_environment(folders: list) -> jinja2.Environment:
    """Jinja for cards in these folders, in which everything that is put in is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        undefined=jinja2.StrictUndefined,
        autoescape=True,  # blocks and macros are markup then
        finalize=escape,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = code
    return environment
