"""Figures of Matplotlib as files, in fonts that have all characters of their texts.

Matplotlib's own font has no Kanji, for example, and it warns of every such character once for each time it is drawn.
"""

import re
import sys
import warnings
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

from matplotlib import font_manager, ft2font
from matplotlib.figure import Figure
from matplotlib.text import Text

from awcl_jax.runtime.files import atomic_write

_MISSING = re.compile(r"Glyph (\d+) .*missing from")


def save(figure: Figure, out: str | PathLike[str] | BinaryIO, **options: Any) -> None:
    """Write a figure; characters that its font lacks are drawn in an installed font that has them.

    If there is none, one line on stderr names them, and the picture has boxes in their place. A file appears whole (see
    `atomic_write`).

    Args:
      figure: to write.
      out: the file, in the format that its ending names, or a stream.
      **options: of `Figure.savefig`, such as `dpi`.

    Raises:
      OSError: it cannot be written.
    """
    if isinstance(out, str | PathLike):
        path = Path(out)
        with atomic_write(path) as part:
            _save_readable(figure, part, {"format": path.suffix[1:]} | options)
    else:
        _save_readable(figure, out, options)


def _save_readable(figure: Figure, out: Path | BinaryIO, options: dict[str, Any]) -> None:
    missing = _save(figure, out, options)
    if missing and (families := _families(missing)):
        for text in figure.findobj(Text):
            assert isinstance(text, Text)
            text.set_fontfamily([*text.get_fontfamily(), *families])
        missing = _save(figure, out, options)
    if missing:
        _report("".join(sorted(missing)))


def _save(figure: Figure, out: str | PathLike[str] | BinaryIO, options: dict[str, Any]) -> frozenset[str]:
    """Write the figure; return the characters that no font of their text has."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(out, **options)
    missing = set()
    for warning in caught:
        if found := _MISSING.match(str(warning.message)):
            missing.add(chr(int(found[1])))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return frozenset(missing)


@lru_cache(maxsize=32)
def _families(characters: frozenset[str]) -> tuple[str, ...]:
    """Return the names of installed fonts that have as many of these characters as possible, the best first."""
    left, chosen = set(characters), []
    # Looked for anew, because Matplotlib's list is of the day when it was first used.
    found = {path: _covered(path, characters) for path in sorted(font_manager.findSystemFonts())}
    while left and (path := max(found, key=lambda path: len(found[path] & left), default="")) and found[path] & left:
        font_manager.fontManager.addfont(path)
        chosen.append(ft2font.FT2Font(path).family_name)
        left -= found[path]
    return tuple(chosen)


def _covered(path: str, characters: frozenset[str]) -> set[str]:
    try:
        known = ft2font.FT2Font(path).get_charmap()
    except (OSError, RuntimeError):  # a damaged font, or one of a kind that Matplotlib does not read
        return set()
    return {character for character in characters if ord(character) in known}


@lru_cache(maxsize=32)
def _report(characters: str) -> None:
    """Print which characters are missing, once for each set of them."""
    shown = characters[:20] + (" ..." if len(characters) > 20 else "")
    print(
        f"warning: no installed font has {shown}, so pictures have boxes in their place. Install a font that has them, "
        "such as Noto Sans CJK for Chinese, Japanese and Korean.",
        file=sys.stderr,
        flush=True,
    )
