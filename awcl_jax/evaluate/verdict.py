"""A run in two or three plain sentences: whether it collapsed, and whether its encoder is better than none."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from awcl_jax.evaluate.scores import Score
from awcl_jax.evaluate.table import FEATURE_ROWS

_COLLAPSED = 0.98  # share of a collapsed encoder's loss, from which on a loss counts as that
_FEW_PATIENTS = 10  # below this an interval over patients is hardly more than a guess
_RARE = 3  # below this number of patients the score of an anatomy is one
_LISTED = 5

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
    shown_by: Mapping[str, int] = MappingProxyType({}),
) -> list[str]:
    """Return sentences on a pretraining run that has ended.

    Args:
      losses: loss and that of a collapsed encoder, at the last steps that were logged.
      differences: what the encoder is compared with -> its score minus that, paired (see `paired`); empty if nothing is
        scored.
      health: `untrained` and `trained` -> measurements without labels; empty if there are none.
      patients: that it was tested on.
      shown_by: anatomy -> number of test patients with labelled frames of it, where that is not 0.
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
    return lines + (said_of_few(patients) + _said_of_rare(shown_by) if differences else [])


def said_of_few(patients: int) -> list[str]:
    """Return a sentence if an encoder was tested on too few patients."""
    if patients >= _FEW_PATIENTS:
        return []
    return [f"BAD: only {patients} test patient(s), too few to rely on any score or interval."]


def _said_of_rare(shown_by: Mapping[str, int]) -> list[str]:
    rare = sorted((count, name) for name, count in shown_by.items() if count < _RARE)
    if not rare:
        return []
    listed = [f"{name} ({count} test patient{'s' * (count > 1)})" for count, name in rare[:_LISTED]]
    more = [f"{len(rare) - _LISTED} more"] * (len(rare) > _LISTED)
    text = f"Macro-F1 and its interval rest as much on {', '.join([*listed, *more])} as on the other anatomies."
    return [f"{text} config.eval.anatomies names those to score."]


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
