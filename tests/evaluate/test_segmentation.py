"""Dice, overlap and head circumference against slow ones, and against shapes whose size is known."""

import math

import cv2
import numpy as np
import pytest
from scipy.special import ellipe

from awcl_jax.evaluate.head_circumference import agreement_scores, head_circumference
from awcl_jax.evaluate.segmentation import dice_of, false_positives, iou_of, segmentation_scores
from awcl_jax.runtime.errors import InputError

NAMES = ("background", "head", "femur")


def some_masks(seed=0, n=12):
    """Return predictions and references in which both structures are often absent."""
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, 3, (n, 6, 7)).astype(np.uint8) * (rng.random((n, 1, 1)) < 0.7)
    predictions = np.where(rng.random(masks.shape) < 0.6, masks, rng.integers(0, 3, masks.shape))
    predictions[::4] = 0
    return predictions.astype(np.uint8), masks.astype(np.uint8)


def by_name(scores):
    return {score.name: score for score in scores}


def test_overlap_is_that_of_sets_of_pixels():
    predictions, masks = some_masks()
    dice, iou, wrong = (measure(predictions, masks, classes=3) for measure in (dice_of, iou_of, false_positives))
    for frame in range(len(masks)):
        for c in (1, 2):
            p, r = ({tuple(at) for at in np.argwhere(pictures[frame] == c)} for pictures in (predictions, masks))
            found = dice[frame, c - 1], iou[frame, c - 1], wrong[frame, c - 1]
            nan = math.nan
            expected = (
                (2 * len(p & r) / (len(p) + len(r)), len(p & r) / len(p | r), nan) if r else (nan, nan, len(p) > 0)
            )
            np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_scores_by_hand():
    # Frame 0 (patient 5) shows the head in 2 pixels, of which 1 is found and 1 more marked: Dice 1/2, IoU 1/3.
    # Frame 1 (patient 8) shows the head in 1 pixel, found: 1, 1. Frame 2 (patient 8) is empty, with a pixel of head.
    masks, predictions = np.zeros((2, 3, 1, 4), np.uint8)
    masks[0, 0, :2], predictions[0, 0, 1:3] = 1, 1
    masks[1, 0, 0], predictions[1, 0, 0] = 1, 1
    predictions[2, 0, 3] = 1
    scores = by_name(segmentation_scores(predictions, masks, np.array([5, 8, 8]), names=NAMES))
    assert list(scores) == [
        *("dice/mean", "dice/head", "iou/mean", "iou/head"),
        *("false_positives/mean", "false_positives/head", "false_positives/femur"),
    ]
    values = [score.value for score in scores.values()]
    np.testing.assert_allclose(values, [3 / 4, 3 / 4, 2 / 3, 2 / 3, 1 / 2, 1, 0], rtol=1e-12)
    assert (scores["dice/head"].frames, scores["dice/head"].patients) == (2, 2)
    assert (scores["false_positives/femur"].frames, scores["false_positives/femur"].patients) == (3, 2)
    # Of two patients drawn with replacement both are the first in 1/4 of the draws, and both the other in 1/4.
    assert (scores["dice/head"].low, scores["dice/head"].high) == (0.5, 1.0)


def test_all_background_scores_0_and_no_reference_is_refused():
    _, masks = some_masks()
    scores = by_name(segmentation_scores(np.zeros_like(masks), masks, np.arange(len(masks)), names=NAMES))
    assert (scores["dice/mean"].value, scores["dice/mean"].high, scores["iou/mean"].value) == (0, 0, 0)
    assert scores["false_positives/mean"].value == 0
    with pytest.raises(InputError, match="None of the 12 reference masks shows any of head, femur"):
        segmentation_scores(masks, np.zeros_like(masks), np.arange(len(masks)), names=NAMES)


# Head circumference -------------------------------------------------------------------------------------------------


def ellipse(a, b, turn=0.0, size=(96, 96), pixel=(1.0, 1.0), centre=(47.3, 48.6)):
    """Return pixels whose middle is in an ellipse of these semi-axes in millimetres; exact, without drawing."""
    y, x = np.indices(size)
    v, u = (y - centre[1]) * pixel[0], (x - centre[0]) * pixel[1]
    p, q = u * math.cos(turn) + v * math.sin(turn), v * math.cos(turn) - u * math.sin(turn)
    return (p / a) ** 2 + (q / b) ** 2 <= 1


def exact_circumference(a, b):
    """Return 4 a E(e^2), with the complete elliptic integral."""
    return 4 * a * ellipe(1 - (b / a) ** 2)


@pytest.mark.parametrize("turn", [0.0, 0.4, 1.3])
@pytest.mark.parametrize("pixel", [(1.0, 1.0), (0.8, 1.3)])
def test_circumference_of_an_ellipse_is_found(turn, pixel):
    mask = ellipse(30.0, 23.0, turn, pixel=pixel)
    found = head_circumference(mask, np.array(pixel))
    # Through the outermost pixels themselves it would be 1.9% short.
    assert found == pytest.approx(exact_circumference(30.0, 23.0), rel=4e-3)


def test_only_the_largest_part_counts_and_holes_are_filled():
    mask = ellipse(30.0, 23.0)
    whole = head_circumference(mask, np.ones(2))
    mask[2:6, 2:6] = True
    mask[40:55, 40:50] = False
    assert head_circumference(mask, np.ones(2)) == whole


def test_a_cut_off_head_is_measured_by_its_visible_part():
    cut = ellipse(30.0, 23.0, size=(60, 96))
    assert cut[-1].any()
    assert head_circumference(cut, np.ones(2)) == pytest.approx(exact_circumference(30.0, 23.0), rel=0.02)


@pytest.mark.parametrize("case", ["empty", "speck", "line", "full"])
def test_a_mask_without_a_head_has_no_circumference(case):
    mask = np.zeros((40, 40), bool)
    if case == "speck":
        mask[7, 9] = True
    elif case == "line":
        mask[7, 4:30] = True
    elif case == "full":
        mask[:] = True
    assert math.isnan(head_circumference(mask, np.ones(2)))


def test_circumference_of_drawn_heads_is_near_theirs():
    # As a publisher draws: cv2's filled ellipse has its border on the line.
    drawn = cv2.ellipse(np.zeros((200, 240), np.uint8), ((120, 100), (120, 90), 30), 1, -1)
    assert head_circumference(drawn != 0, np.array([0.3, 0.3])) == pytest.approx(
        0.3 * exact_circumference(60.5, 45.5), rel=5e-3
    )


def test_agreement_by_hand():
    # Differences 2, -1, 5 of patients 1, 1, 2; the fourth was not measured, the fifth has no reference.
    measured = np.array([102.0, 99.0, 105.0, math.nan, 90.0])
    reference = np.array([100.0, 100.0, 100.0, 100.0, math.nan])
    scores = by_name(agreement_scores(measured, reference, np.array([1, 1, 2, 3, 3])))
    # mean 2, standard deviation 3: limits 2 -+ 5.88
    expected = {"mae_mm": 8 / 3, "bias_mm": 2, "limit_low_mm": -3.88, "limit_high_mm": 7.88, "unmeasured": 1 / 4}
    assert {name: score.value for name, score in scores.items()} == pytest.approx(expected, rel=1e-12)
    assert (scores["mae_mm"].frames, scores["mae_mm"].patients) == (3, 2)
    assert (scores["unmeasured"].frames, scores["unmeasured"].patients) == (4, 3)
    # One patient's differences are 2 and -1, the other's 5: no draw has a bias beyond 0.5 and 5.
    assert 0.5 <= scores["bias_mm"].low < 2 < scores["bias_mm"].high <= 5
    assert list(by_name(agreement_scores(np.full(3, math.nan), np.ones(3), np.arange(3)))) == ["unmeasured"]
    with pytest.raises(InputError, match="None of the 2 frames has a reference"):
        agreement_scores(np.ones(2), np.full(2, math.nan), np.arange(2))
