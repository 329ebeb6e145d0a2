"""Hook of mkdocs: the pages of the site that lie beside `docs/`, with their links seen from there."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_files(files, config):
    for page, source in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown, page, config, files):
    names = {source: name for name, source in PAGES.items()}
    if page.file.src_uri in PAGES:  # README links into docs/
        markdown = re.sub(r"\]\(docs/", "](", markdown)
        return re.sub(r"\]\((\w+\.md)", lambda found: f"]({names.get(found[1], found[1])}", markdown)
    return re.sub(r"\]\(\.\./(\w+\.md)", lambda found: f"]({names.get(found[1], found[1])}", markdown)


def on_page_content(html, page, config, files):
    # types of docstrings stand in backticks, which are Markdown's
    return html.replace("<code>`", "<code>").replace("`</code>", "</code>")
