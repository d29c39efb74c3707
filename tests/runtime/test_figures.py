"""Figures with texts in any script."""

import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import font_manager, ft2font
from matplotlib.figure import Figure
from PIL import Image

from awcl_jax.runtime import figures

BUNDLED = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
KANJI = "心臓"


@pytest.fixture(autouse=True)
def forgotten():
    """What earlier tests have looked for."""
    figures._families.cache_clear()
    figures._report.cache_clear()


@pytest.fixture
def installed(monkeypatch):
    """Sets the fonts that are installed."""
    return lambda *paths: monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(path) for path in paths])


def figure_of(text):
    figure = Figure(figsize=(2, 1))
    ax = figure.subplots()
    ax.set_title(text)
    ax.plot([0, 1], label=text)
    ax.legend()
    return figure


def characters_of(name):
    return {chr(code) for code in ft2font.FT2Font(str(BUNDLED / name)).get_charmap()}


def test_missing_characters_are_one_line_however_often_they_are_drawn(tmp_path, installed, capsys):
    installed()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("one.png", "two.png"):
            figures.save(figure_of(KANJI), tmp_path / name)
    with Image.open(tmp_path / "two.png") as picture:
        assert picture.size == (200, 100)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: no installed font has 心臓, so pictures have boxes in their place.")


def test_an_installed_font_with_the_characters_is_used(tmp_path, installed, capsys):
    other = next(iter(characters_of("STIXGeneral.ttf") - characters_of("DejaVuSans.ttf")))
    damaged = tmp_path / "damaged.ttf"
    damaged.write_bytes(b"no font")
    installed(damaged, BUNDLED / "DejaVuSans.ttf", BUNDLED / "STIXGeneral.ttf")
    figure = figure_of(f"heart {other}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.save(figure, tmp_path / "with.png")
    assert capsys.readouterr().err == ""
    assert figure.axes[0].title.get_fontfamily()[-1] == "STIXGeneral"
    installed()
    figures._families.cache_clear()
    figures.save(figure_of(f"heart {other}"), tmp_path / "without.png")
    assert not np.array_equal(*(np.asarray(Image.open(tmp_path / name)) for name in ("with.png", "without.png")))


def test_a_figure_of_plain_text_is_what_matplotlib_writes(tmp_path):
    figures.save(figure_of("heart"), tmp_path / "ours.png", dpi=120)
    figure_of("heart").savefig(tmp_path / "theirs.png", dpi=120)
    assert np.array_equal(*(np.asarray(Image.open(tmp_path / name)) for name in ("ours.png", "theirs.png")))


def test_other_warnings_are_passed_on(tmp_path):
    figure = figure_of("heart")
    figure.savefig = lambda out, **_: warnings.warn("something else", stacklevel=1)
    with pytest.warns(UserWarning, match="something else"):
        figures.save(figure, tmp_path / "figure.png")
