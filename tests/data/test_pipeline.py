"""Batches as the devices get them."""

import numpy as np
import pytest

from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.data.pipeline import batches
from awcl_jax.data.sampler import BatchPlan
from awcl_jax.runtime.errors import InputError

pytestmark = pytest.mark.quick

N, BATCH = 60, 8
LABELS = np.where(np.arange(N) % 7 == 0, UNLABELLED, np.arange(N) % 4)
SCANS = np.arange(N) // 3


class Numbers:
    """Every pixel of a frame's picture is the frame's number."""

    def read(self, frames):
        return np.broadcast_to(frames.astype(np.uint8)[:, None, None], (len(frames), 2, 3)).copy()


class Broken(Numbers):
    """One frame cannot be read."""

    def read(self, frames):
        if 17 in frames:
            raise InputError("Cannot read frame 'f17' of /data: prepare the dataset again.")
        return super().read(frames)


def plan_of(**options) -> BatchPlan:
    return BatchPlan(LABELS, SCANS, BATCH, 1, **({"units_per_class": 2} | options))


def take(plan, reader=None, **options):
    """All batches of steps 0 to 6 (by default)."""
    options = {"labels": LABELS, "scans": SCANS, "start": 0, "stop": 6} | options
    return list(batches(plan, reader or Numbers(), **options))


def same(a, b) -> bool:
    return (
        a.step == b.step
        and a.composition == b.composition
        and all(np.array_equal(a.arrays[name], b.arrays[name]) for name in a.arrays | b.arrays)
    )


def test_a_batch_shows_the_frames_of_the_plan():
    plan = plan_of()
    for step, batch in enumerate(take(plan)):
        frames = plan.frames(step)
        assert batch.step == step
        np.testing.assert_array_equal(batch.arrays["image"][:, 1, 2], frames)
        np.testing.assert_array_equal(batch.arrays["label"], LABELS[frames])
        np.testing.assert_array_equal(batch.arrays["frame"], np.stack([frames, frames], axis=1))
        np.testing.assert_array_equal(batch.arrays["row"], np.arange(BATCH))
        assert batch.arrays["image"].shape == (BATCH, 2, 3)
        assert {name: array.dtype for name, array in batch.arrays.items()} == {
            "image": np.uint8,
            "label": np.int32,
            "frame": np.int32,
            "row": np.int32,
        }


def test_cross_scan_batches_show_the_partner_as_second_view():
    plan = plan_of(pairs="cross_scan")
    for step, batch in enumerate(take(plan)):
        image = batch.arrays["image"]
        assert image.shape == (BATCH, 2, 2, 3)
        np.testing.assert_array_equal(image[:, 0, 0, 0], plan.frames(step))
        np.testing.assert_array_equal(image[:, 1, 0, 0], plan.partners(step))
    assert (plan.frames(0) != plan.partners(0)).any()


def test_a_batch_has_the_fans_of_its_images_if_they_are_asked_for():
    def fans(frames):
        return np.repeat(frames[:, None], 6, axis=1).astype(np.float32)

    for plan in (plan_of(), plan_of(pairs="cross_scan")):
        for batch in take(plan, fans=fans, process=1, processes=2):
            image, found = batch.arrays["image"], batch.arrays["fans"]
            assert (found.shape, found.dtype) == ((*image.shape[:-2], 6), np.float32)
            np.testing.assert_array_equal(found, np.broadcast_to(image[..., :1, 0], found.shape))


def test_a_batch_says_what_it_was_composed_of():
    plan = plan_of(unlabelled_share=0.25)
    frames = plan.frames(0)
    labels = LABELS[frames]
    (batch,) = take(plan, stop=1)
    # An anchor of a labelled frame has both views of the other frames of its label, and its own other view.
    positives = [2 * np.sum(labels == label) - 1 if label != UNLABELLED else 1 for label in labels]
    assert batch.composition["positives"] == pytest.approx(np.mean(positives))
    assert batch.composition["anatomies"] == len(set(labels) - {UNLABELLED})


def test_a_batch_counts_positives_by_every_label_of_its_frames():
    coarse = np.where(LABELS == UNLABELLED, UNLABELLED, 10)  # one region of all four anatomies
    plan = plan_of(unlabelled_share=0.25)
    (fine,), (both,) = (take(plan, stop=1, labels=of) for of in (LABELS, np.stack([LABELS, coarse], axis=1)))
    labelled = int((LABELS[plan.frames(0)] != UNLABELLED).sum())
    assert both.composition["positives"] == (labelled * (2 * labelled - 1) + BATCH - labelled) / BATCH
    assert both.composition["positives"] > fine.composition["positives"]
    assert both.composition["own_view_only"] == 1 - labelled / BATCH


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("pairs", ["frame", "cross_scan"])
def test_the_processes_rows_laid_end_to_end_are_the_global_batch(processes, pairs):
    plan = plan_of(pairs=pairs)
    parts = [take(plan, process=process, processes=processes) for process in range(processes)]
    for whole, *shares in zip(take(plan), *parts, strict=True):
        for name, array in whole.arrays.items():
            assert [len(share.arrays[name]) for share in shares] == [BATCH // processes] * processes
            np.testing.assert_array_equal(np.concatenate([share.arrays[name] for share in shares]), array)
        assert all(share.composition == whole.composition for share in shares)


def test_a_process_reads_only_its_own_rows():
    class Counting(Numbers):
        count = 0

        def read(self, frames):
            self.count += len(frames)
            return super().read(frames)

    reader = Counting()
    take(plan_of(), reader, process=1, processes=4, threads=1)
    assert reader.count == 6 * BATCH // 4


@pytest.mark.parametrize(("threads", "read_ahead"), [(1, 1), (2, 1), (8, 16)])
def test_threads_and_reading_ahead_change_nothing(threads, read_ahead):
    plan = plan_of()
    other = take(plan, threads=threads, read_ahead=read_ahead)
    assert all(same(a, b) for a, b in zip(take(plan), other, strict=True))


@pytest.mark.parametrize("mode", ["balanced", "natural"])
@pytest.mark.parametrize("start", [1, 5, 11])
def test_resumed_batches_are_those_of_a_run_never_stopped(start, mode):
    plan = plan_of(mode=mode)
    whole = take(plan, stop=12)
    assert all(same(a, b) for a, b in zip(whole[start:], take(plan, start=start, stop=12), strict=True))


def test_a_finished_run_has_no_batches_left():
    assert take(plan_of(), start=6, stop=6) == []


def test_a_batch_that_does_not_divide_by_the_processes_is_refused():
    with pytest.raises(InputError, match=r"batch size must be divisible by the 3 processes; got 8"):
        take(plan_of(), processes=3)


@pytest.mark.parametrize("threads", [1, 4])
def test_a_readers_error_reaches_the_consumer_as_it_was(threads):
    with pytest.raises(InputError) as caught:
        take(plan_of(mode="natural"), Broken(), stop=8, threads=threads)
    assert str(caught.value) == "Cannot read frame 'f17' of /data: prepare the dataset again."
