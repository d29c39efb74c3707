"""What the site's pages go through: formulas become MathML, and the index of results names all of them."""

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*\\[\[(](.*?)\\[\])]\s*</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as MathML, which browsers draw by themselves: no script, no font, no network."""

    def drawn(found: re.Match) -> str:
        display = "block" if found[1] == "div" else "inline"
        return convert(html.unescape(found[2]).strip(), display=display)

    return _FORMULA.sub(drawn, content)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The index of results with a line for every other file of its folder."""
    if page.file.src_uri != "results/index.md":
        return markdown
    folder = Path(page.file.abs_src_path).parent
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != "index.md"]
    lines = [f"- [{_title(file)}]({file.relative_to(folder).as_posix()})" for file in files]
    return "\n".join([markdown, *(lines or ["There are none yet."])])


def _title(file: Path) -> str:
    first = next((line for line in file.read_text().splitlines() if line.strip()), "") if file.suffix == ".md" else ""
    return first.removeprefix("# ") if first.startswith("# ") else file.name
