"""Images and clips as they are decoded, what of their pictures is kept, and what is refused."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from awcl_jax.data.images import IMAGES
from awcl_jax.ingest.own.images import apply_window, open_image, read_image, read_mask
from awcl_jax.ingest.own.items import BadFileError, Clip, Picture, Reading
from awcl_jax.ingest.own.near import difference, thumbnail
from awcl_jax.ingest.own.region import Kept, Parts, blacken, kept_part, moving_sector
from awcl_jax.ingest.own.videos import open_video
from tests.helpers.frames import speckle
from tests.helpers.own_files import moving_disc, write_video

PLAIN = Reading()


def kind_of(read, *args) -> str:
    with pytest.raises(BadFileError) as error:
        read(*args)
    return error.value.kind


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options) -> Path:
    Image.fromarray(pixels, mode).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", IMAGES)
def test_formats(tmp_path, suffix):
    pixels = moving_disc(1)[0]
    lossless = {"lossless": True} if suffix == ".webp" else {}
    picture = read_image(save(tmp_path / f"x{suffix}", pixels, **lossless), PLAIN)
    assert (picture.image.dtype, picture.colour) == (np.uint8, False)
    np.testing.assert_allclose(picture.image.astype(int), pixels, atol=8 if "jp" in suffix else 0)
    assert len(list(open_image(tmp_path / f"x{suffix}", PLAIN).frames())) == 1


def test_colours_become_their_luminance(tmp_path):
    grey = speckle("x")
    colour = np.stack([grey, grey, grey], axis=-1)
    assert not read_image(save(tmp_path / "grey.png", colour), PLAIN).colour
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png", PLAIN).image, grey)
    colour[3, 4] = (200, 100, 0)
    picture = read_image(save(tmp_path / "colour.png", colour), PLAIN)
    assert picture.colour
    assert picture.image[3, 4] == round(0.299 * 200 + 0.587 * 100)
    transparent = np.dstack([colour, np.zeros_like(grey)])
    np.testing.assert_array_equal(read_image(save(tmp_path / "rgba.png", transparent), PLAIN).image, picture.image)
    palette = Image.fromarray(colour).quantize(256, dither=Image.Dither.NONE)
    palette.save(tmp_path / "palette.png")
    expected = np.asarray(palette.convert("RGB").convert("L"))
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png", PLAIN).image, expected)


def test_deeper_pictures_need_a_window(tmp_path):
    deep = np.array([[0, 100, 200, 300, 65535]], np.uint16)
    path = save(tmp_path / "deep.png", deep)
    assert kind_of(read_image, path, PLAIN) == "bit_depth"
    # 255 (v - 100) / 200, by hand: 0, 0, 127.5, 255, cut off.
    picture = read_image(path, Reading(window=(100, 300)))
    assert picture.image.tolist() == [[0, 0, 128, 255, 255]]


def test_a_window_is_that_of_an_exact_formula():
    values = np.random.default_rng(0).integers(-500, 500, (20, 30))
    low, high = -100.5, 321.25
    exact = [[min(255, max(0, 255 * (int(v) - low) / (high - low))) for v in row] for row in values]
    np.testing.assert_allclose(apply_window(values, (low, high)), exact, atol=0.5)


def bomb(path: Path, edge: int) -> Path:
    """A PNG that is black on its whole huge surface, in few bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", edge, edge, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((edge // 8 + 1) * 100))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


def test_refused_images(tmp_path):
    whole = save(tmp_path / "whole.png", speckle("x")).read_bytes()
    jpeg = save(tmp_path / "whole.jpg", speckle("x")).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for name, data, kind in (
        ("cut.png", whole[:-40], "cut_short"),
        ("cut.jpg", jpeg[: len(jpeg) // 2], "cut_short"),
        ("flipped.png", bytes(flipped), "cut_short"),
        ("text.png", b"path,scan_id\n", "no_image"),
        ("header.png", whole[:20], "no_image"),
        ("page.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no_image"),
        ("empty.png", b"", "no_bytes"),
    ):
        (tmp_path / name).write_bytes(data)
        assert kind_of(read_image, tmp_path / name, PLAIN) == kind, name
    assert kind_of(read_image, tmp_path / "none.png", PLAIN) == "missing"
    assert kind_of(read_image, bomb(tmp_path / "bomb.png", 9_000), PLAIN) == "too_large"
    assert kind_of(read_image, bomb(tmp_path / "bomb.png", 60_000), PLAIN) == "too_large"
    pages = [Image.fromarray(speckle(name)) for name in "ab"]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    assert kind_of(read_image, tmp_path / "pages.tif", PLAIN) == "several_pages"


def test_masks(tmp_path):
    reading = Reading(mask_names=("background", "head", "brain"))
    mask = np.zeros((32, 40), np.uint8)
    mask[4:8, 5:9] = 2
    np.testing.assert_array_equal(read_mask(save(tmp_path / "m.png", mask), reading, (32, 40)), mask)
    indexed = Image.fromarray(mask)
    indexed.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    indexed.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "p.png", reading, (32, 40)), mask)
    for pixels, names, size in (
        (mask, ("background", "head"), (32, 40)),
        (mask, reading.mask_names, (40, 32)),
        (np.stack([mask] * 3, axis=-1), reading.mask_names, (32, 40)),
    ):
        path = save(tmp_path / "bad.png", pixels)
        assert kind_of(read_mask, path, Reading(mask_names=names), size) == "bad_mask"
    assert kind_of(read_mask, tmp_path / "none.png", reading, (32, 40)) == "bad_mask"


CODECS = [("x.avi", "mjpeg"), ("x.mp4", "libx264"), ("x.mov", "mpeg4"), ("x.mpeg", "mpeg1video")]


@pytest.mark.parametrize(("name", "codec"), CODECS)
def test_every_nth_frame_from_the_first(tmp_path, name, codec):
    frames = moving_disc(20, size=(64, 96))
    write_video(tmp_path / name, frames, codec)
    decoded = [picture.image for picture in open_video(tmp_path / name, Reading(every=8)).frames()]
    assert len(decoded) == 3
    for image, number in zip(decoded, (0, 8, 16), strict=True):
        errors = np.abs(frames.astype(int) - image).mean(axis=(1, 2))
        assert errors.argmin() == number
        assert errors.min() < 6


@pytest.mark.parametrize(("name", "codec"), CODECS)
def test_refused_videos(tmp_path, name, codec):
    whole = write_video(tmp_path / name, moving_disc(40, size=(64, 96)), codec)

    def kind(data: bytes, **fields) -> str:
        (tmp_path / name).write_bytes(data)
        return kind_of(lambda: list(open_video(tmp_path / name, Reading(every=8, **fields)).frames()))

    assert kind(whole[: len(whole) // 2]) == "cut_short"
    hole = bytearray(whole)
    hole[len(whole) // 2 : len(whole) // 2 + 600] = bytes(600)
    assert kind(bytes(hole)) == "cut_short"
    assert kind(whole, max_pixels=1000) == "too_large"
    assert kind(b"no video, but text" * 100) == "no_video"
    assert kind(b"") == "no_bytes"


def test_sound_is_no_video(tmp_path):
    import av

    with av.open(str(tmp_path / "x.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        for packet in (*stream.encode(frame), *stream.encode()):
            container.mux(packet)
    assert kind_of(lambda: list(open_video(tmp_path / "x.mp4", PLAIN).frames())) == "no_video"


def test_real_clips_are_whole(real_data):
    folder = real_data / "POCUS_LUNG"
    rows = [line.split(",") for line in (folder / "videos.csv").read_text().splitlines()[1:]]
    for name, _, _, count, _ in (rows[0], rows[4], rows[9]):
        path = folder / "videos" / name
        frames = [picture.image for picture in open_video(path, Reading(every=8)).frames()]
        assert abs(len(frames) - int(count) / 8) < 1
        # OpenCV decodes by itself, to colours.
        capture = cv2.VideoCapture(str(path))
        for number in range(9):
            _, colours = capture.read()
            if number in (0, 8):
                grey = cv2.cvtColor(colours, cv2.COLOR_BGR2GRAY)
                assert np.abs(grey.astype(int) - frames[number // 8]).max() <= 2


def test_difference_is_that_of_averages():
    a, b = moving_disc(2, size=(64, 96))
    blocks = [image.reshape(32, 2, 32, 3).mean(axis=(1, 3)) for image in (a, b)]
    # cv2 rounds the averages to whole grey levels.
    assert difference(thumbnail(a), thumbnail(b)) == pytest.approx(np.abs(blocks[0] - blocks[1]).mean(), abs=0.5)
    assert difference(thumbnail(a), thumbnail(a)) == 0


def overlaid(count: int = 12) -> np.ndarray:
    """A fan that moves, under text that stands still and a clock that runs."""
    frames = np.zeros((count, 240, 320), np.uint8)
    for number, frame in enumerate(frames):
        frame[FAN] = np.random.default_rng(number).integers(20, 250, int(FAN.sum()))
        cv2.putText(frame, "NAME, GIVEN", (4, 20), cv2.FONT_HERSHEY_PLAIN, 2, 255, 3)
        cv2.putText(frame, f"12:00:{number:02}", (230, 20), cv2.FONT_HERSHEY_PLAIN, 1, 255)
        cv2.putText(frame, "5 cm", (4, 60), cv2.FONT_HERSHEY_PLAIN, 1, 255)
    return frames


FAN = cv2.fillConvexPoly(np.zeros((240, 320), np.uint8), np.array([[160, 40], [60, 200], [260, 200]]), 1) == 1
NEAR_FAN = cv2.dilate(FAN.astype(np.uint8), np.ones((9, 9))) == 1


def clip_of(frames: np.ndarray, *region: tuple[int, int, int, int]) -> Clip:
    return Clip(frames=lambda: iter([Picture(frame) for frame in frames]), region=region)


def keep(image: np.ndarray, kept: Kept) -> np.ndarray:
    return blacken(image, Parts(clip_of(image[None]), kept).of(image))


@pytest.mark.parametrize(
    ("region", "named"), [("sector", ()), ("sector", (10, 25, 320, 240)), ("tag", (10, 25, 320, 240))]
)
def test_the_sector_is_kept(region, named):
    frames = overlaid()
    kept = kept_part(clip_of(frames, *([named] if named else [])), region, (240, 320))
    for frame in frames:
        image = keep(frame, kept)
        assert (image[FAN] == frame[FAN]).mean() > 0.97
        assert not image[~NEAR_FAN].any(), "neither the name, nor the clock, nor what is in the rectangle's corner"


def test_what_is_kept():
    frames = np.random.default_rng(0).integers(20, 250, (2, 240, 320), np.uint8)
    np.testing.assert_array_equal(keep(frames[0], kept_part(clip_of(frames), "whole", (240, 320))), frames[0])
    named = ((100, 40, 200, 240), (0, 0, 10, 10), (300, 30, 320, 240))
    by_tag = keep(frames[0], kept_part(clip_of(frames, *named), "tag", (240, 320)))
    expected = np.zeros_like(frames[0])
    for x0, y0, x1, y1 in named:
        expected[y0:y1, x0:x1] = frames[0, y0:y1, x0:x1]
    assert not by_tag[expected == 0].any()
    assert (by_tag == expected).mean() > 0.999, "the corners of the three may go"
    kept = kept_part(clip_of(frames), (300, 0, 999, 2), (240, 320))
    by_user = keep(frames[0], kept)
    np.testing.assert_array_equal(by_user[:2, 300:], frames[0, :2, 300:])
    assert (by_user > 0).sum() == 2 * 20
    assert kind_of(keep, frames[0][1:], kept) == "cut_short"


@pytest.mark.parametrize(
    ("region", "named", "kind"),
    [("tag", [], "no_region"), ("tag", [(400, 0, 500, 10)], "no_region"), ((400, 0, 500, 10), [], "no_region")],
)
def test_what_cannot_be_kept(region, named, kind):
    assert kind_of(kept_part, clip_of(overlaid(1), *named), region, (240, 320)) == kind


def test_text_alone_is_no_sector():
    frames = overlaid()
    assert kind_of(moving_sector, [Picture(frames[0])], (240, 320)) == "no_motion"
    frames[:, FAN] = 100
    assert kind_of(moving_sector, [Picture(frame) for frame in frames], (240, 320)) == "no_motion"
    assert kind_of(moving_sector, [Picture(frames[0]), Picture(frames[0, 1:])], (240, 320)) == "cut_short"


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (4, 4)])
def test_the_smallest_pictures(size):
    frame = np.full((1, *size), 9, np.uint8)
    kept = kept_part(clip_of(frame, (0, 0, 999, 999)), "tag", size)
    np.testing.assert_array_equal(keep(frame[0], kept), frame[0])
