"""The file of bad steps, with runs that die and resume."""

import json

import numpy as np
import pytest

from awcl_jax.train.bad_steps import FILE, BadSteps, trailing

pytestmark = pytest.mark.quick


def lines(workdir):
    return [json.loads(line) for line in (workdir / FILE).read_text().splitlines()]


def test_nothing_is_made_without_a_bad_step(tmp_path):
    assert BadSteps(tmp_path, start_step=0).in_a_row == 0
    assert list(tmp_path.iterdir()) == []


def test_a_line_names_step_numbers_and_frames(tmp_path):
    bad = BadSteps(tmp_path, start_step=0)
    bad.write(7, loss=float("nan"), gradient_norm=np.inf, frames=["a", "b"])
    assert lines(tmp_path) == [{"step": 7, "loss": "nan", "gradient_norm": "inf", "frames": ["a", "b"]}]


@pytest.mark.parametrize("torn", ["", '{"step": 9, "lo', "\0\0"])
def test_a_resumed_run_writes_no_step_twice_and_keeps_the_count(tmp_path, torn):
    bad = BadSteps(tmp_path, start_step=0)
    for step in (2, 4, 5, 6, 8):
        bad.write(step, loss=np.nan, gradient_norm=np.nan, frames=[])
    with (tmp_path / FILE).open("a") as file:
        file.write(torn)
    before = (tmp_path / FILE).read_bytes()
    assert BadSteps(tmp_path, start_step=6, writes=False).in_a_row == 3
    assert (tmp_path / FILE).read_bytes() == before
    resumed = BadSteps(tmp_path, start_step=6)
    assert resumed.in_a_row == 3
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 5, 6]
    assert BadSteps(tmp_path, start_step=3).in_a_row == 0


def test_only_one_process_writes(tmp_path):
    BadSteps(tmp_path, start_step=0, writes=False).write(1, loss=np.nan, gradient_norm=0, frames=[])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("steps", "last", "count"), [([], 0, 0), ([1, 2, 3], 3, 3), ([1, 2, 3], 4, 0), ([1, 3, 4], 4, 2), ([4, 3], 4, 2)]
)
def test_steps_without_a_gap_are_counted_backwards(steps, last, count):
    assert trailing(steps, last) == count
