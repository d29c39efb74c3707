"""Jobs that are decoded in processes of their own, some of which end."""

from pathlib import Path

import cv2
import pytest

from awcl_jax.data.anatomy import Taxonomy
from awcl_jax.ingest.own import chunks
from awcl_jax.ingest.own.collect import collect
from awcl_jax.ingest.own.items import Item, Reading
from awcl_jax.ingest.own.plan import make_jobs
from awcl_jax.ingest.own.privacy import Pseudonyms
from tests.helpers.deadly import DeadlyPath
from tests.helpers.frames import speckle


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_ends_its_process_is_left_out(tmp_path, workers):
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
