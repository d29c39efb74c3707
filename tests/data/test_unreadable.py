"""Frames that cannot be read: found, named, and left out as if they had never been there."""

import csv
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from awcl_jax.config.fields import to_dict
from awcl_jax.config.pretraining import default_config
from awcl_jax.data import selection
from awcl_jax.data.reader import FrameReader
from awcl_jax.data.records import Records
from awcl_jax.data.scans import ScanIndex
from awcl_jax.data.unreadable import Unreadable, find_unreadable, write_list
from awcl_jax.pretrain import runner as pretrain
from awcl_jax.runtime.errors import InputError
from awcl_jax.train import harness
from awcl_jax.train.workdir import Workdir
from configs import fine
from tests.helpers.frames import FrameSet, frame_record, speckle

PATIENTS = {"train": "abcdefgh", "val": "ij", "test": "kl"}
FLIPPED = ("b1", "e0", "k2")  # a bit of their chunk in the file
CUT, NONE, DEEP, BROKEN = "c2", "a0", "f3", "h1"  # a picture cut short, or none; a mask of 16 bits, or broken
BAD = {*FLIPPED, CUT, NONE, DEEP, BROKEN}


def records_of(patients: str, *, broken: bool, without: frozenset[str] = frozenset()) -> list[dict]:
    """Four frames of each patient, of two scans and two anatomies."""
    records = []
    for frame_id in (f"{patient}{number}" for patient in patients for number in range(4)):
        image = png(speckle(frame_id)[:, :32])
        plane = ("femur", "abdomen")[int(frame_id[1]) % 2]
        mask = png((speckle(frame_id) > 99)[:, :32].astype(np.uint8))
        if broken and frame_id == CUT:
            image = image[: len(image) // 2]
        if broken and frame_id == NONE:
            image = b""
        if broken and frame_id == DEEP:
            mask = png(np.ones((32, 32), np.uint16))
        if broken and frame_id == BROKEN:
            mask = mask[:40] + bytes([mask[40] ^ 1]) + mask[41:]
        fields = {"image": image, "mask": mask, "anatomy_fine": plane, "anatomy_coarse": plane}
        fields["scan_id"] = f"{frame_id[0]}-{int(frame_id[1]) // 2}"
        if frame_id not in without:
            records.append(frame_record(frame_id, frame_id[0], **fields))
    return records


def png(image: np.ndarray, level: int = 3) -> bytes:
    return cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, level])[1].tobytes()


def flip_bit(dataset: Path, frame_id: str) -> None:
    """Damage the chunk that holds a frame."""
    picture = png(speckle(frame_id)[:, :32])[100:200]
    (file,) = (file for file in dataset.glob("*array_record*") if picture in file.read_bytes())
    data = bytearray(file.read_bytes())
    data[data.index(picture) + 50] ^= 1
    file.write_bytes(data)


@pytest.fixture
def prepare(prepare_frames):
    """A dataset, whole or with the pictures above broken or left away."""

    def prepared(name, **how):
        return prepare_frames(name, masks=True, **{s: records_of(p, **how) for s, p in PATIENTS.items()})

    return prepared


@pytest.fixture
def damaged(prepare) -> Path:
    """A dataset with all of the faults above."""
    dataset = prepare("damaged", broken=True)
    for frame_id in FLIPPED:
        flip_bit(dataset, frame_id)
    return dataset


def select(dataset, **options):
    return selection.select(dataset, **({"size": 16, "cache_mb": 1, "val_share": 0.2, "seed": 0} | options))


def position(frame_id: str) -> tuple[str, int]:
    """Split and record of a frame."""
    ((split, patients),) = ((split, patients) for split, patients in PATIENTS.items() if frame_id[0] in patients)
    return split, 4 * patients.index(frame_id[0]) + int(frame_id[1])


# Found --------------------------------------------------------------------------------------------------------------


def test_every_fault_is_found_with_its_place_and_its_cause(damaged):
    found = {(frame.split, frame.record): frame for frame in find_unreadable(damaged)}
    assert found.keys() == {position(frame_id) for frame_id in BAD}
    for frame_id in FLIPPED:
        assert found[position(frame_id)].frame_id == "", "the name is part of what cannot be read"
        assert "chunk data hash mismatch" in found[position(frame_id)].fault
    for frame_id, fault in {
        CUT: "its image is broken, it is cut short",
        NONE: "its image is not an 8-bit grey PNG",
        DEEP: "its mask is not an 8-bit grey PNG",
        BROKEN: "its mask is broken, its checksum is wrong",
    }.items():
        assert found[position(frame_id)] == Unreadable(*position(frame_id), frame_id, fault)
    assert list(found) == sorted(found, key=lambda place: (list(PATIENTS).index(place[0]), place[1]))


def test_what_is_found_is_what_the_reader_cannot_read(prepare):
    dataset = prepare("later", broken=True)
    index = ScanIndex.from_dataset(dataset)  # before bits are flipped, so that every name is known
    for frame_id in FLIPPED:
        flip_bit(dataset, frame_id)
    reader, refused = FrameReader(index, size=16), {}
    for frame, frame_id in enumerate(index.frame_ids.tolist()):
        try:
            reader.read(np.array([frame]))
            reader.read_masks(np.array([frame]))
        except InputError as error:
            refused[frame_id] = str(error)
    assert {position(frame_id) for frame_id in refused} == {(f.split, f.record) for f in find_unreadable(dataset)}
    for frame_id, said in refused.items():
        split, record = position(frame_id)
        assert said.startswith(f"Cannot read frame {frame_id!r} (record {record} of split {split!r}) of {dataset} (")
        assert said.endswith("(config.data.skip_unreadable=True).")
        assert "\n" not in said


def test_a_whole_dataset_has_none_and_its_index_is_the_usual_one(prepare):
    dataset = prepare("whole", broken=False)
    assert find_unreadable(dataset) == ()
    usual, skipping = select(dataset), select(dataset, skip_unreadable=True)
    assert skipping.fingerprint == usual.fingerprint
    assert skipping.left_out == ()
    assert selection.describe(skipping) == selection.describe(usual)


def test_result_is_cached_until_a_file_changes_for_any_threads(damaged, monkeypatch):
    cache = damaged / "unreadable.json"
    found = find_unreadable(damaged, threads=1)
    cache.unlink()
    assert find_unreadable(damaged, threads=5) == found
    for damage in (b"", b"{}", cache.read_bytes()[:-9], b'{"key": 1, "frames": [{}]}', b"\xff"):
        cache.write_bytes(damage)
        assert find_unreadable(damaged) == found
    flip_bit(damaged, "l3")
    assert len(find_unreadable(damaged)) == len(found) + 1
    monkeypatch.setattr(Records, "read", lambda *args: pytest.fail("records were read"))
    assert len(find_unreadable(damaged)) == len(found) + 1


def test_a_file_that_is_missing_is_no_damage(damaged):
    (file,) = damaged.glob("*val.array_record*")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"val\.array_record"):
        find_unreadable(damaged)


def test_a_split_of_which_nothing_is_left_is_refused(damaged):
    (file,) = damaged.glob("*val.array_record*")
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(InputError, match=r"No frame of split 'val' of .* can be read. Copy"):
        find_unreadable(damaged)
    assert not (damaged / "unreadable.json").exists()


# Left out -----------------------------------------------------------------------------------------------------------


def test_without_being_asked_for_nothing_is_left_out(damaged, prepare):
    with pytest.raises(InputError, match=r"Cannot read record 5 of split 'train' of .*skip_unreadable=True") as caught:
        select(damaged)
    assert "\n" not in str(caught.value)
    readable_labels = select(prepare("pictures", broken=True))
    with pytest.raises(InputError, match=rf"Cannot read frame '{NONE}' \(record 0 of split 'train'\)"):
        readable_labels.train.reader.read(np.arange(4))


def test_frames_are_left_out_as_if_they_had_never_been_there(damaged, prepare):
    expected = select(prepare("without", broken=False, without=frozenset(BAD)))
    for _ in range(2):  # the second time from the caches
        chosen = select(damaged, skip_unreadable=True)
        assert chosen.fingerprint == expected.fingerprint
        assert chosen.pixels_fingerprint() == expected.pixels_fingerprint()
        for name in PATIENTS:
            part, other = getattr(chosen, name), getattr(expected, name)
            assert part.index.frame_ids.tolist() == other.index.frame_ids.tolist()
            frames = np.arange(len(part.index))
            np.testing.assert_array_equal(part.reader.read(frames), other.reader.read(frames))
            np.testing.assert_array_equal(part.reader.read_masks(frames), other.reader.read_masks(frames))
        plans = [
            selection.make_plan(
                one.train.index, one.train.index.fine, "anatomy", batch_size=8, seed=1, mode="balanced", anatomies=None,
                scans_per_anatomy=2, unlabelled_share=0.0, pairs="cross_scan",
            )
            for one in (chosen, expected)
        ]  # fmt: skip
        for step in range(20):
            np.testing.assert_array_equal(plans[0].frames(step), plans[1].frames(step))
    assert selection.count_unreadable(chosen) == {"train": 6, "test": 1}
    assert selection.describe(chosen).endswith("skipped as unreadable: 6 of train, 1 of test")


def test_with_and_without_skipping_do_not_spoil_each_others_cache(prepare):
    dataset = prepare("pictures", broken=True)
    for _ in range(2):
        assert len(ScanIndex.from_dataset(dataset)) == 48
        assert len(select(dataset, skip_unreadable=True).train.index) == 32 - 4


def test_frames_of_further_datasets_are_left_out_too(prepare, damaged, prepare_frames):
    more = [frame_record("x0", "x"), frame_record("x1", "x", image=b""), frame_record("x2", "x")]
    further = prepare_frames("further", train=more)
    chosen = select(damaged, skip_unreadable=True, unlabelled=[further])
    assert len(chosen.train.index) == 32 - 6 + 2
    assert selection.count_unreadable(chosen) == {"train": 7, "test": 1}
    assert {path for path, _ in chosen.left_out} == {damaged, further}
    assert chosen.train.reader.read(np.arange(len(chosen.train.index))).any(axis=(1, 2)).all()


# Runs ---------------------------------------------------------------------------------------------------------------


def config_of(dataset: Path, **fields):
    config = fine.get_config("tiny")
    small = {"train.steps": 2, "train.eval_every": 2, "train.checkpoint_every": 2, "train.log_every": 1}
    small |= {"sampler.batch_size": 8, "sampler.scans_per_anatomy": 2, "optim.warmup_steps": 0, "data.size": 32}
    small |= {"augment.size": 24, "model.width_factor": 0.0625, "report.pictures": False, "data.path": str(dataset)}
    config.update_from_flattened_dict(small | fields)
    return config


@pytest.mark.slow
def test_a_run_goes_without_the_frames_and_names_them(damaged, tmp_path, capsys):
    with pytest.raises(InputError, match="Cannot read record 5 of split 'train'"):
        pretrain.run(config_of(damaged), tmp_path / "run")
    config = config_of(damaged, **{"data.skip_unreadable": True})
    results = pretrain.run(config, tmp_path / "run")
    assert results["frames"]["train"]["frames"] == 32 - 6
    assert results["unreadable"] == {"train": 6, "test": 1}
    assert "skipped as unreadable: 6 of train, 1 of test" in capsys.readouterr().out
    with (tmp_path / "run" / "unreadable_frames.csv").open() as file:
        listed = {(row["split"], int(row["record"])): row["frame_id"] for row in csv.DictReader(file)}
    assert listed == {position(frame_id): "" if frame_id in FLIPPED else frame_id for frame_id in BAD}
    # Damaged further, it is other data, with which this run cannot go on.
    flip_bit(damaged, "d0")
    with pytest.raises(InputError, match="holds a run on other data"):
        pretrain.run(config, tmp_path / "run")


def test_a_run_does_not_go_on_with_other_pictures(prepare, tmp_path):
    dataset, workdir = prepare("whole", broken=False), tmp_path / "run"
    config = config_of(dataset)

    def claim():
        with Workdir(workdir) as folder:
            harness.open_run(
                folder, pretrain.set_up(config).data, config=to_dict(config), defaults=to_dict(default_config())
            )

    claim()
    assert json.loads((workdir / "config.json").read_text())["pixels"].count("+") == 2
    compressed, changed = shutil.copytree(dataset, tmp_path / "again"), shutil.copytree(dataset, tmp_path / "changed")
    rewrite(compressed, lambda image: image)
    config.data.path = str(compressed)
    claim()
    rewrite(changed, lambda image: 255 - image)
    config.data.path = str(changed)
    with pytest.raises(InputError, match=r"other pictures, though with the same ids and labels"):
        claim()


def rewrite(dataset: Path, draw) -> None:
    """Prepare a dataset again, with pictures made of the old ones and compressed less."""
    splits = {}
    for split, patients in PATIENTS.items():
        splits[split] = records_of(patients, broken=False)
        for record in splits[split]:
            image = cv2.imdecode(np.frombuffer(record["image"], np.uint8), cv2.IMREAD_GRAYSCALE)
            record["image"] = png(draw(image), level=0)
    folder = dataset.with_name(f"{dataset.name}-new")
    builder = FrameSet(splits=splits, masks=True, data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    shutil.rmtree(dataset)
    shutil.copytree(builder.data_dir, dataset)


def test_pixels_are_told_apart_by_a_single_value(prepare_frames):
    image = speckle("x")
    other = image.copy()
    other[3, 4] ^= 1
    made = []
    for name, picture in {"one": png(image, 1), "two": png(image, 9), "three": png(other, 9)}.items():
        dataset = prepare_frames(name, train=[frame_record("x", image=picture), frame_record("y")])
        made.append(FrameReader(ScanIndex.from_dataset(dataset), size=8).pixels_fingerprint())
    assert made[0] == made[1] != made[2]


def test_the_list_holds_no_formulas(tmp_path):
    write_list([(Path("data"), Unreadable("test", 3, "=1+1", "-x is broken"))], tmp_path / "list.csv")
    with (tmp_path / "list.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[1] == ["data", "test", "3", "'=1+1", "'-x is broken"]
