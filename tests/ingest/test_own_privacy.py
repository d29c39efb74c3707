"""No patient leaves by accident: what is planted into DICOM files is nowhere in what an ingest writes or says."""

import hashlib
import hmac
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import RawDataElement

from awcl_jax.ingest.command import main
from awcl_jax.ingest.own.privacy import MAKERS, READ_TAGS, Pseudonyms, maker_of, read_key
from awcl_jax.runtime.errors import InputError
from tests.helpers.own_files import moving_disc, region_item, write_dicom

ROOT = Path(__file__).parents[2]
MARKER = "ZQXW"
KEY = b"0123456789abcdef0123456789abcdef"
TEXTS = ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT")
_PIXEL_TAGS = {"WindowCenter", "WindowWidth", "PixelSpacing", "RescaleSlope", "RescaleIntercept"}
_NEEDED = {*READ_TAGS, "SOPClassUID", "SOPInstanceUID", "PatientID", "StudyInstanceUID", "SpecificCharacterSet"}


def unmarked(number: int) -> np.ndarray:
    """The frames of a clip before anything is written on them: a fan, and black beside it."""
    frames = np.stack([cv2.resize(frame, (320, 240)) for frame in moving_disc(2, seed=number)])
    fan = cv2.fillConvexPoly(np.zeros((240, 320), np.uint8), np.array([[160, 52], [40, 225], [280, 225]]), 1)
    return frames * fan


def plant(path: Path, number: int, *, spoil: str = "") -> Path:
    """A clip whose every text tag, private tag, name and burnt-in text holds the marker; `spoil` makes it unusable."""
    frames = unmarked(number)
    for frame in frames:
        cv2.putText(frame, f"{MARKER}^{number}", (10, 30), cv2.FONT_HERSHEY_SIMPLEX, 1, 255, 2)
        cv2.putText(frame, MARKER, (24, 70), cv2.FONT_HERSHEY_PLAIN, 1, 255)  # in a corner of the region
    write_dicom(
        path,
        frames,
        patient=f"{number}{MARKER}",
        study=f"1.2.{number}.{MARKER}",
        region=(20, 50, 299, 229),
        Manufacturer=f"Philips {MARKER}",
        VOILUTFunction=MARKER,
    )
    ds = pydicom.dcmread(path)
    for tag, (vr, _, _, retired, keyword) in DicomDictionary.items():
        if keyword and not retired and vr in TEXTS and keyword not in _NEEDED and tag >> 16 not in (0x0000, 0x0002):
            put(ds, keyword, vr, f"{MARKER}{number}")
    for name in _PIXEL_TAGS:
        put(ds, name, "DS", f"{MARKER}{number}")
    block = ds.private_block(0x0009, f"{MARKER} BLOCK", create=True)
    block.add_new(0x01, "LO", f"{MARKER} private")
    block.add_new(0x02, "OB", MARKER.encode() * 4)
    behind = ds.private_block(0x7FE1, f"{MARKER} BEHIND", create=True)  # it comes after the pixels
    behind.add_new(0x01, "OB", MARKER.encode() * 4)
    ds.preamble = MARKER.encode() * 32
    ds.file_meta.SourceApplicationEntityTitle = MARKER
    nested = pydicom.Dataset()
    nested.PatientName, nested.ReasonForVisit = f"{MARKER}^nested", MARKER
    ds.RequestAttributesSequence = [nested]
    ds.SequenceOfUltrasoundRegions = [region_item(20, 50, 299, 229, PixelComponentOrganization=0)]
    ds.SequenceOfUltrasoundRegions[0].add_new(0x00091001, "LO", MARKER)
    if spoil in ("Modality", "PhotometricInterpretation", "PatientID"):
        setattr(ds, spoil, "" if spoil == "PatientID" else MARKER)
    if spoil in ("Rows", "NumberOfFrames", "BitsAllocated", "PixelRepresentation"):
        put(ds, spoil, "IS" if spoil == "NumberOfFrames" else "US", MARKER)
    ds.save_as(path)
    if spoil == "end":
        path.write_bytes(path.read_bytes()[:-1000])
    if spoil == "header":
        path.write_bytes(path.read_bytes()[:3000])
    return path


def put(ds: pydicom.Dataset, keyword: str, vr: str, text: str) -> None:
    """Set a tag to bytes that pydicom would refuse, or complain of."""
    value = text.encode() + b" " * (len(text) % 2)
    tag = pydicom.tag.Tag(keyword)
    ds[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)


SPOILS = ("", "", "", "Modality", "PhotometricInterpretation", "PatientID", "Rows", "NumberOfFrames", "BitsAllocated")
SPOILS += ("PixelRepresentation", "end", "header")


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    for number, spoil in enumerate(SPOILS):
        with pydicom.config.disable_value_validation():
            plant(folder / f"{MARKER}_{number}" / f"{MARKER} clip.{MARKER}", number, spoil=spoil)
    (folder / f"{MARKER}.dcm").write_text(f"{MARKER} is no DICOM file")
    (folder / f"{MARKER}.txt").write_text(f"notes on {MARKER}")
    (folder / f"{MARKER}_link").symlink_to(f"/nowhere/{MARKER}")
    return folder


@pytest.fixture
def ingest(capfd) -> Callable[..., tuple[int, str, str]]:
    """Exit status, stdout and stderr of `ingest dicom`, in this process or, with `apart`, in one of its own."""

    def call(*args: str, apart: bool = False) -> tuple[int, str, str]:
        if apart:
            command = [sys.executable, "-m", "awcl_jax.ingest", "dicom", *args]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300, check=False)
            return done.returncode, done.stdout.decode(), done.stderr.decode()
        status = 0
        try:
            main(["dicom", *args])
        except SystemExit as left:
            status = left.code
        return status, *capfd.readouterr()

    return call


def findings(data: bytes) -> list[str]:
    """Encodings in which the marker is in these bytes."""
    encodings = ("ascii", "utf-16-le", "utf-32-le")
    return [name for name in encodings if MARKER.lower().encode(name) in data.lower()]


def search(out: Path) -> list[str]:
    """Places below a folder where the marker is: names, bytes, records."""
    found = []
    for path in out.rglob("*"):
        places = {"name": str(path.relative_to(out)).encode()}
        if path.is_file():
            places["bytes"] = path.read_bytes()
        if ".array_record" in path.name:
            places["records"] = b"".join(ArrayRecordReader(str(path)).read_all())
        found += [f"{path.name}: {place}" for place, data in places.items() if findings(data)]
    return found


def test_the_search_finds_what_is_there(planted, tmp_path):
    assert len(search(planted)) >= 2 * len(SPOILS)
    np.savez(tmp_path / "x.npz", names=np.array([f"a {MARKER}"]))
    assert search(tmp_path) == ["x.npz: bytes"]
    ds = pydicom.dcmread(next(planted.rglob(f"*clip.{MARKER}")))
    assert sum(MARKER.encode() in bytes(ds.get_item(tag).value or b"") for tag in ds.keys()) > 500  # noqa: SIM118


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_planted_marker_is_nowhere(planted, tmp_path, ingest, caplog, workers):
    (tmp_path / "key").write_bytes(KEY)
    out = tmp_path / "out"
    args = [f"--source={planted}", f"--out={out}", f"--key_file={tmp_path / 'key'}", "--every=1", "--val_share=0"]
    args += ["--test_share=0.3", f"--workers={workers}"]
    refused, *said_first = ingest(*args, apart=workers > 1)
    kept = search(out)
    prepared, *said_then = ingest(*args, "--skip_bad", apart=workers > 1)
    assert (refused, prepared) == (1, 0), said_then[1]
    for said in (*said_first, *said_then, caplog.text):
        # The command's own arguments are the user's: none of them is said here.
        assert not findings(said.encode()), said
    assert kept == [], "not even while frames wait for the next time"
    assert search(out) == []
    lines = said_first[1].splitlines()
    assert sum(line.startswith("left out file ") for line in lines) == sum(map(bool, SPOILS)) + 1
    assert sum(line.startswith("left out id ") for line in lines) == 1, "the link"
    assert "Traceback" not in said_first[1] + said_then[1]
    _check_frames(out)
    report = json.loads((out / "ingest_report.json").read_text())
    assert report["tags_not_read"]["(0010,0010) PatientName"] >= 3
    assert report["tags_not_read"]["(0009,1001) private"] >= 3
    assert report["tags_not_read"]["(7FE1,1001) private"] >= 3
    assert report["tags_not_read"]["(0002,0016) SourceApplicationEntityTitle"] >= 3
    assert report["tags_not_read"]["(0028,1054) RescaleType"] >= 3
    assert report["ignored_files"] == 1
    assert "Ignored 1 file(s) that are not DICOM." in lines
    assert KEY.decode() not in (out / "ingest_report.json").read_text()
    assert not any(KEY in path.read_bytes() for path in out.rglob("*") if path.is_file())


def _check_frames(out: Path) -> None:
    builder = tfds.builder_from_directory(out / "own_scans" / "1.0.0")
    records = [record for split in builder.info.splits for record in builder.as_data_source(split)]
    assert len(records) == 6
    clean = [frame for number in range(len(SPOILS)) for frame in unmarked(number)]
    for record in records:
        image = record["image"][..., 0]
        assert image.std() > 10
        assert any(is_part_of(frame, image) for frame in clean), "what is not black was there before the burnt-in text"
        assert record["machine"] == b"Philips"
    expected = hmac.new(KEY, f"patient\0{0}{MARKER}".encode(), hashlib.sha256).hexdigest()[:20]
    assert expected.encode() in {record["patient_id"] for record in records}


def is_part_of(frame: np.ndarray, image: np.ndarray) -> bool:
    """Whether an image is a rectangle of a frame, some of it blackened."""
    height, width = image.shape
    # The pixel in the middle rules out nearly all places.
    for y in range(frame.shape[0] - height + 1):
        for x in range(frame.shape[1] - width + 1):
            if image[height // 2, width // 2] == frame[y + height // 2, x + width // 2]:
                part = frame[y : y + height, x : x + width]
                if (part[image > 0] == image[image > 0]).all():
                    return True
    return False


def test_show_paths_is_asked_for(planted, tmp_path, ingest):
    (tmp_path / "key").write_bytes(KEY)
    args = (f"--source={planted}", f"--out={tmp_path}", f"--key_file={tmp_path / 'key'}", "--show_paths")
    _, _, said = ingest(*args, "--workers=1")
    assert f"left out file 4, '{MARKER}_3/{MARKER} clip.{MARKER}': its modality" in re.sub(r"file \d+", "file 4", said)


TABLES = {
    "an unknown split": f"path,split\n{MARKER}.dcm,{MARKER}\n",
    "no file": f"path,anatomy\n{MARKER}.dcm,x\n",
    "a comma in a name": f"path,anatomy\n{MARKER},{MARKER}.dcm,x\n",
    "no table": f"{MARKER}\n{MARKER}\n",
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_what_is_wrong_with_a_table_names_no_file(table, tmp_path, monkeypatch, ingest):
    monkeypatch.setenv("AWCL_ID_KEY", KEY.decode())
    (tmp_path / "files.csv").write_text(table)
    status, printed, said = ingest(f"--source={tmp_path / 'files.csv'}", f"--out={tmp_path / 'out'}", "--workers=1")
    assert (status, printed) == (1, "")
    assert "error: " in said
    assert not findings(said.encode()), said


def test_dicom_needs_a_key(planted, tmp_path, monkeypatch, ingest):
    monkeypatch.delenv("AWCL_ID_KEY", raising=False)
    status, _, said = ingest(f"--source={planted}", f"--out={tmp_path / 'out'}")
    assert status == 1
    assert "DICOM needs a key" in said
    assert not (tmp_path / "out").exists()


def test_keys(tmp_path, monkeypatch):
    monkeypatch.delenv("AWCL_ID_KEY", raising=False)
    assert read_key(None) is None
    monkeypatch.setenv("AWCL_ID_KEY", "x" * 16)
    assert read_key(None) == b"x" * 16
    (tmp_path / "key").write_bytes(KEY + b"\n")
    assert read_key(tmp_path / "key") == KEY, "the file goes before the environment"
    (tmp_path / "key").write_bytes(b"short\n")
    with pytest.raises(InputError, match="must have at least 16 bytes, otherwise ids could be guessed; got 5"):
        read_key(tmp_path / "key")
    with pytest.raises(InputError, match="cannot be read"):
        read_key(tmp_path / "none")


def test_hashes():
    keyed, other = Pseudonyms(KEY), Pseudonyms(KEY[::-1])
    assert keyed.digest("patient", "7") == hmac.new(KEY, b"patient\x007", hashlib.sha256).hexdigest()[:20]
    of_all = {p.digest(kind, name) for p in (keyed, other) for kind in ("patient", "scan") for name in ("7", "07", "")}
    assert len(of_all) == 12
    assert re.fullmatch("[0-9a-f]{20}", keyed.digest("scan", "na\udcffme")), "a name that is no text"


@pytest.mark.parametrize(
    ("text", "maker"),
    [
        ("GE Vingmed Ultrasound", "GE"),
        ("GEMS Ultrasound", ""),
        ("Philips Medical Systems", "Philips"),
        ("TOSHIBA_MEC_US", "Canon"),
        ("Samsung Medison Co., Ltd.", "Samsung"),
        ("George Gerald", ""),
        ("", ""),
    ],
)
def test_makers_are_of_a_written_list(text, maker):
    assert maker_of(text) == maker
    assert maker in {"", *MAKERS}


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_key_that_every_user_can_read_is_warned_of(tmp_path, capsys, mode, warned):
    key = tmp_path / "key"
    key.write_bytes(KEY)
    key.chmod(mode)
    assert read_key(key) == KEY
    assert ("can be read by every user: chmod 600" in capsys.readouterr().err) == warned


def test_a_key_without_an_end_is_refused_whatever_its_last_byte(tmp_path):
    endless = tmp_path / "key"
    endless.write_bytes(b"k" * 65_536 + b"\n")
    endless.chmod(0o600)
    for path in (endless, Path("/dev/urandom")):
        with pytest.raises(InputError, match="must have at most 65,536 bytes"):
            read_key(path)
