"""Decode jobs into chunks: ArrayRecord files of finished records, each beside the outcomes of its files.

A chunk is renamed into place when it is complete. After a kill, complete ones are used and the others are redone. A
chunk depends only on its job, not on the number of processes.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import UInt8
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from awcl_jax.data.png import encode_png
from awcl_jax.data.record import frame_features
from awcl_jax.ingest.own import dicom, images, videos
from awcl_jax.ingest.own.items import BadFileError, Clip, Item, Picture, Reading, Rectangle
from awcl_jax.ingest.own.near import difference, thumbnail
from awcl_jax.ingest.own.plan import Job
from awcl_jax.ingest.own.region import Box, Parts, blacken, box_of, fans_in, kept_part
from awcl_jax.ingest.own.removed import SIZE, show_removed
from awcl_jax.runtime.errors import InputError

_OPENERS = {"image": images.open_image, "video": videos.open_video, "dicom": dicom.open_dicom}
RECORD_OPTIONS = "group_size:1,uncompressed"  # each record can be read alone, and PNG does not compress further
_CONTENT = 2  # raised when what a chunk holds changes; raising `plan._FORMAT` also refuses datasets prepared before
_ID_DIGITS = 20
_EXAMPLES = 8  # of what was removed, for each chunk
_STRIPS = 512  # jobs whose examples are read, which takes 300 MB
_START = 1.0  # second, at most, until processes have started; each is given more than that to decode
_BUSY = {"image": 1.8, "video": 1.3, "dicom": 1.6}  # processors that a process keeps at work
_USED = {"image": [], "video": ["av"], "dicom": ["pydicom.pixels"]}  # imported only when a file is opened
_AHEAD = 4  # frames at most that another thread has to encode; what is decoded meanwhile is encoded at once
_OPENJPEG_THREADS = "OPJ_NUM_THREADS"  # variable that it reads for each picture
_NO_PROCESS = "Cannot start decoding processes, perhaps for lack of memory. Set --workers=1 to decode in this process."


@dataclasses.dataclass(slots=True)
class Outcome:
    """Outcome of decoding a file.

    Attributes:
      start, stop: its records in the chunk; none if it has a fault.
      size: of these in bytes.
      near: frames dropped as near duplicates of the previous one.
      blank: frames dropped because all their pixels have one value.
      coloured: frames whose grey was made from colours.
      masked: frames set to black outside a region.
      fans: of its sector, as numbers (see `data.fan.Fan`), if a sector was searched in the clip.
      miscounted: frames of a file whose number of frames differs from the stated one.
      unscaled: frames without a pixel size, because it differs within the picture.
      kind: of its fault (see `items.WHY`), or empty.
      detail: of its fault.
      region: which region its frames were kept by (see `region.Kept`); empty in a chunk of an earlier version.
      falls: the regions tried before that.
      numbers: of its records' frames in the file, from 0; empty in a chunk of an earlier version.
    """

    start: int
    stop: int = 0
    size: int = 0
    near: int = 0
    blank: int = 0
    coloured: int = 0
    masked: int = 0
    fans: Sequence[Sequence[float | None] | None] = ()
    miscounted: int = 0
    unscaled: int = 0
    kind: str = ""
    detail: str = ""
    region: str = ""
    falls: Sequence[Sequence[str]] = ()
    numbers: list[int] = dataclasses.field(default_factory=list)

    def described(self) -> dict[str, Any]:
        """Return the fields by name; `dataclasses.asdict` would copy each list by its elements."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A decoded job.

    Attributes:
      outcomes: of its files.
      frame_ids: of its records.
      dropped: tags that were not read -> number of files that have them.
    """

    outcomes: tuple[Outcome, ...]
    frame_ids: tuple[str, ...]
    dropped: Counter[str]


def records_of(job: Job, folder: Path) -> Path:
    """Return the file of a job's records."""
    return folder / f"{job.name}.array_record"


def read_chunk(job: Job, folder: Path) -> Chunk:
    """Read the outcomes of a decoded job."""
    stored = json.loads(_notes(job, folder).read_text())
    outcomes = tuple(Outcome(**outcome) for outcome in stored["outcomes"])
    return Chunk(outcomes, tuple(stored["frame_ids"]), Counter(stored["dropped"]))


def removed_examples(jobs: Sequence[Job], folder: Path) -> UInt8[np.ndarray, "n 160 160 3"]:
    """Return pictures of what was removed from some frames of decoded jobs, drawn by `show_removed`."""
    paths = [path for job in jobs if (path := _removed(job, folder)).exists()]
    spread = paths[:: -(-len(paths) // _STRIPS) or 1]
    drawn = [np.asarray(cv2.imread(str(path)))[..., ::-1] for path in spread]
    return np.concatenate([np.zeros((0, SIZE, 3), np.uint8), *drawn]).reshape(-1, SIZE, SIZE, 3)


def decode_all(jobs: Sequence[Job], folder: Path, *, workers: int, progress: Callable[[int], object]) -> None:
    """Decode the jobs that have no chunk yet.

    Args:
      jobs: what to decode.
      folder: of the chunks.
      workers: number of processes at most: each is given more to decode than it takes to start. If that leaves one,
        this process decodes. A file that crashes its process becomes a fault, and the others continue: at once or, if
        this process decodes, at the next call.
      progress: called with the number of files of each finished job.

    Raises:
      InputError: the processes cannot be started.
      OSError: the disk is full.
    """
    waiting = []
    for job in jobs:
        if _notes(job, folder).exists():
            progress(len(job.items))
        else:
            waiting.append(job)
    try:
        # Jobs that were begun but not finished: their process died, perhaps because of one of their files.
        for job in [job for job in waiting if _mark(job, folder).exists()]:
            _decode_alone(job, folder)
            progress(len(job.items))
            waiting.remove(job)
        if (workers := _worthwhile(waiting, workers)) == 1:
            with _threads_for_jpeg_2000():
                for job in waiting:
                    decode_job(job, folder)
                    progress(len(job.items))
            return
        while waiting:
            _decode_together(waiting, folder, workers, progress)
            waiting = [job for job in waiting if not _notes(job, folder).exists()]
            suspects = [job for job in waiting if _mark(job, folder).exists()]
            if waiting and not suspects:
                raise InputError(_NO_PROCESS)
            for job in suspects:
                _decode_alone(job, folder)
                progress(len(job.items))
                waiting.remove(job)
    except RuntimeError as error:
        # array_record raises this when the disk is full.
        if "write() failed" in str(error):
            raise OSError(str(error)) from error
        raise


def _worthwhile(jobs: Sequence[Job], workers: int) -> int:
    """Return how many processes, up to `workers`, bring more than they cost; 1 for this process.

    This process alone keeps more than one processor at work, b. What takes one processor T seconds takes

        T / min(processors, b)                in this process
        _START + T / min(processors, n b)     in n others
    """
    most, seconds = min(workers, len(jobs)), 0.0
    processors = len(os.sched_getaffinity(0))

    def share(processes: int) -> float:
        return 1 / min(processors, processes * _BUSY[jobs[0].kind])

    if most <= 1 or share(most) == share(1):
        return 1
    enough = max(most * _START, _START / (share(1) - share(most)))
    for job in jobs:
        seconds += job.seconds()
        if seconds >= enough:
            break
    several = max(1, min(most, int(seconds / _START)))
    return several if _START + seconds * share(several) <= seconds * share(1) else 1


def _decode_together(jobs: Sequence[Job], folder: Path, workers: int, progress: Callable[[int], object]) -> None:
    """Decode in several processes until all jobs are done or a process dies."""
    todo = iter(jobs)
    running: dict[concurrent.futures.Future[None], Job] = {}
    with _pool(workers, jobs[0].kind) as pool, contextlib.suppress(BrokenProcessPool):
        # Few at a time: a job that waits in the pool is held in memory.
        for job in itertools.islice(todo, 2 * workers):
            running[pool.submit(decode_job, job, folder)] = job
        while running:
            done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                future.result()
                progress(len(running.pop(future).items))
                for job in itertools.islice(todo, 1):
                    running[pool.submit(decode_job, job, folder)] = job
    # When a process dies, jobs that others have just finished are reported as broken too.
    for job in running.values():
        if _notes(job, folder).exists():
            progress(len(job.items))


def _decode_alone(job: Job, folder: Path) -> None:
    """Decode a job in a separate process, without the files that crash it."""
    crashed: frozenset[int] = frozenset()
    while not _notes(job, folder).exists():
        _mark(job, folder).unlink(missing_ok=True)
        with _pool(1, job.kind) as pool, contextlib.suppress(BrokenProcessPool):
            pool.submit(decode_job, job, folder, crashed).result()
            return
        if not _mark(job, folder).exists():
            raise InputError(_NO_PROCESS)
        crashed |= {int(_mark(job, folder).read_text())}


@contextlib.contextmanager
def _pool(workers: int, kind: str) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """Start processes that end with this one, even if it is killed, and at once if it is interrupted.

    They are forked from one that has imported what they use, and nothing else: this one may have threads.

    Args:
      workers: number of processes.
      kind: of the jobs.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *_USED[kind]])
    end, held = context.Pipe(duplex=False)
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, initializer=_follow, initargs=(end,))
    try:
        yield pool
    finally:
        held.close()
        pool.shutdown(cancel_futures=True)
        end.close()


def _follow(end: Connection) -> None:
    """Leave ctrl-C to the parent, and exit when it closes the other end of this pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        end.poll(None)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let OpenCV use the thread that calls it: frames are small, and others are encoded at the same time."""
    was = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(was)


@contextlib.contextmanager
def _threads_for_jpeg_2000() -> Iterator[None]:
    """Let OpenJPEG use two threads, unless the user has set their number: it takes most of the time."""
    if _OPENJPEG_THREADS in os.environ:
        yield
        return
    os.environ[_OPENJPEG_THREADS] = "2"
    try:
        yield
    finally:
        del os.environ[_OPENJPEG_THREADS]


def decode_job(job: Job, folder: Path, crashed: frozenset[int] = frozenset()) -> None:
    """Decode a job into its chunk.

    Another thread encodes images while the next ones, also of the next files, are decoded. If it falls behind, this one
    encodes, too, so that both always have something to do.

    Args:
      job: what to decode.
      folder: of the chunks.
      crashed: positions of the files that crash the process; they are left out.
    """
    serializer = _Serializer(frame_features(job.taxonomy, mask_names=job.reading.mask_names))
    frame_ids: list[str] = []
    sizes: list[int] = []
    removed: list[UInt8[np.ndarray, "_ _ 3"]] = []
    dropped: Counter[str] = Counter()
    outcomes = []
    encoded: deque[tuple[dict[str, Any], concurrent.futures.Future[bytes]]] = deque()
    part = records_of(job, folder).with_suffix(".part")
    quiet = dicom.quietly() if job.kind == "dicom" else contextlib.nullcontext()

    def add(record: dict[str, Any], image: UInt8[np.ndarray, "h w"]) -> None:
        # Encoded again: a file may contain text beside its pixels.
        if sum(not future.done() for _, future in encoded) < _AHEAD:
            future = encoder.submit(encode_png, image)
        else:
            future = concurrent.futures.Future()
            future.set_result(encode_png(image))
        encoded.append((record, future))
        frame_ids.append(record["frame_id"])
        while encoded and encoded[0][1].done():
            write(*encoded.popleft())

    def write(record: dict[str, Any], image: concurrent.futures.Future[bytes]) -> None:
        data = serializer.serialize(record | {"image": image.result()})
        writer.write(data)
        sizes.append(len(data))

    with (
        concurrent.futures.ThreadPoolExecutor(1) as encoder,
        contextlib.closing(ArrayRecordWriter(str(part), RECORD_OPTIONS)) as writer,
        _mark(job, folder).open("wb", buffering=0) as mark,
        quiet,
        _one_thread(),
    ):
        for position, item in enumerate(job.items):
            # Overwritten in place: a new file for every picture would take as long as a small picture.
            os.pwrite(mark.fileno(), f"{position:8}".encode(), 0)
            outcome, examples = Outcome(start=len(frame_ids)), len(removed)
            outcomes.append(outcome)
            try:
                if position in crashed:
                    raise BadFileError("crash")
                clip = _OPENERS[job.kind](item.path, job.reading)
                dropped.update(clip.dropped)
                for record, image in _records(item, clip, job.reading, outcome, removed):
                    add(record, image)
                for remark in clip.remarks:
                    setattr(outcome, remark, len(frame_ids) - outcome.start)
                if len(frame_ids) == outcome.start:
                    raise BadFileError("blank" if outcome.blank else "no_pixels")
            except BadFileError as error:
                # Records of frames before the fault stay in the file, but no outcome counts them.
                outcome.kind, outcome.detail = error.kind, error.detail
                outcome.start, outcome.numbers = len(frame_ids), []
                del removed[examples:]
            outcome.stop = len(frame_ids)
        while encoded:
            write(*encoded.popleft())
    for outcome in outcomes:
        outcome.size = sum(sizes[outcome.start : outcome.stop])
    notes = {"outcomes": [o.described() for o in outcomes], "frame_ids": frame_ids, "dropped": dropped}
    part.replace(records_of(job, folder))
    if removed:
        _removed(job, folder).write_bytes(cv2.imencode(".png", np.concatenate(removed)[..., ::-1])[1].tobytes())
    part = folder / f"{job.name}.notes"
    part.write_text(json.dumps(notes))
    part.replace(_notes(job, folder))
    _mark(job, folder).unlink()


class _Serializer:
    """Makes TFDS's examples: the first of a job by TFDS, and from it others that differ in texts and images alone.

    Args:
      features: of the records.
    """

    def __init__(self, features: tfds.features.FeaturesDict) -> None:
        self._features = features
        self._serializer = ExampleSerializer(features.get_serialized_info())
        self._fixed: dict[str, Any] = {}
        self._example: Any = None

    def serialize(self, record: dict[str, Any]) -> bytes:
        """Return a record, with its image as PNG, as it is stored."""
        fixed = {name: None if isinstance(value, str | bytes) else value for name, value in record.items()}
        if self._example is None or fixed != self._fixed:
            self._example = self._serializer.get_tf_example(self._features.encode_example(record))
            self._fixed = fixed
        else:  # in a quarter of the time
            feature = self._example.features.feature
            for name in (name for name, value in fixed.items() if value is None):
                value = record[name]
                feature[name].bytes_list.value[0] = value.encode() if isinstance(value, str) else value
        # A protobuf map has no fixed order; it differs between processes.
        return self._example.SerializeToString(deterministic=True)


def _records(
    item: Item, clip: Clip, reading: Reading, outcome: Outcome, removed: list[UInt8[np.ndarray, "_ _ 3"]]
) -> Iterator[tuple[dict[str, Any], UInt8[np.ndarray, "h w"]]]:
    """Yield the records of a file (see `frame_features`) without `image`, and their images.

    What was removed is noted for its first frame, and for the first that has the sector of another one.
    """
    borrowed = False
    pixel_mm = clip.pixel_mm if math.isnan(item.pixel_mm) else item.pixel_mm
    for place, frame in enumerate(kept_frames(clip, item.region or reading.region, reading, outcome)):
        picture, image = frame.picture, frame.image
        noted = not place or (frame.borrowed and not borrowed)
        borrowed |= frame.borrowed
        if noted and outcome.region != "whole" and len(removed) < _EXAMPLES:
            removed.append(show_removed(picture.image, frame.blackened))
        outcome.numbers.append(frame.number * reading.every)
        outcome.coloured += picture.colour
        record = {
            "frame_id": frame.frame_id,
            "scan_id": item.scan_id,
            "patient_id": item.patient_id,
            "machine": item.machine or clip.machine,
            "anatomy_fine": item.fine,
            "anatomy_coarse": item.coarse,
            "pixel_mm": pixel_mm,
        }
        if item.mask is not None:
            mask = images.read_mask(item.mask, reading, picture.image.shape)
            record["mask"] = encode_png(np.ascontiguousarray(mask[frame.box]))
        yield record, image


@dataclasses.dataclass(frozen=True, slots=True)
class KeptFrame:
    """A frame of a clip that is kept.

    Attributes:
      number: its place among the frames that were decoded, of which there is one in every `Reading.every`.
      picture: as decoded.
      blackened: its picture, black outside the part to keep.
      image: what is stored.
      box: where in the picture `image` is.
      borrowed: whether no sector is found in it, so that it is cut to that of another frame.
      frame_id: made from `image` only: it reveals nothing of the file, and equal images have equal ids.
    """

    number: int
    picture: Picture
    blackened: UInt8[np.ndarray, "h w"]
    image: UInt8[np.ndarray, "h2 w2"]
    box: Box
    borrowed: bool
    frame_id: str


def kept_frames(clip: Clip, region: str | Rectangle, reading: Reading, outcome: Outcome) -> Iterator[KeptFrame]:
    """Yield the frames of a clip, without blank ones, repeated ones and near duplicates, which are counted."""
    parts, last = None, None
    seen: set[str] = set()
    for number, picture in enumerate(clip.frames()):
        if parts is None:
            kept = kept_part(clip, region, picture.image.shape)
            parts = Parts(clip, kept)
            outcome.fans = fans_in(kept, box_of(kept.part if reading.crop else None))
            outcome.region, outcome.falls = kept.step, kept.falls
        part = parts.of(picture.image)
        blackened, box = blacken(picture.image, part), box_of(part if reading.crop else None)
        image = np.ascontiguousarray(blackened[box])
        if image.min() == image.max():
            outcome.blank += 1
            continue
        # Compared in the whole picture: the box differs from frame to frame.
        if reading.near_duplicate > 0:
            small = thumbnail(blackened)
            if last is not None and difference(small, last) < reading.near_duplicate:
                outcome.near += 1
                continue
            last = small
        outcome.masked += part is not None and not part.all()
        if (frame_id := _frame_id(image)) in seen:
            outcome.near += 1
            continue
        seen.add(frame_id)
        yield KeptFrame(number, picture, blackened, image, box, parts.borrowed, frame_id)


def _frame_id(image: UInt8[np.ndarray, "h w"]) -> str:
    height, width = image.shape
    digest = hashlib.sha256(f"{height} {width} ".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()[:_ID_DIGITS]


def _notes(job: Job, folder: Path) -> Path:
    return folder / f"{job.name}.{_CONTENT}.json"


def _removed(job: Job, folder: Path) -> Path:
    return folder / f"{job.name}.png"


def _mark(job: Job, folder: Path) -> Path:
    """Return the file that notes which file of a job is being decoded, in case it crashes the process."""
    return folder / f"{job.name}.at"
