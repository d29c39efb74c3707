"""A look at the batches before training: what it draws, what it says, and that it leaves no run."""

import re

import numpy as np
import pytest
from PIL import Image

from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.pretrain import preview
from awcl_jax.pretrain import runner as pretrain
from awcl_jax.report import drawing
from configs import fine, simclr
from tests.helpers.configurations import tiny

CROSS = {"sampler.pairs": "cross_scan"}


@pytest.fixture
def drawn(monkeypatch):
    """The arguments of the picture."""
    seen = []

    def draw(*arguments):
        seen.append(arguments)
        arguments[-1].touch()

    monkeypatch.setattr(drawing, "montage_anchors", draw)
    return seen


def test_it_describes_batches_and_compiles_no_model(phantom, tmp_path, compiled):
    config = tiny(phantom, fine)
    text = pretrain.preview(config, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        assert min(picture.size) > 500
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]
    assert not [name for name in compiled if re.search(r"step|encode|init|draw", name)]

    # Counted by slow loops over the same batches.
    setup = pretrain.set_up(config)
    index, plan = setup.data.train.index, setup.plan
    steps = min(config.train.steps, 50)
    alone, patients = [], []
    for step in range(steps):
        frames = plan.frames(step).tolist()
        labels = [int(plan.classes[frame]) for frame in frames]
        alone += [label == UNLABELLED or labels.count(label) == 1 for label in labels]
        patients.append(len({int(index.patients[frame]) for frame in frames}))
    assert f"Mean of the first {steps} batches of {config.train.steps}:" in text
    assert f"  {np.mean(alone):.0%} of the anchors have only their own other view as a positive" in text
    assert f"  {np.mean(patients):.1f} patients, " in text
    listed = re.search(r"by what they show: (.*)", text)[1].split(", ")
    assert sum(int(entry.split()[-1]) for entry in listed) == config.sampler.batch_size


@pytest.mark.parametrize(
    ("method", "fields"), [(fine, {}), (fine, CROSS), (simclr, {})], ids=["fine", "cross", "simclr"]
)
def test_anchors_are_beside_frames_of_their_label(method, fields, phantom, tmp_path, drawn):
    config = tiny(phantom, method, **fields)
    pretrain.preview(config, tmp_path / "picture.png")
    ((frames, views, positives, captions, partners, others, _),) = drawn
    assert views.shape == (len(frames), 2, config.augment.size, config.augment.size)
    assert [len(images) for images in positives] == [len(texts) for texts in others]
    for anchor, of_second, texts in zip(captions, partners, others, strict=True):
        shown = anchor.split(" ", 1)[1]
        assert {text.split(" ", 1)[1] for text in texts} <= {shown}
        if method is simclr or shown == "unlabelled":
            assert not texts
        assert of_second == "" or (fields == CROSS and of_second.split(" ", 1)[1] == shown)
    assert any(partners) == (fields == CROSS)
    assert any(others) == (method is fine)


def test_positives_of_other_scans_come_first(phantom, monkeypatch):
    monkeypatch.setattr(preview, "_POSITIVES", 99)
    # Batches in natural order have frames of one scan, too.
    setup = pretrain.set_up(tiny(phantom, fine, **{"sampler.mode": "natural", "sampler.batch_size": 96}))
    index, frames = setup.data.train.index, setup.plan.frames(0)
    mixed = 0
    for row in range(len(frames)):
        found = preview._positives(row, frames, setup.labels, index)
        same = [index.scans[frame] == index.scans[frames[row]] for frame in found]
        assert same == sorted(same)
        assert frames[row] not in found
        mixed += len(set(same)) == 2
    assert mixed


def test_both_labels_count(phantom, tmp_path, drawn):
    config = tiny(phantom, fine, **{"granularity": "both", "sampler.mode": "natural"})
    text = pretrain.preview(config, tmp_path / "picture.png")
    setup = pretrain.set_up(config)
    alone, positives, unlabelled = [], [], []
    for step in range(min(config.train.steps, 50)):
        sets = [set(row) - {UNLABELLED} for row in setup.labels[setup.plan.frames(step)].tolist()]
        others = [sum(bool(one & other) for other in sets) - bool(one) for one in sets]
        alone += [other == 0 for other in others]
        positives += [2 * other + 1 for other in others]  # of both views, and the own other view
        unlabelled += [not one for one in sets]
    assert f"  {np.mean(positives):.1f} positives of an anchor, " in text
    assert f"  {np.mean(alone):.0%} of the anchors have only their own other view as a positive" in text
    assert f"  {np.mean(unlabelled):.0%} of the frames have no label in the loss" in text


def test_anchors_are_beside_frames_of_their_coarse_label_too(phantom):
    fields = {"granularity": "both", "sampler.mode": "natural", "sampler.batch_size": 96}
    setup = pretrain.set_up(tiny(phantom, fine, **fields))
    index, frames = setup.data.train.index, setup.plan.frames(0)
    merely_coarse = 0
    for row, frame in enumerate(frames.tolist()):
        found = preview._positives(row, frames, setup.labels, index)
        assert all(index.coarse[other] == index.coarse[frame] != UNLABELLED for other in found)
        merely_coarse += any(index.fine[other] != index.fine[frame] for other in found)
    assert merely_coarse


def test_more_unlabelled_frames_than_asked_for_are_told(phantom, tmp_path, drawn):
    for ratio, told in ((1.0, False), (0.1, True)):
        text = pretrain.preview(tiny(phantom, fine, anatomy_ratio=ratio), tmp_path / "picture.png")
        assert ("\nwarning: 43% of the frames of a batch have no label, not sampler.unlabelled" in text) == told


def test_fields_without_effect_are_told(phantom, tmp_path, drawn):
    text = pretrain.preview(tiny(phantom, fine, **{"augment.erase": (0.1, 0.2)}), tmp_path / "picture.png")
    assert text.endswith(
        "\nwarning: config.augment.erase has no effect: set config.augment.erase_probability, which is 0"
    )
