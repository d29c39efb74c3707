"""Patients are spread over the splits so that each split shows every anatomy, as far as there are patients."""

from collections import Counter
from collections.abc import Mapping, Sequence, Set

Kind = tuple[int, int]
"""Fine and coarse label of an anatomy."""

_LACKING = ("train", "test", "val")  # the order in which splits get a first patient of an anatomy


def stratify(order: Sequence[str], shown: Mapping[str, Set[Kind]], *, test: int, val: int) -> dict[str, str]:
    """Return a split for each patient, by the anatomies that they show.

    Iterative stratification (Sechidis, Tsoumakas & Vlahavas 2011, "On the stratification of multi-label data",
    Algorithm 1): the anatomy with the fewest patients left is dealt first. Here a split that lacks the anatomy comes
    first; then that with the greatest part of its share missing. Patients without a label fill what is left. As dealing
    does not look back, two patients are exchanged at the end wherever a split then shows an anatomy more. If all
    patients show the same, this is the draw of the first to test and the next to validate.

    Args:
      order: the patients, as drawn.
      shown: patient -> the anatomies that they show; none or missing where no frame has a label.
      test: number of patients that test.
      val: number that validate; the others train.
    """
    kinds = {patient: frozenset(shown.get(patient, ())) for patient in order}
    if len(set(kinds.values())) <= 1:
        return {p: "test" if at < test else "val" if at < test + val else "train" for at, p in enumerate(order)}
    room = {"train": len(order) - test - val, "test": test, "val": val}
    share = {split: count / len(order) for split, count in room.items()}
    total = Counter(kind for kinds_of in kinds.values() for kind in kinds_of)
    waiting = dict(total)
    queues = {kind: iter([patient for patient in order if kind in kinds[patient]]) for kind in total}
    dealt: Counter[tuple[Kind, str]] = Counter()
    splits: dict[str, str] = {}

    def deal(patient: str, split: str) -> None:
        splits[patient] = split
        room[split] -= 1
        for kind in kinds[patient]:
            dealt[kind, split] += 1
            waiting[kind] -= 1
            if not waiting[kind]:
                del waiting[kind]

    while waiting:
        kind = min(waiting, key=lambda kind: (waiting[kind], kind))
        patient = next(patient for patient in queues[kind] if patient not in splits)
        free = [split for split in _LACKING if room[split]]
        lacking = [split for split in free if not dealt[kind, split]]
        missing = {split: share[split] * total[kind] - dealt[kind, split] for split in free}
        deal(patient, lacking[0] if lacking else max(free, key=missing.__getitem__))
    for patient in order:
        if patient not in splits:
            deal(patient, next(split for split in ("test", "val", "train") if room[split]))
    _exchange(order, kinds, splits, dealt)
    return splits


def _exchange(
    order: Sequence[str],
    kinds: Mapping[str, Set[Kind]],
    splits: dict[str, str],
    dealt: Counter[tuple[Kind, str]],
) -> None:
    """Exchange patients of two splits while that makes more pairs of an anatomy and a split that shows it."""

    def gain(one: str, other: str) -> int:
        change: Counter[tuple[Kind, str]] = Counter()
        for patient, leaves, enters in ((one, splits[one], splits[other]), (other, splits[other], splits[one])):
            for kind in kinds[patient]:
                change[kind, leaves] -= 1
                change[kind, enters] += 1
        return sum((dealt[pair] + n > 0) - (dealt[pair] > 0) for pair, n in change.items())

    def better() -> tuple[str, str] | None:
        for split in dict.fromkeys(splits.values()):
            inside = [patient for patient in order if splits[patient] == split]
            for kind in sorted({kind for kind, _ in dealt if not dealt.get((kind, split))}):
                for one in (patient for patient in order if kind in kinds[patient]):
                    for other in inside:
                        if gain(one, other) > 0:
                            return one, other
        return None

    while (pair := better()) is not None:
        one, other = pair
        for patient, leaves, enters in ((one, splits[one], splits[other]), (other, splits[other], splits[one])):
            for kind in kinds[patient]:
                dealt[kind, leaves] -= 1
                dealt[kind, enters] += 1
        splits[one], splits[other] = splits[other], splits[one]
