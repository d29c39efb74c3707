"""How well the sector is found, against outlines that were drawn by eye; see `docs/results/sector.md`.

python -m benchmarks.sector
python -m benchmarks.sector --each --data=FOLDER

Clips are those of `POCUS_LUNG`, frames those of `FETAL_PLANES_DB`; what is absent is skipped. A clip is measured as it
is, and four times on a larger screen that is written full around the outline: as it is, with Gaussian noise, and
encoded again at a low bitrate by two codecs.

- IoU: of the sector found and the outline.
- lost: share of the outline that is outside of the sector.
- text kept: share of the written pixels that is inside of the sector.
"""

import argparse
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from awcl_jax.data.sector import find_sector
from awcl_jax.ingest.own.items import BadFileError, Picture, Reading
from awcl_jax.ingest.own.region import moving_sector
from awcl_jax.ingest.own.videos import decode, open_video
from tests.helpers.outlines import OUTLINES, fill

_ROOT = Path(__file__).parents[1]
FRAMES_OF = {"frames_tuned_on": "tuned on", "frames_held_out": "held out", "frames_drawn_last": "drawn last"}
_EVERY = 8  # as ingest takes them
_GAP = 6  # pixels from the outline to the nearest text
_Frames = UInt8[np.ndarray, "t h w"]
_Region = Bool[np.ndarray, "h w"]


class Score(NamedTuple):
    """What a sector has of an outline and of the text about it; `text` is NaN where nothing was written."""

    iou: float
    lost: float
    text: float = float("nan")


def main() -> None:
    """Print a table of the clips and of the frames."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("AWCL_DATA", _ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=data, help="folder of the real data (default: %(default)s)")
    parser.add_argument("--frames", type=int, help="of a clip, the first so many of those taken (default: all)")
    parser.add_argument("--each", action="store_true", help="print a line for every clip and frame")
    args = parser.parse_args()
    print("| what | n | IoU mean | IoU worst | lost mean | lost worst | text kept mean | text kept worst |")
    print("|---" * 8 + "|")
    for name in CONDITIONS:
        _print(f"clips, {name}", clip_scores(args.data, name, count=args.frames), each=args.each)
    for group, title in FRAMES_OF.items():
        _print(f"frames, {title}", frame_scores(args.data, group), each=args.each)


def clip_scores(data: Path, condition: str, *, count: int | None = None) -> dict[str, Score]:
    """The scores of `moving_sector` on the first frames of each clip; NaN for those refused, none for those absent."""
    scores = {}
    for name, polygon in json.loads(OUTLINES.read_text())["clips"].items():
        path = data / "POCUS_LUNG/videos" / name
        if path.is_file():
            every = 1 if condition in _REENCODED else _EVERY
            frames = np.stack([p.image for p in open_video(path, Reading(every=every)).frames()])
            inside = fill(polygon, frames.shape[1:])
            frames, inside, text = CONDITIONS[condition](frames, inside)
            scores[name] = score(frames[:count], inside, text)
    return scores


def frame_scores(data: Path, group: str) -> dict[str, Score]:
    """The scores of `find_sector` on each frame of a half; none where the frames are absent."""
    scores = {}
    for name, polygon in json.loads(OUTLINES.read_text())[group].items():
        frame = cv2.imread(str(data / "FETAL_PLANES_DB/Images" / name), cv2.IMREAD_GRAYSCALE)
        if frame is not None:
            scores[name] = compare(find_sector(frame), fill(polygon, frame.shape))
    return scores


def score(frames: _Frames, inside: _Region, text: _Region) -> Score:
    """The score of `moving_sector`; NaN where it refuses the clip."""
    try:
        return compare(moving_sector([Picture(frame) for frame in frames], inside.shape), inside, text)
    except BadFileError:
        return Score(float("nan"), float("nan"))


def compare(found: _Region, inside: _Region, text: _Region | None = None) -> Score:
    """The score of a sector."""
    kept = float((found & text).sum() / text.sum()) if text is not None and text.any() else float("nan")
    return Score(
        float((found & inside).sum() / (found | inside).sum()), float((inside & ~found).sum() / inside.sum()), kept
    )


def as_it_is(frames: _Frames, inside: _Region) -> tuple[_Frames, _Region, _Region]:
    """The clip, its outline, and no text."""
    return frames, inside, np.zeros_like(inside)


def on_a_screen(frames: _Frames, inside: _Region) -> tuple[_Frames, _Region, _Region]:
    """The clip on a larger black screen with lines of text wherever the outline leaves room, and a grey bar."""
    height, width = inside.shape
    top, side = height // 8, width // 4
    # Codecs want even numbers.
    margins = ((top, top + height % 2), (side, side + width % 2))
    frames, inside = np.pad(frames, ((0, 0), *margins)), np.pad(inside, margins)
    written = np.zeros(inside.shape, np.uint8)
    for line in range(inside.shape[0] // 14):
        words = f"PROBE C5-2  {line:02} dB  MI 1.{line % 9}  NAME, GIVEN  Abdomen  Gn {70 + line}  "
        cv2.putText(written, 4 * words, (3 - 17 * (line % 5), 12 + 14 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.36, 210)
    written[top : top + height // 3, 4:14] = np.linspace(255, 30, height // 3).astype(np.uint8)[:, None]
    near = cv2.dilate(inside.astype(np.uint8), np.ones((2 * _GAP + 1, 2 * _GAP + 1), np.uint8)) != 0
    written[near] = 0
    return np.maximum(frames, written), inside, written > 0


def with_noise(frames: _Frames, inside: _Region) -> tuple[_Frames, _Region, _Region]:
    """The clip on a screen, with Gaussian noise of 1.5 grey levels."""
    frames, inside, text = on_a_screen(frames, inside)
    noise = np.random.default_rng(0).normal(0, 1.5, frames.shape)
    return np.clip(np.round(frames + noise), 0, 255).astype(np.uint8), inside, text


def compressed_hard(codec: str) -> Callable[[_Frames, _Region], tuple[_Frames, _Region, _Region]]:
    """The clip on a screen, encoded again at 150 kbit a second."""

    def compress(frames: _Frames, inside: _Region) -> tuple[_Frames, _Region, _Region]:
        frames, inside, text = on_a_screen(frames, inside)
        return np.stack(list(encoded_again(frames, codec=codec, bit_rate=150_000))), inside, text

    return compress


def encoded_again(frames: _Frames, *, codec: str, bit_rate: int) -> Iterator[UInt8[np.ndarray, "h w"]]:
    """Every eighth frame of a clip of 25 frames a second that was encoded at a bitrate."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.bit_rate, stream.pix_fmt = bit_rate, "yuv420p"
        stream.height, stream.width = frames[0].shape
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        container.mux(stream.encode())
    file.seek(0)
    yield from (picture.image for picture in decode(file, Reading(every=_EVERY)))


CONDITIONS: Mapping[str, Callable[[_Frames, _Region], tuple[_Frames, _Region, _Region]]] = {
    "as they are": as_it_is,
    "text about them": on_a_screen,
    "text and noise": with_noise,
    "text, H.264 at 150 kbit/s": compressed_hard("libx264"),
    "text, MPEG-4 at 150 kbit/s": compressed_hard("mpeg4"),
}
"""What is done to a clip before its sector is looked for."""

_REENCODED = ("text, H.264 at 150 kbit/s", "text, MPEG-4 at 150 kbit/s")


def _print(name: str, scores: Mapping[str, Score], *, each: bool) -> None:
    if not scores:
        print(f"| {name} | 0: absent" + " |" * 7)
        return
    iou, lost, text = np.array([of for of in scores.values() if not np.isnan(of.iou)]).T
    refused = f" and {len(scores) - len(iou)} refused" if len(iou) < len(scores) else ""
    kept = " | |" if np.isnan(text).all() else f" {_percent(np.nanmean(text))} | {_percent(np.nanmax(text))} |"
    print(
        f"| {name} | {len(iou)}{refused} | {iou.mean():.3f} | {iou.min():.3f} | {_percent(lost.mean())} | "
        f"{_percent(lost.max())} |{kept}"
    )
    if each:
        for of, s in sorted(scores.items(), key=lambda item: item[1].iou):
            print(f"| &nbsp; {of} | | {s.iou:.3f} | | {_percent(s.lost)} | | {_percent(s.text)} | |")


def _percent(share: float) -> str:
    return "" if np.isnan(share) else f"{100 * share:.1f}%"


if __name__ == "__main__":
    main()
