"""README and the documentation: short, true, and complete. mkdocs itself checks the links between its pages."""

import ast
import importlib
import importlib.util
import re
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import awcl_jax
from awcl_jax.config import reference
from awcl_jax.runtime import cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "launch" / "README.md", *sorted(DOCS.rglob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text() for page in PAGES}
README = TEXTS["README.md"]

FILES = {"html", "jax", "json", "onnx", "png", "py", "safetensors"}  # endings that are not fields, as in `report.html`

pytestmark = pytest.mark.quick

each_page = pytest.mark.parametrize("page", TEXTS)


def links_of(text):
    """Targets of links and pictures in Markdown, outside of fenced code."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors_of(text):
    """Anchors of headings, as GitHub and mkdocs make them of plain words."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def words_of_prose(text):
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in text.splitlines() if not re.match(r"\||\[?!\[", line)]
    return re.findall(r"\S*\w\S*", re.sub(r"\]\([^)]*\)", "]", "\n".join(lines)))


def test_words_of_prose_skips_code_tables_badges_and_urls():
    left_out = "[![badge](a.svg)](b)\n![a picture](c.png)\n| a | b |\n```bash\nls -l\n```\n"
    assert words_of_prose(f"# One two\n{left_out}three [four](d/e.md), -- five.\n") == [
        "One",
        "two",
        "three",
        "[four],",
        "five.",
    ]


def test_readme_can_be_scanned():
    assert len(words_of_prose(README)) <= 650
    assert len(README.splitlines()) <= 170
    assert len(re.findall(r"^!\[", README, re.MULTILINE)) == 1


def test_readme_has_the_two_commands():
    assert "\npip install -e . && python -m awcl_jax.main --config=configs/fine.py\n" in README
    assert "`pip install -e '.[test]' && pytest`" in README


def test_the_picture_is_small():
    assert (DOCS / "assets" / "embeddings.png").stat().st_size < 400_000


@each_page
def test_links_lead_to_files_and_headings(page):
    for link in links_of(TEXTS[page]):
        if "://" in link or (page.startswith("docs/results/index") and link.startswith("public/")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors_of(target.read_text()), link


def test_badges_are_true():
    package = metadata.metadata("awcl_jax")
    least = re.search(r">=([\d.]+)", package["Requires-Python"])[1]
    licence = package["License-Expression"] or package["License"]
    badges = {name: (DOCS / "assets" / f"{name}.svg").read_text() for name in ("python", "licence")}
    assert f">{least}+</text>" in badges["python"]
    assert f">{licence}</text>" in badges["licence"]
    assert f"Python {least} or later" in README


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == awcl_jax.__version__
    assert citation["license"] == "Apache-2.0"
    method = citation["references"][0]
    assert method["title"] in README
    assert method["doi"] in README


@each_page
def test_commands_name_modules_configurations_and_fields(page):
    text = TEXTS[page]
    fields = {field.name for kind in reference.KINDS for field in reference.describe_fields(kind)}
    groups = {name.partition(".")[0] for name in fields if "." in name}
    for module in re.findall(r"python -m ((?:awcl_jax|benchmarks)\.\w+)", text):
        assert importlib.util.find_spec(module), module
    for field in re.findall(r"--config\.([a-z_.]+)", text):
        assert field in fields, field
    for group, name in re.findall(r"`([a-z_]+)\.([a-z_]+)(?:=[^`]*)?`", text):
        if group in groups and name not in FILES:
            assert f"{group}.{name}" in fields, f"{group}.{name}"
    for name, variant in re.findall(r"configs/([a-z_]+)\.py(?::([a-z_0-9]+))?", text):
        importlib.import_module(f"configs.{name}").get_config(variant or None)


@each_page
def test_python_in_pages_is_python(page):
    for code in re.findall(r"^```python\n(.*?)^```$", TEXTS[page], re.MULTILINE | re.DOTALL):
        ast.parse(code)


def test_every_page_is_found_from_the_start_page():
    linked = {
        (DOCS / link.partition("#")[0]).resolve() for link in links_of(TEXTS["docs/index.md"]) if "://" not in link
    }
    linked |= {
        (DOCS / "results" / link).resolve() for link in links_of(TEXTS["docs/results/index.md"]) if link.endswith(".md")
    }
    assert {*DOCS.rglob("*.md")} <= linked | {DOCS / "index.md"}


def test_the_exit_statuses_are_listed():
    listed = re.findall(r"^\| (\d+) \|", TEXTS["docs/how-to/errors.md"], re.MULTILINE)
    assert listed == sorted(listed, key=int)
    assert {"0", "1", str(cli.SAVED), str(cli.INTERRUPTED), "134", "137"} == {*listed}


@pytest.fixture(scope="module")
def hooks():
    pytest.importorskip("latex2mathml")
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page_of(name, path):
    return SimpleNamespace(file=SimpleNamespace(src_uri=name, abs_src_path=str(path)))


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


def test_the_index_of_results_lists_every_file_once(hooks, tmp_path):
    folder = tmp_path / "results"
    (folder / "plots").mkdir(parents=True)
    index = "# Results\n\n[A page](linked.md)\n"
    (folder / "index.md").write_text(index)
    (folder / "linked.md").write_text("# Linked\n")
    (folder / "scaling.md").write_text("\n# Scaling, on paper\n")
    (folder / "untitled.md").write_text("no title\n")
    (folder / "plots" / "a.png").write_bytes(b"\x89PNG")

    shown = hooks.on_page_markdown(index, page=page_of("results/index.md", folder / "index.md"))
    assert shown.removeprefix(index).splitlines() == [
        "",
        "- [a.png](plots/a.png)",
        "- [Scaling, on paper](scaling.md)",
        "- [untitled.md](untitled.md)",
    ]
    other = hooks.on_page_markdown(index, page=page_of("index.md", folder / "index.md"))
    assert other == index


def test_the_page_of_fields_lists_all_of_both_kinds(hooks):
    name = "reference/configuration.md"
    page = hooks.on_page_markdown(TEXTS[f"docs/{name}"], page=page_of(name, DOCS / name))
    rows = re.findall(r"^\| `([a-z_.]+)` \|", page, re.MULTILINE)
    expected = [field.name for kind in reference.KINDS for field in reference.describe_fields(kind)]
    assert sorted(rows) == sorted(expected)
    assert "<!--" not in page


def test_every_extra_is_in_the_table_of_installation():
    table = TEXTS["docs/installation.md"].partition("| extra | adds |")[2].partition("\n\n")[0]
    named = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert named | {"gpu", "tpu"} == set(metadata.metadata("awcl_jax").get_all("Provides-Extra"))
