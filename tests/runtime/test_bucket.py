"""Datasets in a bucket, and copies of files from and to a bucket."""

import shutil

import numpy as np
import pytest
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.storage import Storage
from google.api_core.exceptions import Forbidden

from awcl_jax.data.reader import FrameReader
from awcl_jax.data.scans import ScanIndex
from awcl_jax.data.sources import open_source
from awcl_jax.runtime import bucket as storage
from awcl_jax.runtime.errors import InputError
from tests.helpers.frames import frame_record


def put(bucket, **files):
    for name, content in files.items():
        bucket.blob(name.replace("__", "/")).upload_from_string(content)


@pytest.fixture
def uploaded(bucket, prepare_frames):
    """Return a dataset's folder, which is in the bucket as well."""
    folder = prepare_frames(
        train=[frame_record(f"a{i}", f"p{i}") for i in range(5)], test=[frame_record("b", "q", anatomy_fine="abdomen")]
    )
    storage.send(folder, [file.name for file in folder.iterdir()], f"gs://{bucket.name}/data")
    return folder


@pytest.fixture
def fetched(monkeypatch):
    """Return the names of the downloaded files, a list that grows."""
    names, get_file = [], Storage.get_file
    monkeypatch.setattr(
        Storage, "get_file", lambda self, bucket, name, **more: (names.append(name), get_file(self, bucket, name))[1]
    )
    return names


def test_a_dataset_on_a_bucket_is_that_of_the_folder(uploaded, bucket, tmp_path):
    url = f"gs://{bucket.name}/data"
    ours, theirs = ScanIndex.from_dataset(uploaded), ScanIndex.from_dataset(url)
    assert theirs.fingerprint == ours.fingerprint
    frames = np.arange(len(ours))
    np.testing.assert_array_equal(FrameReader(theirs, 24).read(frames), FrameReader(ours, 24).read(frames))
    assert theirs.path.is_relative_to(tmp_path / "cache")
    assert len(open_source(f"{url}/")) == 6


def test_it_is_copied_once_and_again_when_it_has_changed(uploaded, bucket, fetched, capsys):
    put(bucket, data__downloads__raw=b"raw", **{"data__incomplete.x__part": b"part", "data__empty__": b""})
    url = f"gs://{bucket.name}/data"
    first = storage.local_dataset(url)
    assert sorted(fetched) == sorted(f"data/{file.name}" for file in uploaded.iterdir())
    assert capsys.readouterr().err == f"Copying {url} (0.00 GB) to {first} (only once).\n"
    fetched.clear()
    assert storage.local_dataset(f"{url}/") == first
    assert fetched == []
    put(bucket, **{"data__features.json": b"{}"})
    assert storage.local_dataset(url) != first
    assert not list(first.parent.glob("*.part"))


def test_an_interrupted_copy_resumes(uploaded, bucket, fetched, monkeypatch):
    url, find = f"gs://{bucket.name}/data", Storage.get_file

    def gone(self, bucket, name, **more):
        if name.endswith("features.json"):
            raise NotFound
        return find(self, bucket, name)

    monkeypatch.setattr(Storage, "get_file", gone)
    with pytest.raises(InputError, match="cannot be read"):
        storage.local_dataset(url)
    monkeypatch.setattr(Storage, "get_file", find)
    fetched.clear()
    storage.local_dataset(url)
    assert fetched == ["data/features.json"]


def test_a_file_that_arrives_damaged_is_refused(uploaded, bucket, monkeypatch, tmp_path):
    read = Storage.get_file
    monkeypatch.setattr(Storage, "get_file", lambda self, *names, **more: b"#" + read(self, *names)[1:])
    with pytest.raises(InputError, match=r"cannot be read \(Checksum mismatch"):
        storage.local_dataset(f"gs://{bucket.name}/data")
    assert not [path for path in (tmp_path / "cache" / "awcl_jax" / "datasets").iterdir() if path.suffix == ""]


def test_a_full_disk_is_reported_before_anything_is_copied(uploaded, bucket, monkeypatch, fetched):
    usage = shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"No space left for a copy of gs://.*Free space or set XDG_CACHE_HOME"):
        storage.local_dataset(f"gs://{bucket.name}/data")
    assert fetched == []


@pytest.mark.parametrize("name", ["../../profile", "/etc/profile", "a/../../../profile"])
def test_no_file_is_written_outside_of_its_folder(name, bucket, tmp_path):
    # Google's buckets accept such names; the emulator of these tests does not.
    objects = {name: bucket.blob(f"data/{name}")}
    with pytest.raises(InputError, match=r"a name that leads out of its folder \(profile\)"):
        storage.mirror(f"gs://{bucket.name}/data", objects, tmp_path / "here")
    with pytest.raises(InputError, match="leads out of its folder"):
        storage.place_of("gs://bucket/../../profile", tmp_path)
    assert not (tmp_path / "here").exists()


def test_a_mirror_has_what_the_bucket_has_and_nothing_else(bucket, tmp_path, fetched):
    url, folder = f"gs://{bucket.name}/run", tmp_path / "here"
    put(bucket, run__a=b"1", run__b__c=b"22", runner=b"3")
    (folder / "old" / "deep").mkdir(parents=True)
    (folder / "old" / "deep" / "file").write_text("x")
    for content in (b"22", b"33"):
        put(bucket, run__b__c=content)
        storage.mirror(url, storage.listed(url), folder)
        assert {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == {
            "a": b"1",
            "b/c": content,
        }
    assert not (folder / "old").exists()
    assert sorted(fetched) == ["run/a", "run/b/c", "run/b/c"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            "gs://BUCKET/nothing",
            r"gs://BUCKET/nothing is empty or does not exist\. Pass the folder of a prepared dataset",
        ),
        ("gs://no-such-one/data", "gs://no-such-one cannot be read .*gcloud auth application-default login"),
        ("s3://frames/data", "gs://BUCKET/FOLDER on Google Cloud Storage; got 's3://frames/data'"),
        ("gs://", "gs://BUCKET/FOLDER"),
    ],
)
def test_a_missing_folder_is_one_line(url, said, bucket):
    with pytest.raises(InputError, match=said.replace("//BUCKET/n", f"//{bucket.name}/n")) as caught:
        ScanIndex.from_dataset(url.replace("BUCKET", bucket.name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Forbidden("Anonymous caller does not have\nstorage.objects.list access"), "403 Anonymous caller does not"),
        (ConnectionError(), "ConnectionError"),
        (ImportError("google"), r"gs://frames needs the package google-cloud-storage: pip install 'awcl_jax\[gcs\]'"),
    ],
)
def test_a_bucket_without_access_is_named_with_a_remedy(error, said, monkeypatch, tmp_path):
    def fail():
        raise error

    monkeypatch.setattr(storage, "_client", fail)
    for attempt in (
        storage.local_dataset,
        lambda url: storage.send(tmp_path, ["a"], url),
        lambda url: storage.remove(["a"], url),
    ):
        with pytest.raises(InputError, match=said) as caught:
            attempt("gs://frames/data")
        assert "gs://frames" in str(caught.value)
        assert "\n" not in str(caught.value)
