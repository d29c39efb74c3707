"""Scores by ultrasound machine."""

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from awcl_jax.report import command
from awcl_jax.report.contents import Run, read_run
from awcl_jax.report.machines import by_machine
from awcl_jax.train import run_folder
from tests.helpers.report_runs import make_run

pytestmark = pytest.mark.quick

BLANK = Run("", {}, [], {}, {}, {}, None, {})
MACHINES = ["E6", "S10", "E6", "", "E6"]  # of 60 frames in turn


def planes():
    """Rows of 60 frames of 20 patients; one anatomy only on one machine, and one that is only predicted."""
    rng = np.random.default_rng(0)
    labels = rng.choice(["brain", "femur"], 60)
    predictions = np.where(rng.random(60) < 0.7, labels, rng.choice(["brain", "femur", "spine"], 60))
    rows = []
    for i in range(60):
        machine = MACHINES[i % 5]
        label = "heart" if machine == "S10" and i % 10 == 1 else labels[i]
        found = {"label": label, "prediction": predictions[i]}
        rows.append({"frame": f"F{i}", "patient": f"P{i // 3}", "machine": machine} | found)
    return rows


def run_of(rows, **results):
    return dataclasses.replace(BLANK, test_frames=rows, results=results)


def test_each_machine_has_the_scores_of_its_own_frames():
    rows = planes()
    found = by_machine(run_of(rows, machines={"E6": 100, "Elsewhere": 7}))
    assert [(m.name, m.training_frames, m.frames) for m in found] == [
        ("E6", 100, 36),
        ("not known", 0, 12),
        ("S10", 0, 12),
    ]
    for machine in found:
        own = [row for row in rows if (row["machine"] or "not known") == machine.name]
        labels, predictions = ([row[column] for row in own] for column in ("label", "prediction"))
        accuracy = accuracy_score(labels, predictions)
        macro = f1_score(labels, predictions, labels=np.unique(labels), average="macro", zero_division=0)
        assert list(machine.scores) == ["accuracy", "macro-F1"]
        assert machine.scores["accuracy"].text.startswith(f"{accuracy:.3f} (")
        assert machine.scores["macro-F1"].text.startswith(f"{macro:.3f} (")
        assert machine.patients == len({row["patient"] for row in own})


def test_dice_is_scored_by_machine_and_a_machine_without_any_is_counted():
    rows = [
        {"frame": f"F{i}", "patient": f"P{i}", "machine": machine, "dice/head": dice}
        for i, (machine, dice) in enumerate([("E6", "0.5"), ("E6", ""), ("E6", "1.0"), ("S10", "")])
    ]
    first, second = by_machine(run_of(rows))
    assert (first.name, first.frames, first.training_frames) == ("E6", 3, None)
    assert first.scores["mean Dice"].text.startswith("0.750 (")
    assert (second.name, second.frames, second.scores) == ("S10", 1, {})


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{name: cell for name, cell in row.items() if name != "machine"} for row in planes()],  # of an earlier version
        [row | {"machine": "E6"} for row in planes()],
        [row | {"machine": f"M{i}"} for i, row in enumerate(planes())],
        [row | {"label": f"{i}"} for i, row in enumerate(planes() * 4)],
        [row | {f"dice/{i}": "0.5" for i in range(201)} for row in ({"machine": "a"}, {"machine": "b"})],
    ],
    ids=["no frames", "no machines", "one machine", "many machines", "many anatomies", "many structures"],
)
def test_otherwise_there_is_nothing_to_show(rows):
    assert by_machine(run_of(rows)) == []


def test_a_long_text_costs_its_own_length_only():
    """Where each text of an array takes as much as the longest, this would be 24 GB."""
    rows = [row | {"patient": f"P{i % 30}"} for i, row in enumerate(planes() * 1000)]
    rows[0] |= {"patient": "P" * 100_000, "label": "L" * 100_000}
    assert [machine.frames for machine in by_machine(run_of(rows))] == [36_000, 12_000, 12_000]


def test_the_page_has_a_table_of_machines_with_text_as_text(tmp_path):
    rows = [row | {"machine": row["machine"] and f"<b>{row['machine']}"} for row in planes()]
    with_machines, without = (make_run(tmp_path / name, frames=None) for name in ("with", "without"))
    run_folder.write_frames(with_machines / run_folder.FRAMES_FILE, rows)
    assert len(by_machine(read_run(with_machines))) == 3
    command.main([str(with_machines)])
    page = (with_machines / "report.html").read_text()
    assert "Test frames by ultrasound machine" in page
    assert "&lt;b&gt;S10" in page
    assert "<b>S10" not in page
    command.main([str(without)])
    assert "ultrasound machine" not in (without / "report.html").read_text()
    command.main([str(with_machines), str(without), f"--out={tmp_path / 'both.html'}"])
    assert (tmp_path / "both.html").read_text().count("Test frames by ultrasound machine") == 1
