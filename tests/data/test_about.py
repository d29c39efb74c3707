"""A dataset is described by what is stored beside its records, not by a run's configuration."""

import json

import pytest

from awcl_jax.data.about import PUBLIC, About, apart, are_datasets, as_json, of_run
from awcl_jax.ingest.prepare import BUILDERS
from awcl_jax.runtime.errors import InputError

pytestmark = pytest.mark.quick

PHANTOM = About("phantom", "tiny", "simulated", "the simulation", confirmed=True)
OWN = {"settings": {"command": "video"}}


def described(folder, *, metadata=None, **info):
    (folder / "dataset_info.json").write_text(json.dumps(info))
    if metadata is not None:
        (folder / "metadata.json").write_text(json.dumps(metadata))
    return About.read(folder)


def test_every_public_dataset_says_who_names_its_patients():
    assert {*PUBLIC} == {*BUILDERS} - {"phantom"}


@pytest.mark.parametrize(
    ("info", "metadata", "expected"),
    [
        ({"name": "phantom", "configName": "tiny"}, None, PHANTOM),
        # Frames of one's own that somebody named `phantom`, and `busi`.
        ({"name": "phantom"}, OWN, About("phantom", "", "own", "", confirmed=False)),
        ({"name": "busi"}, OWN, About("busi", "", "own", "", confirmed=False)),
        (
            {"name": "lab"},
            OWN | {"patients": {"from": "the tag", "confirmed": True}},
            About("lab", "", "own", "the tag", confirmed=True),
        ),
        ({"name": "lab"}, OWN | {"patients": ["the tag"]}, About("lab", "", "own", "", confirmed=False)),
        (
            {"name": "lab"},
            {"settings": {"command": "dicom", "region": "tag,frame"}},
            About("lab", "", "own", "", confirmed=False, region="tag,frame"),
        ),
        (
            {"name": "lab"},
            {"settings": {"command": "folder", "region": [0, 5, 30, 40]}},
            About("lab", "", "own", "", confirmed=False, region="0,5,30,40"),
        ),
        (
            {"name": "lab"},
            {"settings": {"command": "folder", "region": "\x1b[31m"}},
            About("lab", "", "own", "", confirmed=False),
        ),
        ({"name": "frame_set"}, ["no object"], About("frame_set", "", "other", "", confirmed=False)),
    ],
)
def test_kind_and_patients_of_what_is_stored(tmp_path, info, metadata, expected):
    assert described(tmp_path, metadata=metadata, **info) == expected


@pytest.mark.parametrize(("name", "confirmed"), [("fetal_planes_db", True), ("camus", True), ("busi", False)])
def test_public_patients_are_confirmed_where_published(tmp_path, name, confirmed):
    found = described(tmp_path, name=name, metadata={"settings": {"files": 3}})
    assert (found.kind, found.confirmed) == ("public", confirmed)


def test_of_added_frames_nothing_is_claimed():
    named, other = (About(name, "", "own", "a column", confirmed=True) for name in ("lab", "ward"))
    assert apart([named]) == named.apart
    assert apart([named, other]).startswith(named.apart)
    assert "not compared with those of ward" in apart([named, other])
    assert "a test patient may be among them" in apart([named, other])


@pytest.mark.parametrize("patients", ["", "the names of files"])
def test_only_confirmed_patients_are_claimed_to_be_apart(patients):
    assert "in one split only" not in About("lab", "", "own", patients, confirmed=False).apart
    assert "may be in two splits" in About("lab", "", "own", patients, confirmed=False).apart
    assert "in one split only" in About("lab", "", "own", "a column", confirmed=True).apart


def test_damaged_metadata_is_named(tmp_path):
    (tmp_path / "metadata.json").write_text("{")
    with pytest.raises(InputError, match=r"metadata.json is not JSON \(.*\). Prepare the dataset again"):
        described(tmp_path, name="lab")


def test_a_run_keeps_what_datasets_said():
    datasets = [About("lab", "", "own", "a column", confirmed=True), PHANTOM]
    stored = json.loads(json.dumps(as_json(datasets)))
    assert are_datasets(stored)
    assert of_run({"data.dataset": "phantom", "data.path": "/x"}, None, stored) == datasets


@pytest.mark.parametrize(
    "stored", [None, [], {}, [{}], ["lab"], [{**as_json([PHANTOM])[0], "kind": "real"}], [{"name": 1}]]
)
def test_other_forms_are_not_datasets(stored):
    assert not are_datasets(stored)


@pytest.mark.parametrize(
    ("config", "name", "kind"),
    [
        ({"data.dataset": "phantom", "data.preset": "tiny", "data.path": ""}, "phantom", "simulated"),
        ({"data.dataset": "phantom", "data.path": "/x"}, "a dataset that the run did not record", "other"),
        ({"data.dataset": "hc18", "data.path": "/x"}, "hc18", "other"),
    ],
)
def test_a_run_from_before_is_described_by_its_configuration(config, name, kind):
    (found,) = of_run(config, None)
    assert (found.name, found.kind) == (name, kind)
