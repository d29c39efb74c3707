"""FETAL_PLANES_DB: what the CSV says, what the images are, and what is refused."""

import contextlib
import functools
import hashlib
import http.server
import json
import threading
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from awcl_jax.data.png import read_png
from awcl_jax.ingest.public import download, fetal_planes_db
from awcl_jax.ingest.public.fetal_planes_db import FetalPlanesDb, read_rows
from awcl_jax.runtime.errors import InputError
from tests.helpers.frames import PLANES_ROWS, speckle


def prepare(source: Path | None, out: Path, **flags) -> dict[str, list[dict]]:
    """Prepare a dataset, open it anew without its builder, and decode all records."""
    builder = FetalPlanesDb(source=source, data_dir=out, **flags)
    builder.download_and_prepare()
    opened = tfds.builder_from_directory(builder.data_dir)
    return {split: list(opened.as_data_source(split)) for split in opened.info.splits}


def test_endings_in_capitals(planes, tmp_path):
    source = planes.write(*PLANES_ROWS)
    expected = prepare(source, tmp_path / "out")
    for path in sorted(source.rglob("*.png")):
        path.rename(path.with_suffix(".PNG"))
    np.testing.assert_equal(prepare(source, tmp_path / "again"), expected)


def test_prepared_records(planes, tmp_path):
    records = prepare(planes.write(*PLANES_ROWS), tmp_path / "out")
    assert {split: [record["frame_id"] for record in of] for split, of in records.items()} == {
        "train": [b"a1", b"a2", b"b1", b"b2"],
        "test": [b"c1", b"d1", b"d2"],
    }
    second = records["train"][1]
    assert second["patient_id"] == second["scan_id"] == b"00001"
    assert second["machine"] == b"Aloka"
    assert np.isnan(second["pixel_mm"])
    for record in [*records["train"], *records["test"]]:
        np.testing.assert_array_equal(record["image"][..., 0], speckle(record["frame_id"].decode()))


@pytest.mark.parametrize(
    ("plane", "brain_plane", "anatomy"),
    [
        ("Fetal abdomen", "Not A Brain", ("abdomen", "abdomen")),
        ("Fetal femur", "Not A Brain", ("femur", "femur")),
        ("Fetal thorax", "Not A Brain", ("thorax", "thorax")),
        ("Maternal cervix", "Not A Brain", ("cervix", "cervix")),
        ("Fetal brain", "Trans-thalamic", ("trans-thalamic", "head")),
        ("Fetal brain", "Trans-cerebellum", ("trans-cerebellum", "head")),
        ("Fetal brain", "Trans-ventricular", ("trans-ventricular", "head")),
        ("Fetal brain", "Other", (-1, "head")),
        ("Other", "Not A Brain", (-1, -1)),
    ],
)
def test_anatomy(planes, plane, brain_plane, anatomy):
    (row,) = read_rows(planes.write(f"x;1;{plane};{brain_plane};Op. 1;Aloka;1", images=False))
    assert (row.fine, row.coarse) == anatomy


def test_a_patient_is_one_however_the_number_is_written(planes):
    rows = read_rows(planes.write("x;12;Other;Not A Brain;;;1", "y; 012 ;Other;Not A Brain;;;1", images=False))
    assert [row.patient_id for row in rows] == ["00012", "00012"]


GOOD = "x;1;Other;Not A Brain;Op. 1;Aloka;1"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "lists no frames"),
        (
            [GOOD, "y;1;Fetal abdomne;Not A Brain;;;1"],
            "line 3: unknown Plane 'Fetal abdomne', did you mean 'Fetal abdomen'",
        ),
        (["x;1;Fetal brian;Other;;;1"], "did you mean 'Fetal brain'"),
        (["x;1;Fetal brain;Trans-thalamc;;;1"], "unknown Brain_plane 'Trans-thalamc', did you mean 'Trans-thalamic'"),
        (["x;1;Fetal brain;Not A Brain;;;1"], "unknown Brain_plane 'Not A Brain'"),
        (["x;1;Trans-thalamic;;;;1"], "unknown Plane 'Trans-thalamic'"),
        (["x;P7;Other;;;;1"], "Patient_num must be a whole number; got 'P7'"),
        (["x;1;Other;;;;2"], "Train must be 1 .train. or 0 .test.; got '2'"),
        (["x;1;Other"], "Train must be 1 .train. or 0 .test.; got ''"),
        (["../x;1;Other;;;;1"], "name of a file in Images/; got '../x'"),
        ([GOOD, GOOD], "lists the image x twice"),
        ([GOOD, "y;2;Other;;;;1", "z;2;Other;;;;0", "w;001;Other;;;;0"], r"patient 00001 in both splits.*\(2 such"),
    ],
)
def test_a_csv_that_is_refused(planes, rows, message):
    with pytest.raises(InputError, match=message):
        read_rows(planes.write(*rows, images=False))


def test_all_missing_columns_are_named(planes):
    planes.write(GOOD, images=False)
    (planes.folder / fetal_planes_db.CSV_NAME).write_text("Image_name;Plane;Operator;US_Machine\nx;Other;;\n")
    with pytest.raises(InputError, match=r"lacks the column\(s\) Patient_num, Brain_plane, Train; it has Image_name"):
        read_rows(planes.folder)


def test_a_file_that_is_no_csv(planes):
    planes.write(GOOD, images=False)
    (planes.folder / fetal_planes_db.CSV_NAME).write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(InputError, match="not a CSV text file"):
        read_rows(planes.folder)


def test_byte_order_mark_and_other_csv(planes):
    planes.write(GOOD, name="other.csv", images=False)
    path = planes.folder / "other.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_rows(planes.folder, "other.csv")) == 1
    with pytest.raises(InputError, match=r"CSV files there: other.csv. Choose one with --csv=NAME"):
        read_rows(planes.folder)


def test_missing_images_are_counted_and_skipped_on_demand(planes, tmp_path):
    planes.write(*PLANES_ROWS)
    for name in ("a2", "c1"):
        (planes.folder / "Images" / f"{name}.png").unlink()
    with pytest.raises(InputError, match=r"lists 2 images \(of 7\).*the first a2.png. Use --skip_missing"):
        prepare(planes.folder, tmp_path / "out")
    records = prepare(planes.folder, tmp_path / "out", skip_missing=True)
    assert [record["frame_id"] for record in records["train"]] == [b"a1", b"b1", b"b2"]
    metadata = json.loads((tmp_path / "out/fetal_planes_db/1.0.0/metadata.json").read_text())
    assert metadata["skipped"] == {"missing": ["a2", "c1"], "broken": []}


def test_a_folder_without_images_is_refused_even_when_skipping(planes, tmp_path):
    with pytest.raises(InputError, match=r"7 images \(of 7\).*Is this the unpacked folder"):
        prepare(planes.write(*PLANES_ROWS, images=False), tmp_path / "out", skip_missing=True)


def test_broken_images_are_named_and_skipped_on_demand(planes, tmp_path):
    planes.write(*PLANES_ROWS)
    broken = planes.folder / "Images" / "b1.png"
    broken.write_bytes(broken.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"b1.png is broken: it is cut short. Use --skip_broken"):
        prepare(planes.folder, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.array_record*")), "nothing is left of a refused dataset"
    records = prepare(planes.folder, tmp_path / "out", skip_broken=True)
    assert [record["frame_id"] for record in records["train"]] == [b"a1", b"a2", b"b2"]


def test_a_split_of_broken_images_only(planes, tmp_path):
    planes.write(*PLANES_ROWS)
    (planes.folder / "Images" / "c1.png").write_bytes(b"")
    for name in ("d1", "d2"):
        (planes.folder / "Images" / f"{name}.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="Every image of the test split"):
        prepare(planes.folder, tmp_path / "out", skip_broken=True)


# --- images


def write_png(path: Path, image: np.ndarray) -> Path:
    cv2.imwrite(str(path), image)
    return path


def decode(data: bytes) -> np.ndarray:
    assert data[24:26] == b"\x08\x00", "an 8-bit grey PNG"
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def test_grey_png_passes_through(tmp_path):
    path = write_png(tmp_path / "x.png", speckle("x"))
    assert read_png(path) == path.read_bytes()


@pytest.mark.parametrize("channels", [3, 4])
def test_grey_in_disguise_is_exact(tmp_path, channels):
    image = np.repeat(speckle("x")[..., None], channels, axis=2)
    np.testing.assert_array_equal(decode(read_png(write_png(tmp_path / "x.png", image))), speckle("x"))


def test_colour_becomes_luminance(tmp_path):
    blue, green, red = np.moveaxis(np.stack([speckle(name) for name in "bgr"], axis=2).astype(float), 2, 0)
    path = write_png(tmp_path / "x.png", np.stack([blue, green, red], axis=2).astype(np.uint8))
    # ITU-R BT.601 weights.
    np.testing.assert_allclose(decode(read_png(path)), 0.299 * red + 0.587 * green + 0.114 * blue, atol=0.51)


def test_another_format_under_a_png_name(tmp_path):
    data = cv2.imencode(".bmp", speckle("x"))[1].tobytes()
    (tmp_path / "x.png").write_bytes(data)
    np.testing.assert_array_equal(decode(read_png(tmp_path / "x.png")), speckle("x"))


def test_every_cut_of_a_png_is_noticed(tmp_path):
    whole = write_png(tmp_path / "x.png", speckle("x")).read_bytes()
    path = tmp_path / "cut.png"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cut.png is broken"):
            read_png(path)


def test_a_changed_byte_is_noticed(tmp_path):
    data = bytearray(write_png(tmp_path / "x.png", speckle("x")).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(InputError, match="its checksum is wrong"):
        read_png(tmp_path / "x.png")


def test_sixteen_bits_are_refused(tmp_path):
    with pytest.raises(InputError, match="16 bits a pixel; frames must have 8"):
        read_png(write_png(tmp_path / "x.png", speckle("x").astype(np.uint16) * 256))


@pytest.mark.parametrize("value", [0, 17])
def test_an_empty_picture_is_refused(tmp_path, value):
    with pytest.raises(InputError, match=f"is empty: every pixel is {value}"):
        read_png(write_png(tmp_path / "x.png", np.full((8, 8), value, np.uint8)))


# --- download


@contextlib.contextmanager
def serve(folder: Path):
    """Serve a folder on this machine; gives the address and the paths asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args) -> None:
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def publish(folder: Path, name: str, data: bytes, **entry):
    """Serve a record 7 with one file, as Zenodo describes it."""
    folder.mkdir(exist_ok=True)
    with serve(folder) as (url, asked):
        (folder / name).write_bytes(data)
        described = {
            "key": name,
            "size": len(data),
            "checksum": f"md5:{hashlib.md5(data).hexdigest()}",
            "links": {"self": f"{url}/{name}"},
        }
        (folder / "7").write_text(json.dumps({"files": [described | entry]}))
        yield url, asked


def test_download_once(tmp_path):
    with publish(tmp_path / "www", "a.zip", b"x" * 3_000_000) as (url, asked):
        path = download.fetch("7", "a.zip", tmp_path / "got", base_url=url)
        assert path.read_bytes() == b"x" * 3_000_000
        download.fetch("7", "a.zip", tmp_path / "got", base_url=url)
    assert asked == ["/7", "/a.zip", "/7"]
    assert [file.name for file in (tmp_path / "got").iterdir()] == ["a.zip"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"checksum": "md5:" + "0" * 32}, "instead of 0000"),
        ({"size": 7}, "sent 5 of 7 bytes"),
        ({"checksum": "sha256:0"}, "sha256 checksum"),
        ({"links": {}}, "in an unknown format"),
        ({"key": "b.zip"}, "has no file 'a.zip'; it has b.zip"),
    ],
)
def test_download_that_is_not_as_promised(tmp_path, entry, message):
    with publish(tmp_path / "www", "a.zip", b"12345", **entry) as (url, _), pytest.raises(InputError, match=message):
        download.fetch("7", "a.zip", tmp_path / "got", base_url=url)
    assert not list((tmp_path / "got").glob("*")), "a file that is not right is removed"


def test_no_such_record(tmp_path):
    with serve(tmp_path) as (url, _), pytest.raises(InputError, match=r"/7 \(HTTP status 404\). Use --source=DIR"):
        download.fetch("7", "a.zip", tmp_path / "got", base_url=url)


def test_no_file_behind_the_address(tmp_path):
    with publish(tmp_path / "www", "a.zip", b"12345") as (url, _):
        (tmp_path / "www" / "a.zip").unlink()
        with pytest.raises(InputError, match=r"a.zip \(HTTP status 404\)"):
            download.fetch("7", "a.zip", tmp_path / "got", base_url=url)
    assert not list((tmp_path / "got").glob("*"))


def test_an_answer_that_is_no_record(tmp_path):
    (tmp_path / "7").write_text("<html>")
    with serve(tmp_path) as (url, _), pytest.raises(InputError, match="the answer is not JSON"):
        download.fetch("7", "a.zip", tmp_path / "got", base_url=url)


def test_no_network(tmp_path):
    with serve(tmp_path) as (url, _):
        pass
    with pytest.raises(InputError, match=rf"Cannot download {url}/7 \(no connection\). Use --source=DIR for a folder"):
        download.fetch("7", "a.zip", tmp_path / "got", base_url=url)


@pytest.mark.parametrize("name", ["../escaped", "a/../../escaped", "/escaped"])
def test_an_archive_that_would_write_elsewhere(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("fine", "x")
        archive.writestr(name, "x")
    with pytest.raises(InputError, match="escaped', which is outside"):
        download.unpack(tmp_path / "a.zip", tmp_path / "a")
    assert [file.name for file in tmp_path.iterdir()] == ["a.zip"]


def test_a_damaged_archive(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK no zip")
    with pytest.raises(InputError, match="damaged zip"):
        download.unpack(tmp_path / "a.zip", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_prepare_from_the_publisher(planes, tmp_path, monkeypatch):
    planes.write(*PLANES_ROWS)
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as archive:
        for file in planes.folder.rglob("*.*"):
            archive.write(file, "FETAL_PLANES_ZENODO" / file.relative_to(planes.folder))
    with publish(tmp_path / "www", "FETAL_PLANES_ZENODO.zip", (tmp_path / "made.zip").read_bytes()) as (url, _):
        (tmp_path / "www" / "7").rename(tmp_path / "www" / "3904280")
        monkeypatch.setattr(download, "fetch", functools.partial(download.fetch, base_url=url))
        records = prepare(None, tmp_path / "out")
    assert [len(records[split]) for split in ("train", "test")] == [4, 3]


# --- the real thing


def test_full_table_names_images_that_are_not_there(real_data):
    source = real_data / "FETAL_PLANES_DB"
    name = "FETAL_PLANES_DB_data_full.csv"
    rows = read_rows(source, name)
    # The published table: 12,400 frames, 1,792 patients, 1,638 trans-thalamic, 143 other brain planes.
    assert len(rows) == 12_400
    assert len({row.patient_id for row in rows}) == 1792
    assert sum(row.fine == "trans-thalamic" for row in rows) == 1638
    assert sum(row.fine == -1 and row.coarse == "head" for row in rows) == 143
    with pytest.raises(InputError, match=r"lists 10,504 images \(of 12,400\)"):
        fetal_planes_db.find_images(source, name, rows, skip_missing=False)
    found, missing = fetal_planes_db.find_images(source, name, rows, skip_missing=True)
    assert (len(found), len(missing)) == (1896, 10_504)
