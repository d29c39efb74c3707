"""What the documentation's pages go through. The build itself, with links checked, is a line of `.ci/run`."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.quick

pytest.importorskip("latex2mathml")

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_formulas_become_mathml(hooks):
    page = (
        '<p>of <span class="arithmatex">\\(a &lt; b\\)</span></p><div class="arithmatex">\\[\n\\frac{1}{n}\n\\]</div>'
    )
    drawn = hooks.on_page_content(page)
    assert "arithmatex" not in drawn
    assert "<mi>a</mi><mo>&#x0003C;</mo><mi>b</mi>" in drawn
    assert 'display="inline"' in drawn
    assert 'display="block"' in drawn
    assert "<mfrac><mrow><mn>1</mn></mrow><mrow><mi>n</mi></mrow></mfrac>" in drawn


def test_the_index_of_results_names_every_file(hooks, tmp_path):
    folder = tmp_path / "results"
    (folder / "plots").mkdir(parents=True)
    (folder / "index.md").write_text("# Results\n")
    (folder / "scaling.md").write_text("\n# Scaling, on paper\n")
    (folder / "untitled.md").write_text("no title\n")
    (folder / "plots" / "a.png").write_bytes(b"\x89PNG")

    def index_of(name):
        file = SimpleNamespace(src_uri=name, abs_src_path=str(folder / "index.md"))
        return hooks.on_page_markdown("# Results\n", page=SimpleNamespace(file=file))

    assert index_of("results/index.md").splitlines()[2:] == [
        "- [a.png](plots/a.png)",
        "- [Scaling, on paper](scaling.md)",
        "- [untitled.md](untitled.md)",
    ]
    assert index_of("index.md") == "# Results\n"
