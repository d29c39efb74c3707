"""The map of frames: what it takes from the data, and that its file tells the same."""

import cv2
import numpy as np
import pytest

from awcl_jax.data import selection
from awcl_jax.evaluate.frozen import cached_features, downsampled_pixels
from awcl_jax.report.embedding_map import LABELS, FrameMap, Label, draw_frames
from awcl_jax.runtime.errors import InputError

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def data(phantom):
    return selection.select(phantom, size=48, cache_mb=64, val_share=0.25, seed=0)


@pytest.fixture(scope="module")
def made(data):
    drawn = draw_frames(data, 40, seed=0)
    return drawn, FrameMap.of(drawn, downsampled_pixels, seed=0)


def test_test_frames_come_first_and_the_others_after(data):
    drawn = draw_frames(data, 40, seed=0)
    assert list(drawn) == ["test", "validation", "training"]
    sizes = {purpose: frames.size for purpose, (_, frames) in drawn.items()}
    assert sizes["test"] == 40
    assert sizes["validation"] + sizes["training"] == 40
    for part, frames in drawn.values():
        assert len(set(frames.tolist())) == frames.size
        assert frames.max() < len(part.index)
    everything = draw_frames(data, 10_000, seed=0)
    for part, frames in everything.values():
        assert sorted(frames.tolist()) == list(range(len(part.index)))


def test_each_frame_tells_whose_it_is(made):
    drawn, found = made
    row = 0
    for purpose, (part, frames) in drawn.items():
        for frame in frames.tolist():
            index = part.index
            fine, coarse = index.fine[frame], index.coarse[frame]
            expected = {
                "anatomy": index.fine_names[fine] if fine >= 0 else index.coarse_names[coarse] if coarse >= 0 else None,
                "scan": index.scan_names[index.scans[frame]],
                "machine": index.machine_names[index.machines[frame]],
                "split": purpose,
            }
            assert found.frame_ids[row] == index.frame_ids[frame]
            for name, text in expected.items():
                code = found.labels[name].codes[row]
                assert (found.labels[name].names[code] if code >= 0 else None) == text
            row += 1
    assert row == len(found.frame_ids) == len(found.places)


def test_neighbours_are_of_the_scan_or_of_others(made):
    _, found = made
    scans = found.labels["scan"].codes
    for near, same in ((found.same_scan, True), (found.other_scans, False)):
        for i, frames in enumerate(near.frames):
            assert ((scans[frames[frames >= 0]] == scans[i]) == same).all()
            assert i not in frames


def test_thumbnails_are_the_frames_in_their_places(made):
    drawn, found = made
    part, frames = drawn["test"]
    sheet = cv2.imdecode(np.frombuffer(found.thumbnails.sheets[0], np.uint8), cv2.IMREAD_GRAYSCALE)
    edge = found.thumbnails.edge
    assert (edge, found.thumbnails.count) == (48, 80)
    for at in (0, 15, 16, 39):
        row, column = divmod(at, 16)
        shown = sheet[row * edge : (row + 1) * edge, column * edge : (column + 1) * edge].astype(float)
        given = part.reader.read(frames[at : at + 1])[0].astype(float)
        assert np.abs(shown - given).mean() < 12, "but for what WebP loses"
        assert np.corrcoef(shown.ravel(), given.ravel())[0, 1] > 0.95


def test_its_file_tells_the_same(made, tmp_path):
    _, found = made
    found.save(tmp_path / "map.npz")
    assert [file.name for file in tmp_path.iterdir()] == ["map.npz"]
    again = FrameMap.load(tmp_path / "map.npz")
    np.testing.assert_array_equal(again.frame_ids, found.frame_ids)
    np.testing.assert_array_equal(again.places, found.places)
    for name in LABELS:
        np.testing.assert_array_equal(again.labels[name].codes, found.labels[name].codes)
        assert again.labels[name].names == found.labels[name].names
    np.testing.assert_array_equal(again.other_scans.frames, found.other_scans.frames)
    np.testing.assert_array_equal(again.same_scan.cosines, found.same_scan.cosines)
    assert again.thumbnails == found.thumbnails


def test_files_that_are_no_map_are_refused(made, tmp_path):
    path = tmp_path / "map.npz"
    path.write_bytes(b"no archive")
    with pytest.raises(InputError, match="is not a map of frames"):
        FrameMap.load(path)
    np.savez(path, frame_ids=np.array(["a"]))
    with pytest.raises(InputError, match="is not a map of frames"):
        FrameMap.load(path)
    made[1].save(path)
    with np.load(path) as stored:
        columns = dict(stored)
    for name, value in (("places", columns["places"][:-1]), ("same_scan_frames", columns["same_scan_frames"] + 80)):
        np.savez(path, **(columns | {name: value}))
        with pytest.raises(InputError, match="is not a map of frames"):
            FrameMap.load(path)


def test_what_is_not_known_has_no_name():
    label = Label.of(["b", "", "a", "b"])
    assert label.names == ("a", "b")
    assert label.codes.tolist() == [1, -1, 0, 1]


def test_features_are_computed_once_for_each_frame(data):
    asked = []

    def features(reader, frames):
        asked.append(frames.tolist())
        return downsampled_pixels(reader, frames)

    known, reader = cached_features(features), data.test.reader
    for frames in (np.array([3, 1, 3]), np.array([1, 2]), np.array([2])):
        np.testing.assert_array_equal(known(reader, frames), downsampled_pixels(reader, frames))
    known(data.train.reader, np.array([3]))
    assert asked == [[3, 1], [2], [3]]
