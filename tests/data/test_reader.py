"""Frames by position: the right picture, grey, square, from many threads, and from memory."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from awcl_jax.data.reader import FrameReader
from awcl_jax.data.scans import ScanIndex
from awcl_jax.data.square import ASPECTS
from awcl_jax.runtime.errors import InputError
from tests.helpers.frames import frame_record, speckle

NAMES = {"train": [f"f{number}" for number in range(12)], "test": [f"t{number}" for number in range(5)]}


def square(name: str) -> np.ndarray:
    """A picture [32, 32] that only this name has."""
    return speckle(name)[:, :32]


@pytest.fixture
def dataset(prepare_frames) -> Path:
    """Frames of 32 x 32 pixels, with masks: the picture's bright half."""
    splits = {
        split: [
            frame_record(name, f"{split} {name}", image=square(name), mask=(square(name) > 127).astype(np.uint8))
            for name in names
        ]
        for split, names in NAMES.items()
    }
    return prepare_frames(masks=True, **splits)


def test_frames_are_those_of_the_index(dataset):
    index = ScanIndex.from_dataset(dataset)
    part = index.take(np.array([14, 2, 2, 0, 16]))
    images = FrameReader(part, size=32).read(np.arange(5))
    for image, name in zip(images, ["t2", "f2", "f2", "f0", "t4"], strict=True):
        np.testing.assert_array_equal(image, square(name))


@pytest.mark.parametrize("cache_mb", [0, 1])
def test_any_order_any_number_of_times(dataset, cache_mb):
    reader = FrameReader(ScanIndex.from_dataset(dataset), size=32, cache_mb=cache_mb)
    for frames in ([3, 1], [1, 3, 3], [16, 0], []):
        images = reader.read(np.array(frames, np.int64))
        expected = [square((NAMES["train"] + NAMES["test"])[frame]) for frame in frames]
        np.testing.assert_array_equal(images, np.reshape(expected, (-1, 32, 32)))


def test_smaller_is_the_mean_of_pixels(dataset):
    images = FrameReader(ScanIndex.from_dataset(dataset), size=8).read(np.array([4]))
    means = square("f4").astype(float).reshape(8, 4, 8, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(images[0], means, atol=0.5)


def test_larger_is_linear(prepare_frames):
    ramp = np.tile(np.arange(0, 160, 10, dtype=np.uint8), (16, 1))  # 16 x 16, 10 grey levels a pixel
    path = prepare_frames(train=[frame_record("x", image=ramp)])
    image = FrameReader(ScanIndex.from_dataset(path), size=32).read(np.array([0]))[0]
    # Pixel centres of the twice as fine grid lie a quarter of a pixel to either side; the edge is repeated.
    expected = np.clip((np.arange(32) / 2 - 0.25) * 10, 0, 150)
    np.testing.assert_allclose(image, np.tile(expected, (32, 1)), atol=0.51)


def test_any_shape_becomes_a_square(prepare_frames):
    path = prepare_frames(train=[frame_record("x"), frame_record("y", "q", image=speckle("y").T.copy())])
    assert FrameReader(ScanIndex.from_dataset(path), size=24).read(np.array([0, 1])).shape == (2, 24, 24)


def test_masks_take_the_nearest_class(dataset):
    index = ScanIndex.from_dataset(dataset)
    mask = square("f4") > 127
    for size, expected in ((32, mask), (64, mask.repeat(2, axis=0).repeat(2, axis=1))):
        reader = FrameReader(index, size=size)
        np.testing.assert_array_equal(reader.read_masks(np.array([4]))[0], expected)
        assert reader.read(np.array([4]))[0].max() > 1, "image and mask are kept apart"


def test_smaller_masks_take_the_class_at_the_centre(prepare_frames):
    mask = np.random.default_rng(0).integers(0, 2, (24, 24), np.uint8)
    path = prepare_frames(masks=True, train=[frame_record("x", image=mask * 255, mask=mask)])
    # A third of the size: the middle one of each three pixels, for the upper left one would be a shift.
    np.testing.assert_array_equal(
        FrameReader(ScanIndex.from_dataset(path), size=8).read_masks(np.array([0]))[0], mask[1::3, 1::3]
    )


def test_masks_where_there_are_none(prepare_frames):
    reader = FrameReader(ScanIndex.from_dataset(prepare_frames(train=[frame_record("x")])))
    assert not reader.has_masks
    with pytest.raises(InputError, match="has no masks"):
        reader.read_masks(np.array([0]))


def test_pixel_sizes_follow_the_resize_on_either_axis(prepare_frames):
    # 32 x 40 pixels of 0.5 mm are 16 x 20 mm; as 8 x 8 pixels, 2 mm high and 2.5 mm wide.
    path = prepare_frames(train=[frame_record("x"), frame_record("y", "q", pixel_mm=float("nan"))])
    sizes = FrameReader(ScanIndex.from_dataset(path), size=8).pixel_sizes(np.array([0, 1, 0]))
    np.testing.assert_allclose(sizes, [[2.0, 2.5], [np.nan, np.nan], [2.0, 2.5]])


@pytest.mark.parametrize("aspect", ASPECTS)
def test_an_ellipse_keeps_its_millimetres_in_the_square(prepare_frames, aspect):
    # Semi-axes of 30 and 50 mm, drawn at 0.5 mm on 160 x 240 pixels.
    rows, columns = (np.indices((160, 240)) - np.array([80, 120])[:, None, None]) * 0.5
    mask = ((rows / 30) ** 2 + (columns / 50) ** 2 <= 1).astype(np.uint8)
    path = prepare_frames(masks=True, train=[frame_record("x", image=mask * 200, mask=mask)])
    reader = FrameReader(ScanIndex.from_dataset(path), size=96, aspect=aspect)
    (head,), (size,) = reader.read_masks(np.array([0])), reader.pixel_sizes(np.array([0]))
    extent = np.array([np.ptp(at) + 1 for at in np.nonzero(head)]) * size
    np.testing.assert_allclose(extent, [60, 100], atol=size.max())
    assert head.sum() * size.prod() == pytest.approx(np.pi * 30 * 50, rel=0.01)


def test_measures_of_a_dataset_that_has_none(dataset):
    reader = FrameReader(ScanIndex.from_dataset(dataset), size=8)
    np.testing.assert_array_equal(reader.measures("hc_mm", np.array([0, 3])), [np.nan, np.nan])
    for read in (reader.pixel_sizes, lambda frames: reader.measures("hc_mm", frames)):
        with pytest.raises(IndexError, match="Frames must be from 0 to 16"):
            read(np.array([17]))


def test_names_of_masks(dataset, prepare_frames):
    assert FrameReader(ScanIndex.from_dataset(dataset)).mask_names == ("background", "brain")
    bare = prepare_frames("bare", train=[frame_record("x")])
    assert FrameReader(ScanIndex.from_dataset(bare)).mask_names == ()


def test_overlays_are_masked_on_demand_and_masks_stay(prepare_frames):
    picture = np.zeros((64, 80), np.uint8)
    picture[8:60, 20:70] = np.random.default_rng(0).integers(30, 200, (52, 50))
    written = picture.copy()
    written[2:4, 2:14] = 255
    mask = np.ones_like(picture)
    index = ScanIndex.from_dataset(prepare_frames(masks=True, train=[frame_record("x", image=written, mask=mask)]))
    for reader, expected in (
        (FrameReader(index, size=32), written),
        (FrameReader(index, size=32, mask_overlays=True), picture),
    ):
        np.testing.assert_array_equal(
            reader.read(np.array([0]))[0], cv2.resize(expected, (32, 32), interpolation=cv2.INTER_AREA)
        )
        assert reader.read_masks(np.array([0])).all()


@pytest.mark.parametrize("cache_mb", [0, 1])
def test_threads_agree(dataset, cache_mb):
    index = ScanIndex.from_dataset(dataset)
    reader = FrameReader(index, size=32, cache_mb=cache_mb)
    draws = [np.random.default_rng(seed).integers(0, len(index), 16) for seed in range(60)]
    pictures = np.stack([square(name) for name in index.frame_ids])
    with ThreadPoolExecutor(8) as pool:
        for frames, images in zip(draws, pool.map(reader.read, draws), strict=True):
            np.testing.assert_array_equal(images, pictures[frames])


def test_frames_are_kept_only_when_all_fit(dataset, monkeypatch):
    index = ScanIndex.from_dataset(dataset)
    decoded = []
    monkeypatch.setattr(cv2, "imdecode", lambda *args, decode=cv2.imdecode: decoded.append(1) or decode(*args))
    # 17 frames of 32 x 32 bytes are 0.0166 MiB.
    for cache_mb, decodings in ((0.0167, 2), (0.0165, 4)):
        decoded.clear()
        reader = FrameReader(index, size=32, cache_mb=cache_mb)
        for _ in range(2):
            reader.read(np.array([0, 5]))
        assert len(decoded) == decodings


def test_what_is_read_may_be_written_to(dataset):
    reader = FrameReader(ScanIndex.from_dataset(dataset), size=32)
    reader.read(np.array([0]))[...] = 0
    np.testing.assert_array_equal(reader.read(np.array([0]))[0], square("f0"))


@pytest.mark.parametrize("frame", [-1, 17])
def test_positions_outside_of_the_index(dataset, frame):
    with pytest.raises(IndexError, match="Frames must be from 0 to 16"):
        FrameReader(ScanIndex.from_dataset(dataset)).read(np.array([0, frame]))


def test_an_unreadable_record_is_named(dataset):
    index = ScanIndex.from_dataset(dataset)
    (records,) = dataset.glob("*test.array_record*")
    records.write_bytes(b"\0" * records.stat().st_size)
    with pytest.raises(InputError, match=rf"frame 't2' \(record 2 of split 'test'\) of {dataset}"):
        FrameReader(index).read(np.array([0, 14]))


def test_a_picture_that_is_none_is_named(prepare_frames):
    path = prepare_frames(train=[frame_record("x"), frame_record("y", "q", image=b"\x89PNG no picture")])
    with pytest.raises(InputError, match=r"frame 'y' \(record 1 of split 'train'\).*not an 8-bit grey PNG"):
        FrameReader(ScanIndex.from_dataset(path)).read(np.array([0, 1]))


def test_a_dataset_prepared_anew_is_noticed(prepare_frames):
    index = ScanIndex.from_dataset(prepare_frames("one", train=[frame_record("x"), frame_record("y")]))
    other = prepare_frames("two", train=[frame_record("y"), frame_record("x")])
    for file in other.glob("*array_record*"):
        file.replace(index.path / file.name)
    with pytest.raises(InputError, match=r"frame 'x'.*found 'y' instead"):
        FrameReader(index).read(np.array([0]))


@pytest.mark.parametrize(("size", "cache_mb"), [(0, 1), (8, -1)])
def test_settings_that_cannot_work(dataset, size, cache_mb):
    with pytest.raises(InputError, match="got"):
        FrameReader(ScanIndex.from_dataset(dataset), size=size, cache_mb=cache_mb)


def test_real_frames_equal_their_files(real_data, real_dataset):
    index = ScanIndex.from_dataset(real_dataset)
    frames = np.random.default_rng(0).choice(len(index), 20, replace=False)
    images = FrameReader(index, size=256).read(frames)
    for image, frame_id in zip(images, index.frame_ids[frames], strict=True):
        file = real_data / "FETAL_PLANES_DB" / "Images" / f"{frame_id}.png"
        np.testing.assert_array_equal(image, cv2.imread(str(file), cv2.IMREAD_GRAYSCALE))
