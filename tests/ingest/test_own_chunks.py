"""Jobs that are decoded in processes of their own, some of which end, and what their chunks hold."""

import json
import math
import os
from pathlib import Path

import cv2
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from awcl_jax.data.anatomy import Taxonomy
from awcl_jax.data.record import frame_features
from awcl_jax.ingest.own import chunks, plan
from awcl_jax.ingest.own.collect import collect
from awcl_jax.ingest.own.items import Item, Reading
from awcl_jax.ingest.own.plan import make_jobs
from awcl_jax.ingest.own.privacy import Pseudonyms
from tests.helpers.deadly import DeadlyPath
from tests.helpers.frames import speckle


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_ends_its_process_is_left_out(tmp_path, workers, monkeypatch):
    monkeypatch.setattr(chunks, "_worthwhile", lambda jobs, workers: workers)
    items = []
    for number, split in enumerate(["train"] * 4 + ["val"] * 3 + ["test"] * 3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), speckle(str(number)))
        kind = DeadlyPath if number in (1, 3, 5) else Path
        items.append(Item(number, kind(tmp_path / f"{number}.png"), "s", "p", split))
    taxonomy = Taxonomy({})
    jobs = make_jobs(items, Pseudonyms(None), kind="image", reading=Reading(), taxonomy=taxonomy)
    folder = tmp_path / "chunks"
    folder.mkdir()
    if workers == 1:
        # What a process leaves that decoded by itself and died.
        for job in jobs:
            (folder / f"{job.name}.at").write_text("0")
    done = []
    chunks.decode_all(jobs, folder, workers=workers, progress=done.append)
    assert sum(done) == 10
    collection = collect(jobs, folder)
    assert [(fault.number, fault.kind) for fault in collection.faults] == [(1, "crash"), (3, "crash"), (5, "crash")]
    assert {split: sum(len(part.records) for part in of) for split, of in collection.parts.items()} == {
        "train": 2,
        "val": 2,
        "test": 3,
    }
    assert not list(folder.glob("*.at"))


def records_of(jobs, folder):
    """All records of the jobs in order, as they are stored."""
    found = []
    for job in jobs:
        reader = ArrayRecordReader(str(chunks.records_of(job, folder)))
        found += reader.read(list(range(reader.num_records())))
        reader.close()
    return found


def decoded(items, folder, kind, *, workers=1, **reading):
    jobs = plan.make_jobs(
        items, Pseudonyms(None), kind=kind, reading=Reading(every=1, near_duplicate=0, **reading), taxonomy=Taxonomy({})
    )
    folder.mkdir()
    chunks.decode_all(jobs, folder, workers=workers, progress=lambda done: None)
    return jobs, records_of(jobs, folder)


@pytest.fixture
def clips(tmp_path) -> list[Item]:
    """Three clips of eleven pictures; the eighth of the second is larger than the others."""
    items = []
    for number in range(3):
        pages = [Image.fromarray(speckle(f"{number} {page}")) for page in range(11)]
        if number == 1:
            pages[7] = pages[7].resize((80, 64))
        pages[0].save(tmp_path / f"{number}.tif", save_all=True, append_images=pages[1:])
        items.append(Item(number, tmp_path / f"{number}.tif", f"s{number}", "p", "train"))
    return items


def test_frames_encoded_ahead_are_stored_in_order_and_before_a_fault(clips, tmp_path, monkeypatch):
    # 32 x 40 pixels are allowed; the fault comes while frames wait to be encoded.
    found = {}
    for ahead in (0, 4, 100):
        monkeypatch.setattr(chunks, "_AHEAD", ahead)
        jobs, records = decoded(clips, tmp_path / str(ahead), "video", max_pixels=1280)
        (job,) = jobs
        found[ahead] = records, json.loads(chunks._notes(job, tmp_path / str(ahead)).read_text())
    assert found[0] == found[4] == found[100]
    records, notes = found[4]
    assert [(each["kind"], each["start"], each["stop"]) for each in notes["outcomes"]] == [
        ("", 0, 11),
        ("too_large", 18, 18),
        ("", 18, 29),
    ]
    assert len(records) == 29
    for record, frame_id in zip(records, notes["frame_ids"], strict=True):
        assert frame_id.encode() in record


def test_a_chunk_of_other_content_is_decoded_again(clips, tmp_path, monkeypatch):
    jobs, _ = decoded(clips, tmp_path / "chunks", "video")
    done = []
    for content in (chunks._CONTENT, 0):
        monkeypatch.setattr(chunks, "_CONTENT", content)
        monkeypatch.setattr(chunks, "decode_job", lambda job, folder: done.append(job))
        chunks.decode_all(jobs, tmp_path / "chunks", workers=1, progress=lambda done: None)
        assert done == ([] if content else jobs)


def test_records_do_not_depend_on_how_files_are_grouped(clips, tmp_path, monkeypatch):
    together, records = decoded([clips[0], clips[2]], tmp_path / "together", "video")
    monkeypatch.setitem(plan._MOST, "video", (1, 1 << 20))
    apart, again = decoded([clips[0], clips[2]], tmp_path / "apart", "video")
    assert (len(together), len(apart)) == (1, 2)
    assert records == again


def test_records_that_are_filled_in_are_those_that_tfds_makes():
    features = frame_features(Taxonomy({"head": ("HCP", "HCA")}), mask_names=("background", "skull"))
    record = {
        **{"frame_id": "ab", "scan_id": "s", "patient_id": "p", "machine": "", "image": b"one", "mask": b"two"},
        **{"anatomy_fine": -1, "anatomy_coarse": 0, "pixel_mm": math.nan},
    }
    changes = [
        {},
        {"frame_id": "cd", "image": b"other"},
        {"scan_id": "größer", "patient_id": "", "machine": "Voluson", "mask": b""},
        {"anatomy_fine": 1},
        {"pixel_mm": 0.3},
        {"pixel_mm": float("nan"), "image": b"\0" * 100_000},
        {},
    ]
    serializer = chunks._Serializer(features)
    for change in changes:
        made = ExampleSerializer(features.get_serialized_info()).get_tf_example(
            features.encode_example(record | change)
        )
        assert serializer.serialize(record | change) == made.SerializeToString(deterministic=True)
    with pytest.raises(ValueError, match="anatomy_fine"):  # no such class
        serializer.serialize(record | {"anatomy_fine": 7})
    del record["mask"]
    with pytest.raises(KeyError, match="mask"):
        serializer.serialize(record)


def test_two_processes_write_what_one_writes(clips, tmp_path, monkeypatch):
    monkeypatch.setitem(plan._MOST, "video", (1, 1 << 20))
    monkeypatch.setattr(chunks, "_worthwhile", lambda jobs, workers: workers)
    jobs, records = decoded(clips, tmp_path / "one", "video", max_pixels=1280)
    # This process could not: it would end up here.
    monkeypatch.setattr(chunks, "kept_frames", lambda *args: pytest.fail("decoded in the tests' own process"))
    again, others = decoded(clips, tmp_path / "two", "video", workers=2, max_pixels=1280)
    assert len(jobs) == len(again) == 3
    assert records == others
    for job in jobs:
        one, two = (json.loads(chunks._notes(job, tmp_path / folder).read_text()) for folder in ("one", "two"))
        assert one == two


def test_processes_start_where_they_save_more_than_they_cost(tmp_path, monkeypatch):
    def workers_for(count: int, kind: str, size: int, *, processors: int = 8, **reading) -> int:
        file = tmp_path / f"{kind} {size}"
        file.touch()
        os.truncate(file, size)  # a hole
        items = [Item(number, file, "s", "p", "train") for number in range(count)]
        jobs = make_jobs(items, Pseudonyms(None), kind=kind, reading=Reading(**reading), taxonomy=Taxonomy({}))
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(processors)))
        return chunks._worthwhile(jobs, 8)

    # 400 pictures take 1.8 seconds of a processor, this process 1.0; 700 take 3.2, this process 1.8, and three 1.6.
    assert [workers_for(count, "image", 1000) for count in (1, 100, 400, 700, 9000)] == [1, 1, 1, 3, 8]
    # Two processors need ten seconds for 4,000, this process as long as others with their start.
    assert [workers_for(count, "image", 1000, processors=2) for count in (700, 3900, 4000)] == [1, 1, 8]
    # Of clips, this process decodes and encodes less at the same time.
    assert [workers_for(count, "video", 1000, processors=2) for count in (24, 40)] == [1, 4]
    assert workers_for(9000, "image", 1000, processors=1) == workers_for(0, "image", 1000) == 1
    assert [workers_for(count, "video", 1000) for count in (4, 24, 40)] == [1, 1, 4]
    assert workers_for(8, "video", 64 << 20) == 8
    # 64 MiB, of which an eighth of the frames is kept.
    assert workers_for(64, "dicom", 1 << 20, every=1) == 4  # a job has 16 MiB
    assert workers_for(64, "dicom", 1 << 20, every=8) == 1
    monkeypatch.setattr(plan.dicom, "packing_of", lambda path: "none")
    assert [workers_for(count, "dicom", 1 << 20, every=1) for count in (64, 320)] == [1, 3]


def test_some_hundred_clips_are_shared_by_processes(tmp_path):
    items = [Item(number, tmp_path / f"{number}.mp4", "s", "p", "train") for number in range(80)]
    jobs = plan.make_jobs(items, Pseudonyms(None), kind="video", reading=Reading(), taxonomy=Taxonomy({}))
    # Two processes that take the next job when they have finished one: neither is left with more than a job.
    assert max(len(job.items) for job in jobs) <= 80 / 2 / 4
