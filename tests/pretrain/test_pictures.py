"""Pictures of a finished run, for batches that are out of the ordinary."""

import numpy as np

from awcl_jax.data import selection
from awcl_jax.pretrain import pictures
from awcl_jax.report import drawing
from tests.helpers.frames import frame_record


def test_a_batch_without_a_pair_shows_the_views_of_its_frames(prepare_frames, tmp_path, monkeypatch):
    parts = ("train", "val", "test")
    path = prepare_frames(**{part: [frame_record(f"{part}{n}", f"{part}{n}") for n in range(12)] for part in parts})
    train = selection.select(path, size=16, cache_mb=1, val_share=0.1, seed=0).train
    plan = selection.make_plan(
        train.index,
        train.index.scans,  # each has one frame
        "frame",
        batch_size=4,
        seed=0,
        mode="natural",
        anatomies=None,
        scans_per_anatomy=2,
        unlabelled_share=0.0,
        pairs="frame",
    )
    drawn = []
    monkeypatch.setattr(drawing, "montage_pairs", lambda *given, cross_scan: drawn.append((*given, cross_scan)))
    pictures._pairs(train, plan, tmp_path / "pairs.png")
    ((images, captions, _, cross_scan),) = drawn
    assert images.shape == (4, 2, 16, 16)
    np.testing.assert_array_equal(images[:, 0], images[:, 1])
    assert all(left == right for left, right in captions)
    assert not cross_scan.any()
