"""Clips that were cut short or have a hole: all frames, or a fault, wherever the file ends or the hole is."""

import io
import re
import struct

import av
import numpy as np
import pytest
from PIL import Image

from awcl_jax.ingest.own.containers import is_broken
from awcl_jax.ingest.own.items import BadFileError, Reading
from awcl_jax.ingest.own.videos import decode
from tests.helpers.own_files import moving_disc

FRAMES = moving_disc(15, size=(32, 48))
CLUSTER = b"\x1fC\xb6u"  # begins a part of a Matroska file

MADE = {
    "mkv": ("matroska", "libx264", {}),
    "mkv, live": ("matroska", "libx264", {"live": "1"}),
    "mkv, many clusters": ("matroska", "mpeg4", {"cluster_time_limit": "100"}),
    "webm": ("webm", "libvpx", {}),
    "mp4": ("mp4", "libx264", {}),
    "mp4, fragments": ("mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
    "mov": ("mov", "mjpeg", {}),
    "avi": ("avi", "mpeg4", {}),
    "avi, raw": ("avi", "rawvideo", {}),
    "avi, jpeg": ("avi", "mjpeg", {}),
    "mpeg": ("mpeg", "mpeg1video", {}),
    "vob": ("vob", "mpeg2video", {}),
    "wmv": ("asf", "wmv2", {}),
    "flv": ("flv", "flv", {}),
    "gif": ("gif", "gif", {}),
    "tiff": None,
}


def write(form, codec, options):
    """The bytes of a clip."""
    out = io.BytesIO()
    with av.open(out, "w", format=form, options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = FRAMES[0].shape
        stream.pix_fmt = {"mjpeg": "yuvj420p", "gif": "gray", "rawvideo": "bgr24"}.get(codec, "yuv420p")
        stream.options, stream.bit_rate = {"crf": "20", "g": "5"}, 500_000
        for frame in FRAMES:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        container.mux(stream.encode())
    return out.getvalue()


def pages():
    out = io.BytesIO()
    pictures = [Image.fromarray(frame) for frame in FRAMES]
    pictures[0].save(out, "TIFF", save_all=True, append_images=pictures[1:])
    return out.getvalue()


@pytest.fixture(scope="module")
def whole():
    """Every kind of clip, whole."""
    return {name: pages() if how is None else write(*how) for name, how in MADE.items()}


def read(data):
    """Number of frames, or the kind of the fault."""
    try:
        return len(list(decode(io.BytesIO(data), Reading(every=1))))
    except BadFileError as error:
        return error.kind


@pytest.mark.parametrize("name", MADE)
def test_a_clip_that_is_cut_has_all_frames_or_is_a_fault(name, whole):
    data = whole[name]
    assert read(data) == len(FRAMES)
    assert not is_broken(io.BytesIO(data))
    places = {*np.linspace(1, len(data) - 1, 40).astype(int).tolist(), *(len(data) - n for n in (1, 2, 3, 7, 12, 40))}
    # A live recording that ends between two of its parts is a shorter one that is whole. So is one that ends in the
    # first bytes of a fragment's length, which are zeros and so padding.
    parts = set()
    if name in ("mp4, fragments", "mkv, live"):
        begins = {m.start() - 4 * (m[0] != CLUSTER) for m in re.finditer(b"moof|mfra|" + CLUSTER, data)}
        parts = {begin + more for begin in begins for more in range(4) if not any(data[begin : begin + more])}
    places |= {begin + more for begin in parts for more in range(-3, 5)}  # where the machine's codec ends its parts
    found = {place: read(data[:place]) for place in sorted(places - parts) if place < len(data)}
    assert set(found.values()) <= {len(FRAMES), "cut_short", "no_video"}
    assert "cut_short" in found.values()
    # Not one is blamed on the format where its beginning is there.
    assert {kind for place, kind in found.items() if place > len(data) / 3} <= {len(FRAMES), "cut_short"}


def test_a_fragment_without_its_samples_is_cut(whole):
    data = whole["mp4, fragments"]
    for samples in [m.start() - 4 for m in re.finditer(b"mdat", data)]:
        assert is_broken(io.BytesIO(data[:samples]))
        assert read(data[:samples]) == "cut_short"


@pytest.mark.parametrize("name", [name for name in MADE if name != "tiff"])
def test_the_lengths_alone_tell_a_cut(name, whole):
    # Within the frames, which begin in the first fifth and end before the last of every kind.
    data = whole[name]
    places = np.unique(np.linspace(len(data) // 5, len(data) * 4 // 5, 5000).astype(int)).tolist()
    told = [is_broken(io.BytesIO(data[:place])) for place in places]
    # But for a cut between two parts of what has no length of its own.
    assert np.mean(told) > 0.98


@pytest.mark.parametrize("name", [name for name in MADE if name != "gif"])
def test_zeros_at_the_end_are_padding(name, whole):
    assert read(whole[name] + bytes(1)) == len(FRAMES)
    assert read(whole[name] + bytes(64)) == len(FRAMES)


# A hole in what has no lengths inside: the lines of a picture's values, or the one packet of a short recording.
WITHOUT_PARTS = ("tiff", "mpeg", "vob", "wmv")


@pytest.mark.parametrize("name", [name for name in MADE if name not in WITHOUT_PARTS])
def test_frames_that_a_hole_takes_are_missed(name, whole):
    data, length = whole[name], 600
    # Behind what describes the format, and before the tables at the end.
    places = np.linspace(len(data) * 0.35, len(data) * 0.85 - length, 60).astype(int)
    found = {place: read(data[:place] + bytes(length) + data[place + length :]) for place in sorted(set(places))}
    assert set(found.values()) <= {len(FRAMES), "cut_short"}, found
    assert "cut_short" in found.values()


def chunk(name, body, *, even=True):
    return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2 and even)


@pytest.mark.parametrize("even", [True, False])
def test_an_avi_has_its_frames_in_lists_and_of_odd_lengths(even):
    """Some recorders leave out the byte that makes a length even."""
    frames = [chunk(b"00dc", bytes([number] * 101), even=even) for number in range(1, 5)]
    records = b"".join(chunk(b"LIST", b"rec " + b"".join(frames[n : n + 2])) for n in (0, 2))
    data = chunk(b"RIFF", b"AVI " + chunk(b"LIST", b"movi" + records) + chunk(b"idx1", bytes(64)))
    assert not is_broken(io.BytesIO(data))
    for frame in frames[1:]:
        begin = data.index(frame)
        assert is_broken(io.BytesIO(data[:begin] + bytes(20) + data[begin + 20 :]))
        # Within a frame is no length.
        assert not is_broken(io.BytesIO(data[: begin + 10] + bytes(20) + data[begin + 30 :]))


def test_a_few_zeros_between_chunks_are_padding(whole):
    """VLC writes four."""
    data = whole["avi"]
    for name in (b"LIST", b"00dc", b"idx1"):
        begin = data.rindex(name, 0, data.rindex(b"idx1") + 4)
        for zeros, is_whole in ((4, True), (64, True), (80, False)):
            padded = data[:begin] + bytes(zeros) + data[begin:]
            padded = padded[:4] + struct.pack("<I", len(padded) - 8) + padded[8:]
            assert is_broken(io.BytesIO(padded)) is not is_whole
    begin = data.rindex(b"idx1")
    padded = data[:begin] + bytes(4) + data[begin:]
    assert read(padded[:4] + struct.pack("<I", len(padded) - 8) + padded[8:]) == len(FRAMES)


def test_an_avi_whose_list_of_frames_has_no_head_is_not_padded(whole):
    data = whole["avi"]
    begin = data.rindex(b"LIST", 0, data.index(b"movi"))
    assert is_broken(io.BytesIO(data[:begin] + bytes(12) + data[begin + 12 :]))


def test_a_video_cd_is_whole():
    """Its packets of sound are followed by zeros, up to the length of a sector."""
    out = io.BytesIO()
    with av.open(out, "w", format="vcd") as container:
        picture, sound = container.add_stream("mpeg1video", rate=25), container.add_stream("mp2", rate=44100)
        picture.height, picture.width, picture.pix_fmt = *FRAMES[0].shape, "yuv420p"
        sound.layout = "stereo"
        for frame in np.concatenate([FRAMES, FRAMES]):
            container.mux(picture.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
            silence = av.AudioFrame(format="s16", layout="stereo", samples=1764)
            silence.sample_rate = 44100
            container.mux(sound.encode(silence))
        for stream in (picture, sound):
            container.mux(stream.encode())
    data = out.getvalue()
    assert bytes(20) + b"\0\0\1\xba" in data
    assert read(data) == 2 * len(FRAMES)


def test_a_recorder_may_count_the_header_of_an_avi_too(whole):
    data = whole["avi"]
    assert read(data[:4] + struct.pack("<I", len(data)) + data[8:]) == len(FRAMES)
    assert is_broken(io.BytesIO(data[:4] + struct.pack("<I", len(data) + 10) + data[8:]))


def test_an_avi_whose_recorder_never_wrote_its_length_is_whole(whole):
    data = whole["avi"]
    for length in (0, 2**32 - 1):
        assert read(data[:4] + struct.pack("<I", length) + data[8:]) == len(FRAMES)


def test_the_packets_of_a_transport_stream_are_of_one_length():
    data = write("mpegts", "mpeg2video", {})
    assert read(data) == len(FRAMES)
    assert len(data) % 188 == 0
    assert read(data[:-100]) == "cut_short"
    padding = bytes(3 * 188)
    assert read(data + padding) == len(FRAMES)
    middle = len(data) // 376 * 188
    assert read(data[:middle] + padding + data[middle + len(padding) :]) == "cut_short"


def test_the_packets_of_a_wmv_are_of_one_size():
    data = write("asf", "mjpeg", {})
    second = data.index(bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")) + 50 + 3200
    assert read(data) == len(FRAMES)
    assert is_broken(io.BytesIO(data[: second - 20] + bytes(40) + data[second + 20 :]))
    assert not is_broken(io.BytesIO(data[: second - 60] + bytes(40) + data[second - 20 :]))
    # Without the data for error correction, which may be left out, packets begin in many ways.
    plain = bytearray(data)
    for number, begin in enumerate(range(second - 3200, len(data) - 3199, 3200)):
        plain[begin] = (0x10, 0x08, 0x11)[number % 3]
    assert not is_broken(io.BytesIO(plain))


def test_what_is_no_container_is_not_cut():
    for data in (b"", b"x", b"text " * 100, bytes(100), b"\xff\xd8\xff" + bytes(50)):
        assert not is_broken(io.BytesIO(data))
    # Matroska of an unknown element that goes on to the end, and a number that is none.
    assert not is_broken(io.BytesIO(bytes.fromhex("1a45dfa380 ec ff") + bytes(9)))
    assert is_broken(io.BytesIO(bytes.fromhex("1a45dfa380 18538067 01ffffffffffffff ec 8f")))


@pytest.mark.parametrize("name", MADE)
def test_any_bytes_are_walked_to_an_end(name, whole):
    rng = np.random.default_rng(0)
    data = np.frombuffer(whole[name][:4_000], np.uint8)
    for _ in range(30):
        broken = data.copy()
        broken[rng.integers(16, len(data), 20)] = rng.integers(0, 256, 20)
        assert is_broken(io.BytesIO(broken.tobytes())) in (True, False)
