"""The frames of each batch: a pure function of (seed, step).

A plan knows two things about every frame: its *class*, whose frames attract each other (an anatomy; a scan for patient
metadata), and its *unit*, which must differ within a class (the scan; the frame itself). Nothing is streamed: the batch
of step 1,000,000 costs as much as the first, any host can compute the rows of any other, and resuming needs only the
step.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int, Shaped

from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.runtime.errors import InputError

MODES = ("balanced", "natural")
PAIRS = ("frame", "cross_scan")

# Keep the draws of one (seed, step) for different purposes apart.
_FRAMES, _PARTNERS, _EPOCH = 1, 2, 3

# A random order of up to this many is drawn whole; of more, only the beginning, which is all that a batch needs. The
# two draws differ, so this number affects batches.
_DRAWN_WHOLE = 8192


@dataclasses.dataclass(frozen=True, eq=False)
class BatchPlan:
    """Composes batches of `batch_size` frames, over all hosts.

    Attributes:
      classes: class of each frame [n], UNLABELLED where it has none.
      units: unit of each frame [n].
      batch_size: frames in a global batch.
      seed: of the draw.
      mode: `balanced` draws `anatomies` classes x `units_per_class` distinct units and fills up with unlabelled frames;
        `natural` uses each frame once an epoch, in a new order every epoch, whatever its class.
      anatomies: classes in a balanced batch (P); as many as the batch holds by default.
      units_per_class: distinct units of each class in a balanced batch (K); fewer where a class has fewer.
      unlabelled_share: share of a balanced batch drawn from unlabelled frames, if there are enough. They also fill the
        rows for which the classes of the batch have no more units.
      pairs: the second view of a frame is of the frame itself (`frame`), or of another frame of its class from another
        unit (`cross_scan`).

    Raises:
      InputError: no batch can be composed with these settings; the message states why.
    """

    classes: Int[np.ndarray, " n"]
    units: Int[np.ndarray, " n"]
    batch_size: int
    seed: int
    mode: str = "balanced"
    anatomies: int | None = None
    units_per_class: int = 4
    unlabelled_share: float = 0.0
    pairs: str = "frame"

    def __post_init__(self) -> None:
        assert self.classes.shape == self.units.shape
        if self.mode not in MODES:
            raise InputError(f"The sampler's mode must be 'balanced' or 'natural'; got {self.mode!r}.")
        if self.pairs not in PAIRS:
            raise InputError(f"Pairs must be 'frame' or 'cross_scan'; got {self.pairs!r}.")
        if self.batch_size < 2:
            raise InputError(f"A batch must have at least 2 frames to contrast; got {self.batch_size}.")
        if self.classes.size < self.batch_size:
            raise InputError(
                f"A batch of {self.batch_size} frames is larger than the {self.classes.size} training frames; "
                f"set sampler.batch_size to at most {self.classes.size}, or prepare more frames."
            )
        if self.mode == "balanced" or self.pairs == "cross_scan":
            self._check_classes()

    def _check_classes(self) -> None:
        if not (self.classes != UNLABELLED).any():
            raise InputError(
                "No training frame has a label, so batches cannot be composed by label. Label some frames, raise the "
                f"anatomy ratio, or use {self._without_labels()} (configs/simclr.py)."
            )
        if not self._cells.classes.size:
            raise InputError(
                "No class has frames of two scans, so there are no cross-scan pairs. Add scans, use coarse anatomy, or "
                f"use {self._without_labels()} (configs/simclr.py)."
            )
        if self.mode == "natural":
            return
        if not 0.0 <= self.unlabelled_share < 1.0:
            raise InputError(f"The unlabelled share of a batch must be from 0 to below 1; got {self.unlabelled_share}.")
        if self.anatomies is not None and self.anatomies < 1:
            raise InputError(f"A batch must have at least 1 anatomy; got {self.anatomies}.")
        if self.units_per_class < 2:
            raise InputError(f"Scans per anatomy must be at least 2 to pair across scans; got {self.units_per_class}.")
        if self._labelled_rows < self.units_per_class * (self.anatomies or 1):
            raise InputError(
                f"A batch of {self.batch_size} frames has {self._labelled_rows} labelled ones, too few for "
                f"{self.anatomies or 1} anatomies x {self.units_per_class} scans. Use a larger batch, or fewer "
                "anatomies or scans."
            )

    def _without_labels(self) -> str:
        """Return the settings to change for batches that need no labels."""
        needed = {"mode": "natural", "pairs": "frame"}
        return " and ".join(f"sampler.{name}={v!r}" for name, v in needed.items() if getattr(self, name) != v)

    def frames(self, step: int) -> Int[np.ndarray, " b"]:
        """Return the frame in every row of the global batch of this step."""
        return self._natural(step) if self.mode == "natural" else self._balanced(step)

    def partners(self, step: int, frames: Int[np.ndarray, " b"] | None = None) -> Int[np.ndarray, " b"]:
        """Return the frame that gives each row its second view.

        This is the row's own frame with `pairs="frame"`, and always if it has no label or its class has only one unit.

        Args:
          step: as in `frames`.
          frames: the result of `frames` for this step, if already known.
        """
        frames = self.frames(step) if frames is None else frames
        if self.pairs == "frame":
            return frames
        rng = np.random.default_rng([self.seed, step, _PARTNERS])
        places = self._cells.places(self.classes[frames])
        return np.array(
            [
                frame if c < 0 else self._other_unit(rng, frame, c)
                for frame, c in zip(frames.tolist(), places.tolist(), strict=True)
            ]
        )

    # Natural order --------------------------------------------------------------------------------------------------

    def _natural(self, step: int) -> Int[np.ndarray, " b"]:
        """Return rows step * b ... of the epochs' orders, one after the other."""
        start = step * self.batch_size
        positions = np.arange(start, start + self.batch_size)
        epochs, offsets = np.divmod(positions, self.classes.size)
        return np.concatenate([self._epoch(int(e), offsets[epochs == e]) for e in np.unique(epochs)])

    def _epoch(self, epoch: int, offsets: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        """Return the frames at some places of this epoch's order.

        A batch may end one epoch and begin the next. Then no frame of its first part may be in its second part, where
        it would be its own negative: such frames swap places with later ones. The swaps do not touch the last batch of
        the order, so the order of an epoch depends only on the raw order of the one before.
        """
        n, b = self.classes.size, self.batch_size
        # With fewer than two batches the last cannot be spared; then the order depends on all earlier epochs, back to
        # one that begins with a new batch.
        cycle = b // math.gcd(n, b)
        first = max(epoch - 1 if n >= 2 * b else epoch - epoch % cycle, 0)
        order, places, frames = _permutation(n, self.seed, first), np.zeros(0, np.int64), np.zeros(0, np.int64)
        for e in range(first + 1, epoch + 1):
            before = _put(order, places, frames)
            order = _permutation(n, self.seed, e)
            carried = -(e * n) % b  # rows of this epoch that complete the last batch of the one before
            already = before[n - (b - carried) :] if carried else before[:0]
            clashes = np.flatnonzero(np.isin(order[:carried], already))
            # At most as many of these clash as `already` has, so enough of them are free.
            later = order[carried : min(carried + clashes.size + already.size, n - b if n >= 2 * b else n)]
            swaps = carried + np.flatnonzero(~np.isin(later, already))[: clashes.size]
            places = np.concatenate([clashes, swaps])
            frames = np.concatenate([order[swaps], order[clashes]])
        taken = order[offsets]
        _, at, which = np.intersect1d(offsets, places, assume_unique=True, return_indices=True)
        taken[at] = frames[which]
        return taken

    # Balanced batches -----------------------------------------------------------------------------------------------

    @functools.cached_property
    def _cells(self) -> "_Cells":
        return _Cells.of(self.classes, self.units)

    @functools.cached_property
    def _unlabelled(self) -> Int[np.ndarray, " m"]:
        """Frames that are in no class with two units."""
        return np.flatnonzero(~np.isin(self.classes, self._cells.classes))

    @functools.cached_property
    def _labelled_rows(self) -> int:
        return self.batch_size - min(round(self.unlabelled_share * self.batch_size), self._unlabelled.size)

    def _balanced(self, step: int) -> Int[np.ndarray, " b"]:
        rng = np.random.default_rng([self.seed, step, _FRAMES])
        chosen = self._chosen(rng)
        # Each class's units in a separate order: the first K go into the batch, later ones fill it.
        orders = [
            self._cells.first[c] + _shuffled(rng, self._cells.count(c), at_least=self._labelled_rows) for c in chosen
        ]
        picked = np.concatenate([order[: self.units_per_class] for order in orders])
        missing = max(self._labelled_rows - picked.size, 0)
        later = itertools.islice(_in_turns([order[self.units_per_class :] for order in orders], missing), missing)
        rows = self._cells.draw(rng, np.concatenate([picked, np.array(list(later), np.int64)]))
        rows = self._fill(rng, rows, self._unlabelled)
        if rows.size < self.batch_size:
            rows = self._fill(rng, rows, np.sort(np.concatenate([self._cells.frames_of(c) for c in chosen])))
        return rng.permutation(self._fill(rng, rows, None))

    def _chosen(self, rng: np.random.Generator) -> list[int]:
        """Choose the classes of one batch: P, or as many as the labelled rows hold, with K units (or all) of each.

        More than P only if unlabelled frames and those of P classes are too few to fill the batch. All K units of a
        class are used or none: a single frame of it would have no positive.
        """
        chosen: list[int] = []
        rows, frames = 0, self._unlabelled.size
        for c in _all_shuffled(rng, self._cells.classes.size, at_first=self.batch_size):
            units = min(self._cells.count(c), self.units_per_class)
            enough = len(chosen) >= (self.anatomies or math.inf) or rows + units > self._labelled_rows
            if enough and frames >= self.batch_size:
                break
            if rows + units > self.batch_size:
                continue
            chosen.append(c)
            rows, frames = rows + units, frames + self._cells.frames_of(c).size
        return chosen

    def _fill(
        self, rng: np.random.Generator, rows: Int[np.ndarray, " r"], pool: Int[np.ndarray, " m"] | None
    ) -> Int[np.ndarray, " s"]:
        """Add frames of the pool (None: of all) that are not in the batch, until it is full or the pool is empty.

        The pool is ascending. The rest of it is counted but not built, because it may have millions of frames.
        """
        missing = self.batch_size - rows.size
        if missing == 0:
            return rows
        if pool is None:
            taken = np.sort(rows)
        else:
            at = np.searchsorted(pool, rows)
            taken = np.sort(at[(at < pool.size) & (pool.take(at, mode="clip") == rows)]) if pool.size else at[:0]
        fresh = (self.classes.size if pool is None else pool.size) - taken.size
        drawn = rng.choice(fresh, size=min(missing, fresh), replace=False)
        # The place of the i-th that is left: i, plus one for each taken at or before it.
        places = drawn + np.searchsorted(taken - np.arange(taken.size), drawn, side="right")
        return np.concatenate([rows, places if pool is None else pool[places]])

    def _other_unit(self, rng: np.random.Generator, frame: int, c: int) -> int:
        """Return a frame of another unit of this class."""
        first, own = self._cells.first[c], self._cells.find(c, int(self.units[frame]))
        cell = first + int(rng.integers(self._cells.count(c) - 1))
        start, end = self._cells.starts[cell + (cell >= own) :][:2].tolist()
        return int(self._cells.frames[start + int(rng.integers(end - start))])


@dataclasses.dataclass(frozen=True, eq=False)
class _Cells:
    """The frames of every class of at least two units, unit by unit: a cell is the frames of one unit in one class.

    Attributes:
      classes: [k] the classes, ascending.
      first: [k + 1] first cell of each class, and the number of all cells.
      units: [m] unit of each cell, ascending in a class.
      starts: [m + 1] where each cell begins in `frames`, and the end.
      frames: [f] frames, cell by cell, ascending in each.
    """

    classes: Int[np.ndarray, " k"]
    first: Int[np.ndarray, " k1"]
    units: Int[np.ndarray, " m"]
    starts: Int[np.ndarray, " m1"]
    frames: Int[np.ndarray, " f"]

    @classmethod
    def of(cls, classes: Int[np.ndarray, " n"], units: Int[np.ndarray, " n"]) -> "_Cells":
        frames = np.lexsort((units, classes))  # stable: frames of a cell stay in their order
        frames = frames[np.searchsorted(classes, UNLABELLED, side="right", sorter=frames) :]
        starts = _changes(classes[frames], units[frames])
        of_class = classes[frames[starts[:-1]]]
        first = _changes(of_class)
        alone = np.repeat(np.diff(first) == 1, np.diff(first))  # cells whose class has no other unit
        if alone.any():
            sizes = np.diff(starts)
            frames, of_class = frames[~np.repeat(alone, sizes)], of_class[~alone]
            starts, first = np.concatenate([[0], np.cumsum(sizes[~alone])]), _changes(of_class)
        return cls(of_class[first[:-1]], first, units[frames[starts[:-1]]], starts, frames)

    def count(self, c: int) -> int:
        """Return the number of units of a class."""
        return int(self.first[c + 1] - self.first[c])

    def places(self, classes: Int[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
        """Return the position of each of these among `self.classes`; -1 if it is not there."""
        at = np.searchsorted(self.classes, classes)
        return np.where(self.classes.take(at, mode="clip") == classes, at, -1)

    def frames_of(self, c: int) -> Int[np.ndarray, " m"]:
        """Return all frames of a class."""
        return self.frames[self.starts[self.first[c]] : self.starts[self.first[c + 1]]]

    def find(self, c: int, unit: int) -> int:
        """Return the cell of a unit in a class."""
        first, end = self.first[c], self.first[c + 1]
        return int(first + np.searchsorted(self.units[first:end], unit))

    def draw(self, rng: np.random.Generator, cells: Int[np.ndarray, " r"]) -> Int[np.ndarray, " r"]:
        """Draw a frame from each of these cells, one after the other."""
        starts = self.starts[cells]
        return self.frames[starts + rng.integers(0, self.starts[cells + 1] - starts)]


def _changes(*columns: Shaped[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
    """Return where runs of equal rows begin, and the end of all; of no rows, 0 alone."""
    n = columns[0].size
    new = np.zeros(max(n - 1, 0), bool)
    for column in columns:
        new |= column[1:] != column[:-1]
    return np.concatenate([np.zeros(min(n, 1), np.int64), np.flatnonzero(new) + 1, [n]])


def _shuffled(rng: np.random.Generator, count: int, *, at_least: int) -> Int[np.ndarray, " m"]:
    """Return the beginning of a random order of 0, 1, ... count: `at_least` of them, or all if it is drawn whole."""
    if count <= _DRAWN_WHOLE:
        return rng.permutation(count)
    return rng.choice(count, size=min(at_least, count), replace=False)


def _all_shuffled(rng: np.random.Generator, count: int, *, at_first: int) -> Iterator[int]:
    """Yield a random order of 0, 1, ... count; more than the beginning is drawn only when it is asked for."""
    beginning = _shuffled(rng, count, at_least=at_first)
    yield from map(int, beginning)
    if beginning.size < count:
        yield from map(int, rng.permutation(np.delete(np.arange(count), beginning)))


def _in_turns(orders: list[Int[np.ndarray, " _"]], most: int) -> Iterator[int]:
    """Yield the first of each, the second of each, ..., of orders of any lengths; at most `most` of each."""
    for turn in range(min(most, max(order.size for order in orders))):
        yield from (int(order[turn]) for order in orders if turn < order.size)


def _put(
    order: Int[np.ndarray, " n"], places: Int[np.ndarray, " m"], frames: Int[np.ndarray, " m"]
) -> Int[np.ndarray, " n"]:
    """Return the order with these frames at these places; the order itself if there are none."""
    if not places.size:
        return order
    changed = order.copy()
    changed[places] = frames
    return changed


@dataclasses.dataclass(frozen=True, eq=False)
class EpochPlan:
    """Batches for supervised training: each frame once an epoch, the epochs' orders one after the other.

    Unlike `BatchPlan` it may put a frame twice into a batch (between two epochs, or if there are fewer frames than
    rows), because nothing is contrasted.

    Attributes:
      positions: the frames to train on.
      batch_size: frames in a global batch.
      seed: of the draw.
    """

    positions: Int[np.ndarray, " n"]
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        assert self.positions.size
        assert self.batch_size >= 1

    def frames(self, step: int) -> Int[np.ndarray, " b"]:
        """Return the frame in every row of the global batch of this step."""
        n, start = self.positions.size, step * self.batch_size
        epochs, offsets = np.divmod(np.arange(start, start + self.batch_size), n)
        parts = [_permutation(n, self.seed, int(epoch))[offsets[epochs == epoch]] for epoch in np.unique(epochs)]
        return self.positions[np.concatenate(parts)]


@functools.lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> Int[np.ndarray, " n"]:
    """Return the raw order of an epoch; cached because every step of it asks again."""
    order = np.random.default_rng([seed, epoch, _EPOCH]).permutation(n)
    order.setflags(write=False)
    return order


def composition(
    labels: Int[np.ndarray, " b"] | Int[np.ndarray, "b m"], scans: Int[np.ndarray, "b v"]
) -> dict[str, float]:
    """Return statistics of how a batch is composed.

    Args:
      labels: labels of each frame in the loss, UNLABELLED for none; frames are positives if one of their m agrees.
      scans: scan of each of the frame's views.

    Returns:
      positives: mean number of positives of an anchor, over all views.
      cross_scan: share of the positive pairs whose scans differ.
      anatomies: number of labels that more than one frame has.
      own_view_only: share of the frames whose only positive is their own other view.
      no_cross_scan: share of the frames in shared groups without a positive of another scan.
    """
    b, views = scans.shape
    columns = labels.reshape(b, -1)
    columns = np.where(columns == UNLABELLED, -1 - np.arange(b)[:, None], columns)
    m, each = columns.shape[1], scans.reshape(-1)
    rows, of_scan, anatomies = np.zeros(b, np.int64), np.zeros(b * views, np.int64), 0
    # Frames that agree in one column or another: those of each column, less those of each two, and so on.
    for count in range(1, m + 1):
        for some in itertools.combinations(range(m), count):
            agreed = columns[:, some]
            sizes = _sizes(agreed)
            rows += (-1) ** (count - 1) * sizes
            of_scan += (-1) ** (count - 1) * _sizes(np.column_stack([np.repeat(agreed, views, axis=0), each]))
            anatomies += np.unique(agreed[sizes > 1]).size if count == 1 else 0
    positives, cross = np.repeat(rows, views) * views - 1, np.repeat(rows, views) * views - of_scan
    shared = np.repeat(rows > 1, views)
    return {
        "positives": float(positives.mean()),
        "cross_scan": float(cross.sum() / max(positives.sum(), 1)),
        "anatomies": float(anatomies),
        "own_view_only": float(1 - shared.mean()),
        "no_cross_scan": float((cross[shared] == 0).mean()) if shared.any() else 0.0,
    }


def _sizes(rows: Int[np.ndarray, "n k"]) -> Int[np.ndarray, " n"]:
    """Return how many rows are equal to each."""
    _, member, sizes = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    return sizes[member.reshape(-1)]
