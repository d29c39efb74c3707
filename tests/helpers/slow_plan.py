"""The batches of `BatchPlan` as they were first drawn: whole orders of everything, in plain loops.

What is drawn here one by one, and from lists that are made in full, the plan draws at once, and counts. Both take the
same numbers from the same stream, so that runs that have begun go on with their batches.
"""

import math

import numpy as np

from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.data.sampler import BatchPlan


def frames(plan: BatchPlan, step: int) -> list[int]:
    """Return the expected `plan.frames(step)`."""
    return _natural(plan, step) if plan.mode == "natural" else _balanced(plan, step)


def partners(plan: BatchPlan, step: int) -> list[int]:
    """Return the expected `plan.partners(step)`."""
    rng = np.random.default_rng([plan.seed, step, 2])
    cells, result = _cells(plan), []
    for frame in frames(plan, step):
        others = [members for unit, members in cells.get(plan.classes[frame], {}).items() if unit != plan.units[frame]]
        paired = plan.pairs == "cross_scan" and others
        result.append(int(rng.choice(others[rng.integers(len(others))])) if paired else frame)
    return result


def _cells(plan: BatchPlan) -> dict[int, dict[int, list[int]]]:
    """Return class -> unit -> frames, of classes of two units or more, in ascending order."""
    table: dict[int, dict[int, list[int]]] = {}
    for frame, (c, unit) in enumerate(zip(plan.classes.tolist(), plan.units.tolist(), strict=True)):
        if c != UNLABELLED:
            table.setdefault(c, {}).setdefault(unit, []).append(frame)
    return {c: dict(sorted(units.items())) for c, units in sorted(table.items()) if len(units) > 1}


def _balanced(plan: BatchPlan, step: int) -> list[int]:
    rng = np.random.default_rng([plan.seed, step, 1])
    cells = [list(units.values()) for units in _cells(plan).values()]
    labelled = {frame for units in cells for members in units for frame in members}
    unlabelled = [frame for frame in range(plan.classes.size) if frame not in labelled]
    rows = plan.batch_size - min(round(plan.unlabelled_share * plan.batch_size), len(unlabelled))
    chosen, taken, frames = [], 0, len(unlabelled)
    for c in rng.permutation(len(cells)).tolist():
        units = min(len(cells[c]), plan.units_per_class)
        if (len(chosen) >= (plan.anatomies or len(cells)) or taken + units > rows) and frames >= plan.batch_size:
            break
        if taken + units <= plan.batch_size:
            chosen.append(c)
            taken, frames = taken + units, frames + sum(map(len, cells[c]))
    orders = {c: rng.permutation(len(cells[c])).tolist() for c in chosen}
    batch = [int(rng.choice(cells[c][unit])) for c, order in orders.items() for unit in order[: plan.units_per_class]]
    for turn in range(plan.units_per_class, plan.units.size):
        for c, order in orders.items():
            if turn < len(order) and len(batch) < rows:
                batch.append(int(rng.choice(cells[c][order[turn]])))
    for pool in (unlabelled, [f for c in chosen for members in cells[c] for f in members], range(plan.classes.size)):
        if len(batch) < plan.batch_size:
            fresh = sorted(set(pool) - set(batch))
            size = min(plan.batch_size - len(batch), len(fresh))
            batch += rng.choice(np.array(fresh, np.int64), size=size, replace=False).tolist()
    return rng.permutation(batch).tolist()


def _natural(plan: BatchPlan, step: int) -> list[int]:
    n, b = plan.classes.size, plan.batch_size
    first, last = step * b // n, ((step + 1) * b - 1) // n
    rows = [frame for epoch in range(first, last + 1) for frame in _epoch(plan, epoch)]
    return rows[step * b - first * n :][:b]


def _epoch(plan: BatchPlan, epoch: int) -> list[int]:
    n, b = plan.classes.size, plan.batch_size
    cycle = b // math.gcd(n, b)
    start = max(epoch - 1 if n >= 2 * b else epoch - epoch % cycle, 0)
    order = np.random.default_rng([plan.seed, start, 3]).permutation(n).tolist()
    for e in range(start + 1, epoch + 1):
        carried = -(e * n) % b
        already = set(order[n - (b - carried) :]) if carried else set()
        order = np.random.default_rng([plan.seed, e, 3]).permutation(n).tolist()
        clashes = [at for at in range(carried) if order[at] in already]
        free = [at for at in range(carried, n - b if n >= 2 * b else n) if order[at] not in already]
        for one, other in zip(clashes, free, strict=False):
            order[one], order[other] = order[other], order[one]
    return order
