"""Progress bars whose wall clock is set."""

import io
import re

import pytest
import tqdm.std

from awcl_jax.runtime.bar import Bar

pytestmark = pytest.mark.quick


def shown(kind, jump: float, monkeypatch) -> list[str]:
    """Return what a bar shows at the end of each of three steps of a wall clock that jumps before the last two."""
    wall = iter([1e9, *[1e9 + jump] * 1000])
    monkeypatch.setattr(tqdm.std, "time", lambda: next(wall))
    to = io.StringIO()
    with kind(total=3, file=to, mininterval=0, ncols=80) as bar:
        for _ in range(3):
            bar.update()
    return [text for text in to.getvalue().split("\r") if text.strip()]


@pytest.mark.parametrize("jump", [-7200.0, 7200.0])
def test_a_wall_clock_that_is_set_shows_in_no_time(jump, monkeypatch):
    texts = shown(Bar, jump, monkeypatch)
    assert re.search(r"3/3 \[00:0\d<00:00", texts[-1])
    assert not any("-" in text or "2:00" in text for text in texts)
    with monkeypatch.context() as patch:  # tqdm alone does, otherwise this test shows nothing
        assert any("-" in text or "2:00" in text for text in shown(tqdm.tqdm, jump, patch)) or jump < 0


def test_a_bar_moves_on_after_the_clock_was_set_back(monkeypatch):
    assert [text[:4] for text in shown(Bar, -7200.0, monkeypatch)][-1] == "100%"


def test_a_bar_that_is_disabled_counts_nothing(capsys):
    with Bar(range(3), disable=True) as bar:
        assert list(bar) == [0, 1, 2]
    assert capsys.readouterr().err == ""
