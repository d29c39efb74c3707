"""Combinations of what tables, pictures and clips of the field have: each is read as the arrays it was made of."""

import io
import shutil
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from awcl_jax.data import png as published
from awcl_jax.data.anatomy import FETAL_PLANES_14
from awcl_jax.data.images import GAPS, find_named, read_image
from awcl_jax.data.images import read_manifest as read_table
from awcl_jax.ingest.own import images
from awcl_jax.ingest.own.items import BadFileError, Reading
from awcl_jax.ingest.own.labels import resolve_names
from awcl_jax.ingest.own.manifest import read_manifest
from awcl_jax.ingest.own.videos import decode
from awcl_jax.runtime.errors import InputError
from tests.helpers.examples import FEW, MANY
from tests.helpers.orientations import SHOWN, lying, tagged_png, tagged_tiff
from tests.helpers.own_files import moving_disc

GREY = moving_disc(4, size=(12, 20))
ENDINGS = {"PNG": ".png", "TIFF": ".tif", "WEBP": ".webp", "BMP": ".bmp"}
LAYOUTS = ("L", "LA", "RGB", "RGBA", "P")
DEEP_LAYOUTS = ("L", "RGB", "RGBA")  # which cv2 writes
WINDOW = (0, 255 * 16)

pictures = st.fixed_dictionaries(
    {
        "number": st.integers(0, len(GREY) - 1),
        "form": st.sampled_from(list(ENDINGS)),
        "orientation": st.integers(1, 8),
        "layout": st.sampled_from(LAYOUTS),
        "deep": st.booleans(),
        "spelling": st.sampled_from(("exact", "backslash", "capitals", "both")),
        "anatomy": st.sampled_from(("4CH", "", *sorted(GAPS))),
        "mask": st.sampled_from((1, 255)),
        "mask_orientation": st.integers(1, 8),
        "mask_form": st.sampled_from(("PNG", "TIFF")),
    }
)
tables = st.fixed_dictionaries(
    {
        "delimiter": st.sampled_from((",", ";", "\t", "|")),
        "mark": st.booleans(),
        "end": st.sampled_from(("\n", "\r\n")),
        "windowed": st.booleans(),
    }
)


def stored(pixels, orientation):
    """Pixels that the orientation turns into these."""
    back = {6: 8, 8: 6}.get(orientation, orientation)
    return np.ascontiguousarray(SHOWN[back](pixels))


def write_picture(path, grey, traits):
    """A picture file that shows these greys; whether it has more than 8 bits."""
    form, layout = traits["form"], traits["layout"]
    orientation = 1 if form == "BMP" else traits["orientation"]
    pixels = stored(grey, orientation)
    if traits["deep"] and form in ("PNG", "TIFF") and layout in DEEP_LAYOUTS:
        channels = (
            np.dstack([pixels.astype(np.uint16) * 16] * len(layout)) if len(layout) > 1 else pixels * np.uint16(16)
        )
        whole = cv2.imencode(f".{form.lower()}", channels)[1].tobytes()
        path.write_bytes((tagged_png if form == "PNG" else tagged_tiff)(whole, orientation))
        return True
    if layout == "P":
        picture = Image.fromarray(pixels)
        picture = picture if form == "WEBP" else picture.convert("P")  # its palette is all greys
    else:
        picture = Image.fromarray(pixels).convert("RGB" if form in ("BMP", "WEBP") and layout != "L" else layout)
    exif = Image.Exif()
    exif[274] = orientation
    options = {"PNG": {"exif": exif}, "TIFF": {"exif": exif}, "WEBP": {"exif": exif, "lossless": True}}.get(form, {})
    picture.save(path, form, **options)
    return False


def spelt(name, spelling):
    name = name.replace("/", "\\") if spelling in ("backslash", "both") else name
    stem, dot, ending = name.rpartition(".")
    return stem + dot + ending.upper() if spelling in ("capitals", "both") else name


@pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_tables_of_pictures_and_masks(many, tmp_path):
    source = tmp_path / "source"

    @(MANY if many else FEW)
    @given(st.lists(pictures, min_size=1, max_size=3), tables)
    def take(rows, form):
        shutil.rmtree(source, ignore_errors=True)
        (source / "in").mkdir(parents=True)
        delimiter = form["delimiter"]
        lines = [f"sep={delimiter}"] if delimiter == "|" or form["mark"] else []
        lines.append(delimiter.join(("path", "scan_id", "anatomy", "mask")))
        wanted = []
        for number, row in enumerate(rows):
            name, mask_name = f"in/{number}{ENDINGS[row['form']]}", f"in/{number}_mask.png"
            grey = GREY[row["number"]]
            deep = write_picture(source / name, grey, row)
            mask = (grey > 128).astype(np.uint8)
            data = lying(
                stored(mask * np.uint8(row["mask"]), row["mask_orientation"]), row["mask_orientation"], row["mask_form"]
            )
            (source / mask_name).write_bytes(data)
            names = spelt(name, row["spelling"]), f"s{number}", row["anatomy"], spelt(mask_name, row["spelling"])
            lines.append(delimiter.join(names))
            wanted.append((grey, mask, deep, 0 if row["anatomy"] == "4CH" else -1))
        text = form["end"].join([*lines, ""])
        (source / "scans.csv").write_bytes((b"\xef\xbb\xbf" if form["mark"] else b"") + text.encode())
        check(source, wanted, Reading(window=WINDOW if form["windowed"] else None, mask_names=("background", "head")))

    def check(source, wanted, reading):
        listing = read_manifest(source / "scans.csv")
        assert not listing.faults
        labels = resolve_names([row.anatomy for row in listing.rows], FETAL_PLANES_14, gaps=GAPS)
        names = read_table(source / "scans.csv")["path"].to_pylist()
        fine = FETAL_PLANES_14.fine.index("4CH")
        for row, name, (grey, mask, deep, label) in zip(listing.rows, names, wanted, strict=True):
            assert labels[row.anatomy][0] == (fine if label == 0 else -1)
            np.testing.assert_array_equal(images.read_mask(row.mask, reading, grey.shape), mask)
            by_embed = find_named(source, name)
            if deep:
                with pytest.raises(InputError, match="bits a pixel"):
                    read_image(by_embed)
                with pytest.raises(InputError, match="bits a pixel"):
                    published.read_grey(by_embed)
            else:
                np.testing.assert_array_equal(read_image(by_embed), grey)
                np.testing.assert_array_equal(published.read_grey(by_embed), grey)
            if deep and reading.window is None:
                with pytest.raises(BadFileError) as error:
                    images.read_image(row.path, reading)
                assert error.value.kind == "bit_depth"
            else:
                picture = images.read_image(row.path, reading)
                np.testing.assert_array_equal(picture.image, grey)
                assert not picture.colour

    take()


FRAMES = moving_disc(9, size=(16, 24))
CLIPS = {
    "ffv1 in mkv": ("matroska", "ffv1", "gray"),
    "raw in AVI": ("avi", "rawvideo", "bgr24"),
    "QuickTime": ("mov", "qtrle", "rgb24"),
    "deep in mkv": ("matroska", "ffv1", "gray16le"),
    "GIF": ("GIF", None, None),
    "TIFF": ("TIFF", None, None),
}


def write_clip(kind, count, turn, aspect, steps):
    """A clip without loss; `steps` are the frames' durations in fortieths of a second."""
    form, codec, pixels = CLIPS[kind]
    out = io.BytesIO()
    if codec is None:
        first, *others = (Image.fromarray(frame) for frame in FRAMES[:count])
        first.save(out, form, save_all=True, append_images=others)
        return out.getvalue()
    with av.open(out, "w", format=form) as container:
        stream = container.add_stream(codec, rate=40)
        stream.height, stream.width, stream.pix_fmt = *FRAMES[0].shape, pixels
        stream.codec_context.sample_aspect_ratio = aspect
        stream.codec_context.time_base = Fraction(1, 40)
        if turn:
            stream.set_display_rotation(turn)
        time = 0
        for number in range(count):
            deep = pixels == "gray16le"
            values = FRAMES[number].astype(np.uint16) * 16 if deep else FRAMES[number]
            frame = av.VideoFrame.from_ndarray(values, format=pixels if deep else "gray")
            frame.pts, frame.time_base = time, Fraction(1, 40)
            time += steps[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


@pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_clips(many):
    @(MANY if many else FEW)
    @given(
        st.sampled_from(list(CLIPS)),
        st.integers(2, len(FRAMES)),
        st.sampled_from((0, 90, 180, 270)),
        st.sampled_from((Fraction(1), Fraction(2), Fraction(1, 2))),
        st.lists(st.integers(1, 5), min_size=len(FRAMES), max_size=len(FRAMES)),
        st.integers(1, 4),
        st.floats(0.3, 1),
        st.booleans(),
    )
    @example("QuickTime", 9, 90, Fraction(2), [1, 5] * 4 + [1], 2, 1.0, False)
    def take(kind, count, turn, aspect, steps, every, part, windowed):
        # What its writer cannot say of it.
        turn, steps = (0, [1] * len(FRAMES)) if kind == "raw in AVI" else (turn, steps)
        aspect = aspect if kind == "QuickTime" else Fraction(1)
        data = write_clip(kind, count, turn, aspect, steps)
        data = data[: round(part * len(data))]
        reading = Reading(every=every, window=WINDOW if windowed else None)
        try:
            found, fault = [picture.image for picture in decode(io.BytesIO(data), reading)], ""
        except BadFileError as error:
            fault = error.kind
        if fault:
            allowed = {"bit_depth"} if kind == "deep in mkv" and not windowed else set()
            assert fault in (allowed if part == 1 else allowed | {"cut_short", "no_video"})
            return
        assert len(found) == -(-count // every)
        for image, frame in zip(found, FRAMES[:count:every], strict=True):
            if CLIPS[kind][1] is not None:
                height, width = frame.shape
                how = cv2.INTER_AREA if aspect < 1 else cv2.INTER_LINEAR
                frame = np.rot90(cv2.resize(frame, (int(width * aspect), height), interpolation=how), turn // 90)
            np.testing.assert_array_equal(image, frame)

    take()
