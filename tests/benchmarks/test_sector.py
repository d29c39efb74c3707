"""The sector of real clips and frames against outlines drawn by eye."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import sector as benchmark


@pytest.mark.parametrize("half", benchmark.FRAMES_OF)
def test_frames_have_the_sector_that_was_drawn_by_eye(real_data: Path, half: str):
    scores = benchmark.frame_scores(real_data, half)
    assert len(scores) == (12 if half == "frames_drawn_last" else 15)
    assert np.mean([score.iou for score in scores.values()]) > 0.96
    assert min(score.iou for score in scores.values()) > 0.8
    assert np.mean([score.lost for score in scores.values()]) < 0.02


TWICE = "text, H.264 at 150 kbit/s"  # as hard as MPEG-4, in twice the time


@pytest.mark.parametrize(
    "condition",
    [
        pytest.param(name, marks=pytest.mark.release if name == TWICE else pytest.mark.slow)
        for name in benchmark.CONDITIONS
    ],
)
def test_clips_have_the_sector_that_was_drawn_by_eye(real_data: Path, condition: str):
    scores = benchmark.clip_scores(real_data, condition)
    assert len(scores) == 24
    iou, lost, text = np.array(list(scores.values())).T
    assert iou.mean() > 0.95
    assert iou.min() > 0.85
    assert lost.mean() < 0.03
    assert not (text.mean() > 0.005), "none is written about the clips as they are"
