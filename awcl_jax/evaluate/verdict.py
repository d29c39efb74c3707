"""A run in two or three plain sentences: whether it collapsed, and whether its encoder is better than none."""

import math
from collections.abc import Mapping, Sequence

from awcl_jax.evaluate.scores import Score
from awcl_jax.evaluate.table import FEATURE_ROWS

_COLLAPSED = 0.98  # share of a collapsed encoder's loss, from which on a loss counts as that
_FEW_PATIENTS = 10  # below this an interval over patients is hardly more than a guess

_TITLES = {name: title for title, name in FEATURE_ROWS.items()}
_COLLAPSE = "an encoder that maps all frames to one point"
_FOUND = {
    "retrieval/view": "the nearest is the other view of the same frame",
    "retrieval/scan": "the nearest is another frame of the same scan",
}


def verdict(
    *,
    losses: Sequence[tuple[float, float]],
    differences: Mapping[str, Score],
    health: Mapping[str, Mapping[str, float]],
    patients: int,
) -> list[str]:
    """Return sentences on a pretraining run that has ended.

    Args:
      losses: loss and that of a collapsed encoder, at the last steps that were logged.
      differences: what the encoder is compared with -> its score minus that, paired (see `paired`); empty if nothing is
        scored.
      health: `untrained` and `trained` -> measurements without labels; empty if there are none.
      patients: that it was tested on.
    """
    lines = []
    if losses:
        loss, collapsed = (sum(values) / len(losses) for values in zip(*losses, strict=True))
        if loss < _COLLAPSED * collapsed:
            lines.append(f"Loss {loss:.3f}: below the {collapsed:.3f} of a collapsed encoder ({_COLLAPSE}).")
        elif math.isfinite(loss):
            lines.append(
                f"BAD: loss {loss:.3f} is not clearly below the {collapsed:.3f} of a collapsed encoder ({_COLLAPSE}): "
                "it learned nothing."
            )
        else:
            lines.append(f"BAD: loss {loss:.3f} is not a number: it learned nothing.")
    lines += [_compared(other, score) for other, score in differences.items()]
    if health.keys() >= {"untrained", "trained"}:
        lines.append(_found(health))
    return lines + (said_of_few(patients) if differences else [])


def said_of_few(patients: int) -> list[str]:
    """Return a sentence if an encoder was tested on too few patients."""
    if patients >= _FEW_PATIENTS:
        return []
    return [f"BAD: only {patients} test patient(s), too few to rely on any score or interval."]


def _compared(other: str, score: Score) -> str:
    text = f"{_TITLES.get(score.name, score.name)} on test patients, trained minus {other}: {score.value:+.3f}"
    if not score.low <= score.high:  # of one patient, without an interval
        return f"BAD: {text}, of one patient: nothing follows from it."
    text += f" ({score.low:+.3f} to {score.high:+.3f}, paired)"
    if score.low > 0:
        return f"{text}: better."
    return f"BAD: {text}: {'worse' if score.high < 0 else 'no difference can be seen'}."


def _found(health: Mapping[str, Mapping[str, float]]) -> str:
    before, after = health["untrained"], health["trained"]
    shared = before.keys() & after.keys()
    found = [name for name in _FOUND if name in shared]
    parts = [f"{_FOUND[name]} for {after[name]:.0%} (untrained {before[name]:.0%})" for name in found]
    if "effective_rank" in shared:
        parts.append(
            f"features use {after['effective_rank']:.1f} dimensions (effective rank; untrained "
            f"{before['effective_rank']:.1f})"
        )
    worse = all(after[name] <= before[name] for name in found)
    text = f"without labels, on validation frames: {', '.join(parts)}"
    return f"BAD: {text}: no better than untrained." if worse else f"{text[0].upper()}{text[1:]}."
