"""What mkdocs does to the pages: formulas become MathML, results are listed, and fields filled in."""

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*\\[\[(](.*?)\\[\])]\s*</\1>', re.DOTALL)
_FIELDS = re.compile(r"<!-- fields of (\w+) -->")


def on_page_content(content: str, **_: Any) -> str:
    """Return the page with formulas as MathML, which browsers draw by themselves: no script, no font, no network."""

    def drawn(found: re.Match) -> str:
        display = "block" if found[1] == "div" else "inline"
        return convert(html.unescape(found[2]).strip(), display=display)

    return _FORMULA.sub(drawn, content)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return the page with its generated parts: tables of fields, and the list of results on their index."""
    if page.file.src_uri == "reference/configuration.md":
        return _with_fields(markdown)
    if page.file.src_uri == "results/index.md":
        return _with_results(markdown, Path(page.file.abs_src_path).parent)
    return markdown


def _with_fields(markdown: str) -> str:
    # Imported here, because it imports JAX and only one page needs it.
    from awcl_jax.config.reference import fields_markdown

    return _FIELDS.sub(lambda found: fields_markdown(found[1]), markdown)


def _with_results(markdown: str, folder: Path) -> str:
    """Add a line for every other page or picture of the folder that the index does not link itself."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != "index.md"]
    names = {file: file.relative_to(folder).as_posix() for file in files}
    lines = [f"- [{_title(file)}]({name})" for file, name in names.items() if f"]({name})" not in markdown]
    return "\n".join([markdown, *lines])


def _title(file: Path) -> str:
    first = next((line for line in file.read_text().splitlines() if line.strip()), "") if file.suffix == ".md" else ""
    return first.removeprefix("# ") if first.startswith("# ") else file.name
