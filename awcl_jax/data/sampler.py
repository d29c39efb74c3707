"""Which frames make up which batch: a pure function of (seed, step).

A plan knows two things of every frame: its *class*, whom the loss pulls together (an anatomy; a scan for patient
metadata), and its *unit*, which must differ within a class (the scan; the frame itself). Nothing is streamed: the batch
of step 1,000,000 costs what the first does, any host computes any other's rows, and resuming needs nothing but the
step.
"""

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Int

from awcl_jax.anatomy import UNLABELLED
from awcl_jax.errors import InputError

MODES = ("balanced", "natural")
PAIRS = ("frame", "cross_scan")

# Keep the draws of one (seed, step) for different purposes apart.
_FRAMES, _PARTNERS, _EPOCH = 1, 2, 3


@dataclasses.dataclass(frozen=True, eq=False)
class BatchPlan:
    """Composes batches of `batch_size` frames, over all hosts.

    Attributes:
      classes: class of each frame [n], UNLABELLED where it has none.
      units: unit of each frame [n].
      batch_size: frames in a global batch.
      seed: the draw.
      mode: `balanced` takes `anatomies` classes x `units_per_class` distinct units and fills up with unlabelled frames;
        `natural` takes each frame once an epoch, in an order of its own for every epoch, whatever its class.
      anatomies: classes in a balanced batch (P); as many as the batch holds by default.
      units_per_class: distinct units of each class in a balanced batch (K); fewer where a class has fewer.
      unlabelled_share: share of a balanced batch that is drawn from unlabelled frames, as far as there are any.
      pairs: the second view of a frame is of the frame itself (`frame`), or of another frame of its class from another
        unit (`cross_scan`).

    Raises:
      InputError: no batch can be composed so; the message says why.
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
            raise InputError(f"The sampler's mode is 'balanced' or 'natural'; got {self.mode!r}.")
        if self.pairs not in PAIRS:
            raise InputError(f"Pairs are of one 'frame' or 'cross_scan'; got {self.pairs!r}.")
        if self.batch_size < 2:
            raise InputError(f"A batch needs at least 2 frames to contrast; got {self.batch_size}.")
        if self.classes.size < self.batch_size:
            raise InputError(
                f"A batch of {self.batch_size} frames is larger than the {self.classes.size} training frames; "
                "take a smaller batch or more data."
            )
        if self.mode == "balanced" or self.pairs == "cross_scan":
            self._check_classes()

    def _check_classes(self) -> None:
        if not (self.classes != UNLABELLED).any():
            raise InputError(
                "No training frame has a label to compose batches by; label some frames, raise the anatomy ratio, "
                "or sample naturally with pairs of one frame (configs/simclr.py)."
            )
        if not self._frames_of:
            raise InputError(
                "No class has frames of two scans, so there is no cross-scan pair to compose; add scans, take coarser "
                "anatomy, or sample naturally (configs/simclr.py)."
            )
        if self.mode == "natural":
            return
        if not 0.0 <= self.unlabelled_share < 1.0:
            raise InputError(f"The unlabelled share of a batch is from 0 to below 1; got {self.unlabelled_share}.")
        if self.anatomies is not None and self.anatomies < 1:
            raise InputError(f"The anatomies of a batch are at least 1; got {self.anatomies}.")
        if self.units_per_class < 2:
            raise InputError(f"Scans per anatomy must be at least 2 to pair across scans; got {self.units_per_class}.")
        if self._labelled_rows < self.units_per_class * (self.anatomies or 1):
            raise InputError(
                f"A batch of {self.batch_size} frames has {self._labelled_rows} labelled ones, too few for "
                f"{self.anatomies or 1} anatomies x {self.units_per_class} scans; enlarge the batch or lower either."
            )

    def frames(self, step: int) -> Int[np.ndarray, " b"]:
        """The frame in every row of the global batch of this step."""
        return self._natural(step) if self.mode == "natural" else self._balanced(step)

    def partners(self, step: int) -> Int[np.ndarray, " b"]:
        """The frame that gives each row its second view.

        The row's own frame with `pairs="frame"`, and in any case where it has no label or its class only one unit.
        """
        frames = self.frames(step)
        if self.pairs == "frame":
            return frames
        rng = np.random.default_rng([self.seed, step, _PARTNERS])
        return np.array([self._other_unit(rng, frame) for frame in frames.tolist()])

    # Natural order --------------------------------------------------------------------------------------------------

    def _natural(self, step: int) -> Int[np.ndarray, " b"]:
        """Rows step * b ... of the epochs' orders laid end to end."""
        start = step * self.batch_size
        positions = np.arange(start, start + self.batch_size)
        epochs, offsets = np.divmod(positions, self.classes.size)
        return np.concatenate([self._epoch(int(e))[offsets[epochs == e]] for e in np.unique(epochs)])

    def _epoch(self, epoch: int) -> Int[np.ndarray, " n"]:
        """All frames in this epoch's order.

        A batch may end one epoch and begin the next. Then no frame of its first part may come back in its second, where
        it would be its own negative: such frames swap places with later ones. The swaps leave the last batch of the
        order alone, so that the order of one epoch never depends on more than the raw order of the one before.
        """
        n, b = self.classes.size, self.batch_size
        # Of fewer than two batches the last cannot be left alone; then the order depends on those of all epochs before,
        # back to one that begins with a batch of its own.
        cycle = b // math.gcd(n, b)
        first, end = (epoch - 1, n - b) if n >= 2 * b else (epoch - epoch % cycle, n)
        order = _permutation(n, self.seed, max(first, 0))
        for e in range(max(first, 0) + 1, epoch + 1):
            carried = -(e * n) % b  # rows of this epoch that finish the batch begun in the one before
            already = order[n - (b - carried) :] if carried else order[:0]
            order = _permutation(n, self.seed, e).copy()
            clashes = np.flatnonzero(np.isin(order[:carried], already))
            free = carried + np.flatnonzero(~np.isin(order[carried:end], already))
            swaps = free[: clashes.size]
            order[clashes], order[swaps] = order[swaps], order[clashes]
        return order

    # Balanced batches -----------------------------------------------------------------------------------------------

    @functools.cached_property
    def _frames_of(self) -> list[list[Int[np.ndarray, " m"]]]:
        """For every class of at least two units: the frames of each unit."""
        order = np.lexsort((np.arange(self.classes.size), self.units, self.classes))
        order = order[self.classes[order] != UNLABELLED]
        if order.size == 0:
            return []
        classes, units = self.classes[order], self.units[order]
        new_class = np.flatnonzero(np.diff(classes)) + 1
        new_unit = np.flatnonzero((np.diff(classes) != 0) | (np.diff(units) != 0)) + 1
        by_class = [
            np.split(part, new_unit[(new_unit > start) & (new_unit < start + part.size)] - start)
            for start, part in zip([0, *new_class], np.split(order, new_class), strict=True)
        ]
        return [by_unit for by_unit in by_class if len(by_unit) > 1]

    @functools.cached_property
    def _class_at(self) -> dict[int, int]:
        """Class -> its position in `_frames_of`."""
        return {int(self.classes[by_unit[0][0]]): at for at, by_unit in enumerate(self._frames_of)}

    @functools.cached_property
    def _unlabelled(self) -> Int[np.ndarray, " m"]:
        """Frames that no class of two units holds."""
        return np.flatnonzero(~np.isin(self.classes, list(self._class_at)))

    @functools.cached_property
    def _labelled_rows(self) -> int:
        return self.batch_size - min(round(self.unlabelled_share * self.batch_size), self._unlabelled.size)

    def _balanced(self, step: int) -> Int[np.ndarray, " b"]:
        rng = np.random.default_rng([self.seed, step, _FRAMES])
        chosen = self._chosen(rng)
        # Each class's units in an order of their own: the first K make up the batch, later ones fill it.
        orders = [rng.permutation(len(self._frames_of[c])) for c in chosen]
        picked: list[int] = []
        for c, order in zip(chosen, orders, strict=True):
            picked += [int(rng.choice(self._frames_of[c][unit])) for unit in order[: self.units_per_class]]
        for turn in range(self.units_per_class, max(map(len, orders))):
            for c, order in zip(chosen, orders, strict=True):
                if turn < len(order) and len(picked) < self._labelled_rows:
                    picked.append(int(rng.choice(self._frames_of[c][order[turn]])))
        rows = np.array(picked)
        for pool in (self._unlabelled, np.concatenate([f for c in chosen for f in self._frames_of[c]]), None):
            rows = self._fill(rng, rows, pool)
        return rng.permutation(rows)

    def _chosen(self, rng: np.random.Generator) -> list[int]:
        """Classes of one batch: P of them, or as many as the labelled rows hold, K units (or all it has) of each.

        Beyond P only where unlabelled frames and those of P classes are too few to fill the batch. A class comes whole
        or not at all: one frame of it alone would have no positive.
        """
        chosen: list[int] = []
        rows, frames = 0, self._unlabelled.size
        for c in rng.permutation(len(self._frames_of)).tolist():
            units = min(len(self._frames_of[c]), self.units_per_class)
            enough = len(chosen) == self.anatomies or rows + units > self._labelled_rows
            if enough and frames >= self.batch_size:
                break
            if rows + units > self.batch_size:
                continue
            chosen.append(c)
            rows, frames = rows + units, frames + sum(map(len, self._frames_of[c]))
        return chosen

    def _fill(
        self, rng: np.random.Generator, rows: Int[np.ndarray, " r"], pool: Int[np.ndarray, " m"] | None
    ) -> Int[np.ndarray, " s"]:
        """Add frames of the pool (None: of all) that are not in the batch, until it is full or the pool is empty."""
        missing = self.batch_size - rows.size
        if missing == 0:
            return rows
        fresh = np.setdiff1d(np.arange(self.classes.size) if pool is None else pool, rows)
        return np.concatenate([rows, rng.choice(fresh, size=min(missing, fresh.size), replace=False)])

    def _other_unit(self, rng: np.random.Generator, frame: int) -> int:
        at = self._class_at.get(int(self.classes[frame]))
        if at is None:
            return frame
        others = [frames for frames in self._frames_of[at] if self.units[frames[0]] != self.units[frame]]
        return int(rng.choice(others[rng.integers(len(others))]))


@dataclasses.dataclass(frozen=True, eq=False)
class EpochPlan:
    """Batches for supervised training: each frame once an epoch, the epochs' orders laid end to end.

    Unlike `BatchPlan` it may take a frame twice into a batch (at the seam of two epochs, or where there are fewer
    frames than rows), as nothing is contrasted.

    Attributes:
      positions: the frames to train on.
      batch_size: frames in a global batch.
      seed: the draw.
    """

    positions: Int[np.ndarray, " n"]
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        assert self.positions.size
        assert self.batch_size >= 1

    def frames(self, step: int) -> Int[np.ndarray, " b"]:
        """The frame in every row of the global batch of this step."""
        n, start = self.positions.size, step * self.batch_size
        epochs, offsets = np.divmod(np.arange(start, start + self.batch_size), n)
        parts = [_permutation(n, self.seed, int(epoch))[offsets[epochs == epoch]] for epoch in np.unique(epochs)]
        return self.positions[np.concatenate(parts)]


@functools.lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> Int[np.ndarray, " n"]:
    """The raw order of an epoch; cached because every step of it asks again."""
    order = np.random.default_rng([seed, epoch, _EPOCH]).permutation(n)
    order.setflags(write=False)
    return order


def composition(groups: Int[np.ndarray, " b"], scans: Int[np.ndarray, "b v"]) -> dict[str, float]:
    """What a batch was composed of.

    Args:
      groups: group of each frame; a negative one holds a single frame.
      scans: scan of each of the frame's views.

    Returns:
      positives: mean number of positives of an anchor, over all views.
      cross_scan: share of the positive pairs whose scans differ.
      anatomies: groups that more than one frame belongs to.
      own_view_only: share of the frames with no positive but their own other view.
      no_cross_scan: share of the frames in shared groups that have no positive of another scan.
    """
    views = scans.shape[1]
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    rows = sizes[member] * views
    pair = np.stack([np.repeat(member, views), scans.reshape(-1)], axis=1)
    _, cell, cell_sizes = np.unique(pair, axis=0, return_inverse=True, return_counts=True)
    positives = np.repeat(rows, views) - 1
    cross = np.repeat(rows, views) - cell_sizes[cell.reshape(-1)]
    shared = np.repeat(sizes[member] > 1, views)
    return {
        "positives": float(positives.mean()),
        "cross_scan": float(cross.sum() / max(positives.sum(), 1)),
        "anatomies": float((sizes > 1).sum()),
        "own_view_only": float(1 - shared.mean()),
        "no_cross_scan": float((cross[shared] == 0).mean()) if shared.any() else 0.0,
    }
