"""The page of a run: what goes into it, what it refuses, and that no name can break out of it."""

import dataclasses
import html.parser
import itertools
import json

import numpy as np
import pytest

from awcl_jax.config.downstream import default_downstream_config
from awcl_jax.config.pretraining import default_config
from awcl_jax.data import about
from awcl_jax.data.about import About
from awcl_jax.evaluate.scores import Score, scores_as_json
from awcl_jax.report import command as report
from awcl_jax.report import payload, tables, writing
from awcl_jax.report.contents import Run, read_run
from awcl_jax.report.embedding_map import MAP_FILE
from awcl_jax.runtime.errors import InputError
from awcl_jax.train.harness import report_initial
from awcl_jax.train.run_folder import FRAMES_FILE, write_frames
from tests.helpers.report_runs import HOSTILE, frames_of, make_run

pytestmark = pytest.mark.quick


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "fine")


class Elements(html.parser.HTMLParser):
    """Elements of a page, with their attributes and, of scripts, their text."""

    def __init__(self, text):
        super().__init__()
        self.found, self.scripts, self.ids = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]
        if tag == "script":
            self.scripts.append("")
        self.in_script = tag == "script"

    def handle_endtag(self, tag):
        self.in_script = False

    def handle_data(self, data):
        if self.scripts and self.in_script:
            self.scripts[-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def page_of(folder):
    return Elements(report.write_report([folder]).read_text(encoding="utf-8"))


def data_in(page):
    return json.loads(page.scripts[0])


@pytest.mark.parametrize("confirmed", [True, False])
def test_the_page_names_the_dataset_and_its_patients(confirmed, tmp_path):
    config = default_config()
    config.data.path = "/home/ada/scans"
    own = about.as_json([About("lab_frames", "", "own", "a column", confirmed=confirmed)])
    run = make_run(tmp_path / "own", config=config, frames=None, datasets=own)
    text = report.write_report([run]).read_text()
    assert "lab_frames (frames of the user&#39;s own)" in text
    assert "phantom" not in text  # the default of a field that data.path replaces
    assert ("Each patient is in one split only" in text) == confirmed
    assert ("one patient may be in two splits" in text) != confirmed


def test_the_page_tells_what_the_folder_holds(run):
    page = page_of(run)
    data = data_in(page)
    assert data["runs"] == ["fine"]
    loss = next(panel for panel in data["panels"] if panel["key"] == "loss")
    # By hand: 5 - 0.01 step; a step with nan is null.
    assert [(s["label"], s["steps"][:2], s["values"][:2]) for s in loss["series"]] == [
        ("loss", [10, 20], [4.9, 4.8]),
        ("collapsed encoder", [10, 20], [3.434, 3.434]),
    ]
    assert next(p for p in data["panels"] if p["key"] == "spread")["series"][0]["values"][2] is None
    assert data["maps"][0]["ids"] == frames_of().frame_ids.tolist()
    text = (run / "report.html").read_text()
    assert "0.500 (0.400 to 0.600)" in text
    assert "3 of 4 test frames correct" in text
    assert "<li>BAD: 4CH</li>" in text
    assert [image["alt"][:14] for image in page.all("img")] == ["Frames that at"]


def test_it_is_the_same_each_time_and_needs_no_other_file(run, monkeypatch, tmp_path):
    first = report.write_report([run]).read_text()
    assert report.write_report([run]).read_text() == first
    page = Elements(first)
    links = [a.get("src", a.get("href", "")) for _, a in page.found if "src" in a or "href" in a]
    assert all(link.startswith(("data:", "#")) for link in links)
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:; script-src 'sha256-")
    assert "unsafe" not in policy
    assert not list(run.glob("*.part"))


def test_what_a_reader_of_the_screen_goes_by(run):
    page = page_of(run)
    assert len(set(page.ids)) == len(page.ids)
    assert [len(page.all(tag)) for tag in ("main", "header", "nav", "h1")] == [1, 1, 1, 1]
    assert page.all("html")[0]["lang"] == "en"
    targets = {a["href"].removeprefix("#") for a in page.all("a")}
    assert targets <= set(page.ids)
    assert all(image["alt"] for image in page.all("img"))
    headings = [int(tag[1]) for tag, _ in page.found if tag in ("h1", "h2", "h3", "h4")]
    assert headings[0] == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(headings)), "no level is left out"
    # Every plot has a table behind it.
    assert len(page.all("details")) >= len([a for a in page.all("figure") if a["class"] == "curve"]) + 1


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_name_breaks_out(tmp_path, hostile):
    plain = page_of(make_run(tmp_path / "fine"))
    name = hostile.replace("/", "-").replace("\n", " ")
    page = page_of(make_run(tmp_path / name, anatomy=hostile, scan=hostile))
    assert [tag for tag, _ in page.found] == [tag for tag, _ in plain.found]
    assert not [a for _, a in page.found if any(key.startswith("on") for key in a)]
    data = data_in(page)
    assert hostile in data["maps"][0]["labels"]["anatomy"]["names"]
    assert hostile in data["maps"][0]["labels"]["scan"]["names"]
    assert data["runs"] == [name]
    assert page.scripts[1] == plain.scripts[1]


def test_an_unfinished_run_shows_what_there_is(run):
    for file in ("results.json", MAP_FILE, "pairs.png"):
        (run / file).unlink()
    text = report.write_report([run]).read_text()
    assert "This run has not ended: its metrics reach step 40." in text
    assert "<p>No scores." in text
    assert len(data_in(Elements(text))["panels"]) > 1
    (run / "metrics.jsonl").unlink()
    assert "No metrics yet." in report.write_report([run]).read_text()
    (run / "metrics.jsonl").write_text("")
    assert "No metrics yet." in report.write_report([run]).read_text()


def test_folders_that_are_no_run_are_refused(tmp_path, run, capsys):
    for arguments, told in (
        ([tmp_path / "nowhere"], "There is no folder"),
        ([tmp_path], "is not a run folder: config.json not found"),
        ([run, run], "twice"),
        ([run, "--out=page.txt"], "--out must end in .html"),
        ([run, f"--out={tmp_path}/none/page.html"], f"Create {tmp_path}/none, or choose another --out."),
    ):
        with pytest.raises(SystemExit) as left:
            report.main([str(argument) for argument in arguments])
        assert left.value.code == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert told in said
    (run / "results.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        report.write_report([run])
    (run / "config.json").write_text("{}")
    with pytest.raises(InputError, match="holds no configuration"):
        report.write_report([run])


def test_runs_of_two_kinds_side_by_side(tmp_path, run, capsys, monkeypatch):
    planes = make_run(tmp_path / "planes", config=default_downstream_config(), frames=None)
    monkeypatch.chdir(tmp_path)
    report.main([str(run), str(planes)])
    assert capsys.readouterr().out.startswith("comparison.html  ")
    page = Elements((tmp_path / "comparison.html").read_text())
    data = data_in(page)
    assert data["runs"] == ["fine", "planes"]
    assert data["maps"][1] is None
    assert [s["run"] for s in next(p for p in data["panels"] if p["key"] == "loss")["series"]] == [0, 1, 0, 1]
    assert len(set(page.ids)) == len(page.ids)
    differing = [name for name, _, differs in tables.settings([read_run(run), read_run(planes)]) if differs]
    assert "task.kind" in differing
    assert "seed" not in differing


def test_two_runs_of_one_name_are_told_apart(tmp_path):
    runs = [make_run(tmp_path / parent / "fine") for parent in "ab"]
    page = Elements(report.write_report(runs, tmp_path / "two.html").read_text())
    assert data_in(page)["runs"] == ["a/fine", "b/fine"]


def test_runs_of_two_studies_of_one_layout_are_told_apart(tmp_path):
    runs = [make_run(tmp_path / study / "pretrain" / "fine-0") for study in ("one", "two")]
    page = Elements(report.write_report(runs, tmp_path / "two.html").read_text())
    assert data_in(page)["runs"] == ["one/pretrain/fine-0", "two/pretrain/fine-0"]


def test_scores_of_all_runs_share_a_table():
    def scores(*given):
        return scores_as_json([Score(name, *values, frames=9, patients=3) for name, *values in given])

    given = {
        "one": {"trained": scores(("knn/accuracy", 0.5, 0.4, 0.6), ("own", 2.0, np.nan, np.nan))},
        "other": {"test": scores(("hc/mae_mm", 3.0, 1.0, 5.0), ("dice/mean", np.nan, np.nan, np.nan))},
    }
    nothing = {"config": {}, "datasets": [], "results": {}, "series": {}, "frames": None, "pictures": {}}
    table = tables.score_table([Run(name=name, scores=columns, **nothing) for name, columns in given.items()])
    assert table.groups == [("one", ["trained"]), ("other", ["chosen model"])]
    headlines = dict(table.headlines)
    assert list(headlines) == ["kNN accuracy", "Dice", "HC error (mm)"]
    assert headlines["kNN accuracy"][0].whisker == (40.0, 50.0, 60.0)
    assert headlines["kNN accuracy"][1] is None
    assert headlines["HC error (mm)"][1] == tables.Cell("3.000 (1.000 to 5.000)", "9 frames of 3 patients", None)
    assert headlines["Dice"][1].text == "not defined"
    assert dict(table.details)["own"][0].text == "2.000 (one patient)"


def test_confusion_leaves_out_what_does_not_occur(run):
    found = tables.confusion(read_run(run))
    # Of three anatomies, the second is neither true nor predicted.
    assert found.names == ["4CH", "BG"]
    assert found.rows == [("4CH", 3, [(2, 7), (1, 3)]), ("BG", 1, [(0, 0), (1, 10)])]
    assert (found.right, found.frames) == (3, 4)


def test_a_run_that_scored_no_frame_has_no_confusion_matrix(run):
    read = read_run(run)
    nothing = {"anatomies": ["4CH"], "knn_confusion": [[0]]}
    assert tables.confusion(dataclasses.replace(read, results=nothing)) is None


def test_an_anatomy_that_is_rare_in_the_data_and_common_in_batches_is_named(run):
    read = read_run(run)
    assert tables.composition(read).repeated == []
    # 2% of the frames, and 10% of the batches.
    read.results["batches"] |= {"training_frames": [2, 60, 38], "drawn": [50, 250, 200]}
    (found,) = tables.composition(read).repeated
    assert found == (
        "4CH is rare in the data and common in batches: 2.0% of the training frames, 10.0% of the frames in batches. "
        "On average each of its 2 frames was drawn 25.0 times"
    )


def test_a_cell_of_the_confusion_matrix_has_its_frames(run):
    frames = frames_of()
    rows = [("F003", "4CH", "4CH"), ("F001", "4CH", "4CH"), ("F002", "4CH", "BG"), ("ZZ", "BG", "BG")]
    write_frames(
        run / FRAMES_FILE,
        [{"frame": f, "patient": "P", "label": label, "prediction": guess} for f, label, guess in rows],
    )
    page = page_of(run)
    (cells,) = data_in(page)["cells"]
    assert cells == {
        "names": ["4CH", "BG"],
        "ids": ["F003", "F001", "F002", "ZZ"],
        "true": [0, 0, 0, 1],
        "predicted": [0, 0, 1, 1],
        "places": [frames.frame_ids.tolist().index(f) for f in ("F003", "F001", "F002")] + [-1],
    }
    # One button for each cell with frames; the matrix is [[2, 1], [0, 1]].
    buttons = [b for b in page.all("button") if b.get("class") == "cell"]
    assert [(b["data-true"], b["data-predicted"]) for b in buttons] == [("0", "0"), ("0", "1"), ("1", "1")]
    assert buttons[1]["aria-label"] == "1: 4CH taken for BG"
    # Frames of other results are not shown.
    write_frames(run / FRAMES_FILE, [dict(zip(("frame", "patient", "label", "prediction"), "abcd", strict=True))])
    assert data_in(page_of(run))["cells"] == [None]


def test_long_curves_keep_their_spikes():
    values = np.zeros(100_000)
    values[[31_415, 92_653]] = 9, -9
    values[50_000] = np.nan
    kept = payload.thinned(values, 2_000)
    assert len(kept) <= 2_000
    assert {31_415, 92_653, 50_000} <= set(kept.tolist())
    assert payload.thinned(values[:2_000], 2_000).tolist() == list(range(2_000))


def test_an_unwritable_page_is_one_warning_and_the_run_survives(run, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "write_page", full)
    assert writing.leave_in(run, frames_of()) is None
    said = capsys.readouterr().err
    assert said.startswith("warning: the run is complete")
    assert "No space left on device" in said
    assert said.count("\n") == 1
    monkeypatch.undo()
    assert writing.leave_in(run, frames_of()) == run / "report.html"


def test_faults_of_ours_are_not_hidden(run, monkeypatch):
    monkeypatch.setattr(payload, "panels", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        writing.leave_in(run)


def test_a_warning_of_what_a_run_started_from_is_on_the_page_and_the_terminal(tmp_path, capsys):
    folder = make_run(tmp_path / "run")
    results = json.loads((folder / "results.json").read_text())
    results["initial"] = {"source": "runs/a", "loaded": "encoder", "new": "optimiser state"}
    for warning in (None, "Frames are <made> square by squash here."):
        results["initial"] |= {} if warning is None else {"warning": warning}
        (folder / "results.json").write_text(json.dumps(results))
        page = report.write_report([folder]).read_text(encoding="utf-8")
        shown = '<p class="note">Frames are &lt;made&gt; square by squash here.</p>'
        assert (shown in page) == (warning is not None)
        report_initial(results["initial"])
        assert ("\nwarning: Frames are <made> square" in capsys.readouterr().out) == (warning is not None)


def test_the_page_explains_untrained_scores_of_a_run_that_started_from_another(tmp_path):
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "second")
    path = second / "results.json"
    results = json.loads(path.read_text())
    results["untrained"] = results["trained"]
    results["initial"] = {"source": str(first), "loaded": "encoder", "new": "optimiser state"}
    path.write_text(json.dumps(results))
    sentence = ": the encoder that the run started from, before its first step."
    assert sentence not in report.write_report([first]).read_text(encoding="utf-8")
    assert f"<em>untrained</em>{sentence}" in report.write_report([second]).read_text(encoding="utf-8")
    both = report.write_report([first, second], tmp_path / "both.html").read_text(encoding="utf-8")
    assert both.count(sentence) == 1
    assert f"<em>untrained</em> of second{sentence}" in both
