"""Runs side by side: their paired differences, and the reasons not to compare them."""

import dataclasses

import numpy as np
import pytest

from awcl_jax.config.downstream import default_downstream_config
from awcl_jax.evaluate import paired
from awcl_jax.report import command, comparison
from awcl_jax.report.contents import Run, read_run
from awcl_jax.runtime.errors import InputError
from awcl_jax.train import run_folder
from tests.helpers.report_runs import make_run

pytestmark = pytest.mark.quick

NAMES = np.array(["4CH", "FLP", "BG"])
BLANK = Run("", {}, [], {}, {}, {}, None, {})


def planes(seed, right):
    """Rows of 40 frames of 10 patients, of which about this share is right."""
    labels = np.random.default_rng(0).integers(0, 3, 40)
    rng = np.random.default_rng(seed)
    predictions = np.where(rng.random(40) < right, labels, rng.integers(0, 3, 40))
    return [
        {"frame": f"F{i}", "patient": f"P{i // 4}", "label": NAMES[label], "prediction": NAMES[predicted]}
        for i, (label, predicted) in enumerate(zip(labels, predictions, strict=True))
    ]


@pytest.fixture
def runs(tmp_path):
    folders = [make_run(tmp_path / name, frames=None) for name in ("first", "second", "third")]
    for folder, seed, right in zip(folders, range(3), (0.2, 0.9, 0.2), strict=True):
        run_folder.write_frames(folder / run_folder.FRAMES_FILE, planes(seed, right))
    return folders


def test_each_run_is_compared_with_the_first_on_the_same_frames(runs):
    read = [read_run(run) for run in runs]
    found = comparison.differences(read)
    assert [row.run for row in found] == ["second", "third"]
    assert {row.counts for row in found} == {"40 frames of 10 patients"}
    assert list(found[0].cells) == ["accuracy", "macro-F1"]
    # By hand: the mean of what is right.
    right = [np.mean([row["label"] == row["prediction"] for row in run.test_frames]) for run in read]
    assert found[0].cells["accuracy"].startswith(f"{right[1] - right[0]:+.3f} (+")
    assert found[0].cells["accuracy"].endswith(": better")
    assert found[1].cells["accuracy"].endswith(": no difference can be seen")
    turned = comparison.differences(read[1::-1])
    assert turned[0].cells["accuracy"].endswith(": worse")


def test_the_intervals_are_those_of_the_paired_bootstrap(runs):
    one, other = planes(1, 0.9), planes(0, 0.2)
    number = {name: i for i, name in enumerate(sorted(NAMES))}
    labels, ours, theirs = (
        np.array([number[row[column]] for row in rows])
        for rows, column in ((one, "label"), (one, "prediction"), (other, "prediction"))
    )
    wanted = paired.classification_differences(labels, ours, theirs, np.arange(40) // 4, names=sorted(NAMES))
    assert [score.value for score in comparison.frame_differences(one, other)] == [score.value for score in wanted]


def test_rows_in_another_order_are_matched_by_frame(runs):
    first, second = (read_run(run) for run in runs[:2])
    shuffled = dataclasses.replace(second, test_frames=list(reversed(second.test_frames)))
    assert comparison.differences([first, shuffled]) == comparison.differences([first, second])


def test_dice_is_compared_by_structure_and_its_mean():
    def run(name, values):
        rows = [
            {"frame": f"F{i}", "patient": f"P{i // 2}", "dice/head": str(value), "dice/femur": ""}
            for i, value in enumerate(values)
        ]
        return dataclasses.replace(BLANK, name=name, config={"task.kind": "segmentation"}, test_frames=rows)

    first, second = run("first", [0.5] * 8), run("second", [0.75] * 8)
    (found,) = comparison.differences([first, second])
    assert found.cells == {"mean Dice": "+0.250 (+0.250 to +0.250): better"}
    second.test_frames[0]["dice/head"] = ""  # not counted in one of the runs
    (found,) = comparison.differences([first, second])
    assert found.reason == "its test frames or their labels are not those of first"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"test_frames": ()}, "second has no test_frames.csv; run its command again to write it, if it has scores"),
        ({"test_frames": planes(1, 0.9)[1:]}, "its test frames or their labels are not those of first"),
        ({"config": {"task.kind": "planes"}}, "runs of another kind have other scores"),
    ],
)
def test_what_cannot_be_compared_has_a_reason(runs, change, reason):
    first, second = (read_run(run) for run in runs[:2])
    (found,) = comparison.differences([first, dataclasses.replace(second, **change)])
    assert (found.cells, found.reason) == ({}, reason)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"data": "beef"}, "used different data (fingerprints beef, 0123456789abcdef), so scores cannot be compared"),
        ({"results": {"frames": {}}}, "split the same data differently"),
        ({"config": {"task.kind": "planes"}}, "runs of different kinds (planes, pretraining)"),
        ({"seed": 1}, "have different seeds"),
        ({"eval.granularity": "coarse"}, "are scored differently (eval.granularity)"),
    ],
    ids=str,
)
def test_differences_of_data_split_and_kind_are_warned_of(runs, change, said):
    first, second = (read_run(run) for run in runs[:2])
    fields = {name: value for name, value in change.items() if name in second.config}
    whole = {name: value for name, value in change.items() if name not in second.config}
    other = dataclasses.replace(second, config={**second.config, **fields})
    found = comparison.warnings([first, dataclasses.replace(other, **whole)])
    assert len(found) == (said is not None)
    assert said is None or (said in found[0] and found[0].startswith("second and first "))


def test_the_page_has_any_number_of_runs(runs, tmp_path):
    kinds = make_run(tmp_path / "planes", config=default_downstream_config(), frames=None)
    text = command.write_report([*runs, kinds], tmp_path / "page.html").read_text()
    assert "4 runs side by side" in text
    assert text.count(": better</td>") == 2
    assert "planes and first are runs of different kinds" in text
    assert "none: runs of another kind have other scores" in text


@pytest.mark.parametrize(
    "text", ["", "frame,patient\nF1\n", "frame,label,prediction\nF1,a,b\n", "frame,patient,dice/head\nF1,P1,x\n"]
)
def test_a_damaged_table_of_frames_is_refused_in_one_line(runs, text):
    (runs[0] / run_folder.FRAMES_FILE).write_text(text)
    with pytest.raises(InputError, match=r"test_frames\.csv is not (a table|as a run writes it)"):
        read_run(runs[0])
