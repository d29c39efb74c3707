"""More anatomies than have a score each."""

import numpy as np
import pytest

from awcl_jax.data.reader import FrameReader
from awcl_jax.downstream import tasks
from awcl_jax.evaluate.frozen import Evaluation, LabelledFrames
from awcl_jax.evaluate.scores import MOST_ANATOMIES

pytestmark = pytest.mark.quick


def evaluation(names: int) -> Evaluation:
    """Return the evaluation of three frames of 2 anatomies among `names`."""
    labels, reader = np.array([0, 1, 1]), FrameReader.__new__(FrameReader)  # reads nothing
    parts = [LabelledFrames(reader, np.arange(3), labels, np.array([3 * i, 3 * i + 1, 3 * i + 2])) for i in range(3)]
    named = tuple(f"plane {c}" for c in range(names))
    return Evaluation(
        lambda variables, frames: frames, 8, train=parts[0], val=parts[1], test=parts[2], names=named, neighbours=1
    )


def features(reader, frames):
    return np.eye(3, dtype=np.float32)[[0, 1, 1]][frames]


@pytest.mark.parametrize("names", [MOST_ANATOMIES, 50_000])
def test_beyond_the_limit_only_summaries_remain_and_a_line_names_the_rest(names):
    many = names > MOST_ANATOMIES
    scored = evaluation(names)
    shown = {score.name for score in scored.test_scores(features)}
    assert {"knn/accuracy", "knn/macro_f1"} <= shown
    assert ("probe/macro_f1" in shown, "knn/f1/plane 0" in shown) == (not many, not many)
    assert (scored.knn_confusion(features) is None) == many
    assert bool(scored.left_out) == many
    if many:
        assert "Of 50,000 anatomies" in scored.left_out
        assert "left out above 1,000" in scored.left_out


def test_a_crowded_picture_is_left_out_with_a_line():
    assert tasks._left_out(60, many=False, crowded=False) == ""
    assert "confusion.png is left out above 60" in tasks._left_out(61, many=False, crowded=True)
    assert "the confusion matrix are left out above 1,000" in tasks._left_out(50_000, many=True, crowded=True)
