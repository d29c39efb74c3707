"""Picture files and tables that name them."""

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from awcl_jax.data.images import find_images, read_image, read_manifest
from awcl_jax.runtime.errors import InputError
from tests.helpers.frames import speckle

pytestmark = pytest.mark.quick

GREY = speckle("a")


def save(path, pixels=GREY, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("end", ["png", "bmp", "tif", "PNG"])
def test_grey_pictures_come_back_as_they_are(end, tmp_path):
    np.testing.assert_array_equal(read_image(save(tmp_path / f"a.{end}")), GREY)


def test_a_jpeg_is_what_opencv_reads(tmp_path):
    path = save(tmp_path / "a.jpg")
    np.testing.assert_array_equal(read_image(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))


def test_equal_channels_keep_grey_and_colours_become_luminance(tmp_path):
    same = save(tmp_path / "same.png", np.dstack([GREY] * 3))
    np.testing.assert_array_equal(read_image(same), GREY)
    clear = save(tmp_path / "clear.png", np.dstack([GREY] * 3 + [np.zeros_like(GREY)]))
    np.testing.assert_array_equal(read_image(clear), GREY)
    red = save(tmp_path / "red.png", np.full((2, 3, 3), (200, 100, 50), np.uint8))
    # 0.299 * 200 + 0.587 * 100 + 0.114 * 50 = 124.2
    np.testing.assert_array_equal(read_image(red), np.full((2, 3), 124))


def cut_short(path):
    save(path)
    path.write_bytes(path.read_bytes()[:-60])


def damaged(path):
    save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


def several(path):
    frames = [Image.fromarray(GREY), Image.fromarray(GREY)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("a.png", lambda path: None, "No such file"),
        ("a.png", lambda path: path.mkdir(), "Is a directory"),
        ("a.png", lambda path: path.write_bytes(b""), "not a PNG, JPEG, BMP, TIFF or WebP"),
        ("a.png", lambda path: path.write_text("text"), "not a PNG, JPEG, BMP, TIFF or WebP"),
        ("a.png", cut_short, "it is broken"),
        ("a.png", damaged, "it is broken"),
        ("a.jpg", cut_short, "it is broken"),
        ("a.bmp", cut_short, "it is broken"),
        ("a.tif", several, "has 2 pictures"),
        ("a.png", lambda path: save(path, GREY.astype(np.uint16) * 100), "more than 8 bits"),
        ("a.png", lambda path: save(path, np.zeros((7100, 7100), bool)), "7100 x 7100 pixels, more than 50,000,000"),
        ("a\0.png", lambda path: None, "embedded null"),
    ],
)
def test_a_picture_that_cannot_be_read_is_one_line_with_its_name(name, make, said, tmp_path):
    make(tmp_path / name)
    with pytest.raises(InputError, match=said) as caught:
        read_image(tmp_path / name)
    assert str(tmp_path / name).replace("\0", r"\x00") in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_pictures_are_found_below_in_order_and_round_no_circle(tmp_path):
    for name in ("b/2.PNG", "b/10.jpeg", "a.tiff", ".hidden.png", ".trash/c.png", "notes.txt", "png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    elsewhere.mkdir()
    (elsewhere / "d.bmp").touch()
    (tmp_path / "link").symlink_to(elsewhere)
    assert find_images(tmp_path) == ["a.tiff", "b/10.jpeg", "b/2.PNG", "link/d.bmp"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_cells_of_a_csv_are_text_and_an_empty_one_is_unknown(delimiter, tmp_path):
    lines = ["\ufeffpath|scan_id|note", '"a b.png"|007|1.50', "c.png||", 'd.png|x|"two\nlines"']
    path = tmp_path / "scans.csv"
    path.write_text("\n".join(lines).replace("|", delimiter) + "\n")
    assert read_manifest(path).to_pydict() == {
        "path": ["a b.png", "c.png", "d.png"],
        "scan_id": ["007", None, "x"],
        "note": ["1.50", None, "two\nlines"],
    }


def test_columns_of_a_parquet_file_keep_their_types(tmp_path):
    table = pa.table({"path": pa.array(["a", "b"], pa.large_string()), "scan_id": [3, None], "age": [0.5, 1.5]})
    parquet.write_table(table, tmp_path / "scans.parquet")
    found = read_manifest(tmp_path / "scans.parquet")
    assert found.to_pydict() == table.to_pydict()
    assert found.schema.field("scan_id").type == pa.int64()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"", "is not a CSV"),
        ("a.csv", b"file,scan_id\na.png,1\n", r"no column 'path'.*file, scan_id"),
        ("a.csv", b"path,scan_id\n", "no rows"),
        (
            "a.csv",
            b"path,scan_id\na.png,1\n\n'b,c.png,2\n",
            "3 cells in row 2 and 2 in its header. Quote names that contain ','",
        ),
        ("a.csv", b"path,x,x\na.png,1,2\n", "'x' more than once"),
        ("a.csv", b"path,x\na.png,\xff\n", "is not a CSV in UTF-8"),
        ("a.parquet", b"path\na.png\n", "is not a Parquet file"),
    ],
)
def test_a_broken_table_is_one_line(name, content, said, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        read_manifest(tmp_path / name)
    assert len(str(caught.value).splitlines()) == 1
    assert "c.png" not in str(caught.value), "a row may name a patient"
