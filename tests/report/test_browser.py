"""The page in a browser, from disk and without network: that it works by mouse, by keyboard, and breaks on no name."""

import json
import shutil

import pytest
from playwright import sync_api as playwright
from playwright.sync_api import expect

from awcl_jax.report import command as report
from awcl_jax.report import payload
from awcl_jax.report.embedding_map import MAP_FILE, FrameMap
from awcl_jax.train.metrics import METRICS_FILE
from awcl_jax.train.run_folder import FRAMES_FILE, write_frames
from tests.helpers.report_runs import HOSTILE, make_run

pytestmark = pytest.mark.slow

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# Name and outline of what has the focus; past the last of all, that is the body, which has no name.
FOCUSED = """() => {
    const e = document.activeElement;
    if (e === document.body) return ["", ""];
    const label = e.labels && e.labels[0];
    return [e.getAttribute("aria-label") || (label ? label.innerText : e.innerText.trim()),
        getComputedStyle(e).outlineStyle];
}"""


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        # As root, as in a container, Chromium has no sandbox.
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser):
    """Opens a file without network; at the end there must have been no fault and no request."""
    faults, requests = [], []

    def opened(path, **options):
        page = browser.new_context(offline=True, viewport={"width": 1300, "height": 900}, **options).new_page()
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.resolve().as_uri())
        return page

    yield opened
    for context in browser.contexts:
        context.close()
    assert not faults
    assert not [url for url in requests if not url.startswith(("file:", "data:", "blob:"))]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "fine")


def pixel_of(plot, told, i):
    """Where frame i is drawn before anything is zoomed: the map's middle in the plot's, with 6% to spare."""
    width, height = plot.evaluate("plot => [plot.clientWidth, plot.clientHeight]")
    x, y = told["x"], told["y"]
    unit = 1.06 * max((max(x) - min(x)) / width, (max(y) - min(y)) / height)
    middle = (max(x) + min(x)) / 2, (max(y) + min(y)) / 2
    return {"x": width / 2 + (x[i] - middle[0]) / unit, "y": height / 2 - (y[i] - middle[1]) / unit}


def test_point_choose_and_filter(run, open_page):
    page = open_page(report.write_report([run]))
    frames = FrameMap.load(run / MAP_FILE)
    told = payload.frame_map(frames)
    plot, tip, detail = (page.locator(f".map .{name}") for name in ("plot", "tip", "detail"))
    # A frame that no other is drawn over.
    place = [pixel_of(plot, told, i) for i in range(60)]
    apart = [min(abs(p["x"] - q["x"]) + abs(p["y"] - q["y"]) for q in place if q is not p) for p in place]
    i = apart.index(max(apart))
    plot.hover(position=place[i])
    expect(tip).to_be_visible()
    assert f"F{i:03d}" in tip.inner_text()
    assert "data:image/webp" in tip.locator(".thumb").evaluate("t => getComputedStyle(t).backgroundImage")
    plot.click(position=place[i])
    assert detail.locator("h4").first.inner_text() == f"F{i:03d}"
    expected = [f for near in (frames.same_scan, frames.other_scans) for f in near.frames[i].tolist() if f >= 0]
    listed = detail.locator(".alike button").all_inner_texts()
    assert [text.split(",")[0].strip() for text in listed] == [f"F{j:03d}" for j in expected]
    assert f"cosine {frames.other_scans.cosines[i, 0]:.3f}" in detail.inner_text()
    detail.locator(".alike button").first.click()
    assert detail.locator("h4").first.inner_text() == f"F{expected[0]:03d}"

    page.get_by_label("Anatomy", exact=True).select_option("FLP")
    page.get_by_label("Split", exact=True).select_option("test")
    kinds = frames.labels["anatomy"]
    shown = [f"F{j:03d}" for j in range(30) if kinds.codes[j] == kinds.names.index("FLP")]
    assert page.locator(".count").inner_text() == f"{len(shown)} of 60 frames shown"
    page.get_by_text("The frames as a table").click()
    expect(page.locator(".listed tbody th")).to_have_text(shown[:25])
    expect(page.locator(".legend li")).to_have_text([f"FLP ({len(shown)})"])
    assert page.get_by_label("Machine", exact=True).count() == 0, "all frames are of one machine"
    page.get_by_label("Colour by").select_option("scan")
    assert "P2-S0" in page.locator(".legend").inner_text()


def test_a_cell_of_the_confusion_matrix_shows_its_frames(tmp_path, open_page):
    run = make_run(tmp_path / "fine")
    rows = [("F003", "4CH", "4CH"), ("F001", "4CH", "4CH"), ("F002", "4CH", "BG"), ("ZZ", "BG", "BG")]
    frames = [{"frame": f, "patient": "P", "label": label, "prediction": guess} for f, label, guess in rows]
    write_frames(run / FRAMES_FILE, frames)
    page = open_page(report.write_report([run]))
    place = page.locator(".cells")
    page.get_by_role("button", name="2: 4CH taken for 4CH").click()
    expect(place.locator("li")).to_have_text(["F003", "F001"])
    assert place.locator(".thumb").count() == 2
    page.get_by_role("button", name="1: BG taken for BG").press("Enter")
    expect(place.locator("li")).to_have_text(["ZZ"])
    assert "1 of them without a picture" in place.inner_text()
    assert place.evaluate("place => document.activeElement === place")


def test_the_map_moves(run, open_page):
    page = open_page(report.write_report([run]))
    plot = page.locator(".map .plot")
    told = payload.frame_map(FrameMap.load(run / MAP_FILE))
    before = pixel_of(plot, told, 0)
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 60, box["y"] + 50, steps=4)
    page.mouse.up()
    plot.hover(position={"x": before["x"] + 40, "y": before["y"] + 30})
    expect(page.locator(".map .tip"), "the frame is where it was dragged to").to_be_visible()
    page.get_by_role("button", name="Whole map").click()
    plot.focus()
    plot.hover(position=before)
    page.mouse.wheel(0, -400)  # about the frame, which stays
    page.wait_for_timeout(100)
    plot.hover(position={"x": before["x"] + 1, "y": before["y"]})
    assert "F000" in page.locator(".map .tip").inner_text()


def test_all_of_it_by_keyboard(run, open_page):
    page = open_page(report.write_report([run]))
    reached, unseen = [], []
    for _ in range(60):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(FOCUSED)
        if not name:
            break
        reached.append(name.splitlines()[0])
        if outline == "none":
            unseen.append(name)
    assert not unseen, "what has the focus is seen"
    assert reached[0] == "Skip to the content"
    for wanted in ("Summary", "Main scores", "Loss: numbers as a table", "Zoom in", "Map of 60 frames"):
        assert wanted in reached
    page.locator(".map .plot").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".map .tip")).to_be_visible()
    pointed = page.locator(".map .tip strong").inner_text()
    assert page.locator("[data-status]").inner_text().startswith(pointed)
    page.keyboard.press("Enter")
    assert page.locator(".detail h4").first.inner_text() == pointed
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("+")
    page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("0")
    page.keyboard.press("Escape")
    assert page.locator(".detail .hint").inner_text() == "No frame is selected."
    details = page.locator(".curve", has_text="Loss").first.locator("details")
    details.locator("summary").press("Enter")
    rows = details.locator("tbody tr").all_inner_texts()
    assert [row.split() for row in rows] == [[str(s), str(5 - s / 100), "3.434"] for s in (10, 20, 30, 40)]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_name_is_run(tmp_path, open_page, hostile):
    page = open_page(report.write_report([make_run(tmp_path / "fine", anatomy=hostile, scan=hostile)]))
    page.get_by_label("Anatomy", exact=True).select_option(label=" ".join(hostile.split()))
    plot = page.locator(".map .plot")
    plot.focus()
    for key in ("ArrowRight", "Enter"):
        page.keyboard.press(key)
    page.get_by_label("Scan", exact=True).select_option(index=1)
    page.get_by_text("The frames as a table").click()
    for summary in page.locator(".curve summary").all():
        summary.click()
    assert page.evaluate("window.injected") is None
    assert page.locator("img[src=x]").count() == 0


def test_axes_of_one_evaluation_fit_its_scores(tmp_path, browser):
    run = make_run(tmp_path / "run", frames=None)
    # Step and scores of the only evaluation: at the end of the run, and all of them wrong.
    (run / METRICS_FILE).write_text('{"step": 40, "val/knn/accuracy": 0.0, "val/knn/macro_f1": 0.0}\n')
    page = browser.new_context(offline=True).new_page()
    # The axes are painted: what is written on them can only be overheard.
    page.add_init_script("""window.painted = []; const paint = CanvasRenderingContext2D.prototype.fillText;
        CanvasRenderingContext2D.prototype.fillText = function (text, ...where) {
            window.painted.push(text); return paint.call(this, text, ...where); };""")
    page.goto(report.write_report([run]).resolve().as_uri())
    page.wait_for_function("window.painted.length > 0")
    numbers = {float(text) for text in page.evaluate("window.painted")}
    page.context.close()
    assert {0.0, 1.0, 40.0} <= numbers, "the score's axis ends at 1, and the steps at the last"
    assert max(numbers) == 40


@pytest.mark.parametrize("width", [420, 1280])
def test_all_columns_of_a_run_are_on_the_screen(tmp_path, open_page, width):
    folder = make_run(tmp_path / "fine")
    results = json.loads((folder / "results.json").read_text())
    results |= {"pixels": results["trained"], "untrained": results["trained"]}
    names = ["Fetal abdomen", "Fetal brain", "Fetal femur", "Maternal cervix"]
    results |= {"anatomies": names, "knn_confusion": [[1] * 4] * 4}
    (folder / "results.json").write_text(json.dumps(results))
    page = open_page(report.write_report([folder]))
    page.set_viewport_size({"width": width, "height": 900})
    columns = page.locator(".scores thead th", has_text="trained")
    assert columns.count() == 4  # untrained and trained, of the main and of all other scores
    for place in (0, 1):
        box = columns.nth(place).bounding_box()
        assert 0 < box["x"] < box["x"] + box["width"] <= width
    wide = page.locator(".wide:has(> .confusion)").evaluate("e => [e.scrollWidth, e.clientWidth]")
    assert wide[0] == wide[1]


def test_light_dark_and_two_runs(tmp_path, run, open_page):
    other = make_run(tmp_path / "other")
    out = report.write_report([run, other], tmp_path / "two.html")
    paper = {}
    for scheme in ("light", "dark"):
        page = open_page(out, color_scheme=scheme)
        paper[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert page.locator(".map canvas").count() == 2
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is cut off at the right"
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 28)"}
    page.emulate_media(color_scheme="light")
    maps = page.locator(".map .plot")
    for i in (0, 1):
        maps.nth(i).focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
    chosen = page.locator(".detail h4:first-child").all_inner_texts()
    assert len(chosen) == 2
