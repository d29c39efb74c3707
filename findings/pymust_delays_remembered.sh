#!/usr/bin/env bash
# PyMUST 0.1.9 remembers which elements were off in an earlier call, and simulates the next one without them.
#
# In a vector of transmit delays NaN marks an element that is off. An image of focused lines is made by walking a group
# of elements along the array, a call of `simus` for each line, with the one `param` that describes the array. Input:
# C5-2v, one scatterer 60 mm deep, groups of 32 elements that start at elements 0, 16, 32 and 48.
# Expected: each call depends on its arguments: the echoes of one `param` for all are those of a fresh one for each.
# Seen: no error; the second group sends from its 16 elements that the first one had, and from the third on all echoes
# are NaN, with a warning of NumPy's about a division only. `pfield` writes zeros for the elements that are off into
# `param.TXapodization` and never takes them back. In MATLAB, from which PyMUST is ported, a caller's structure stays as it is.
# Exits with 0 while this holds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pymust==0.1.9 numpy==2.4.6 scipy==1.17.1
"$folder/venv/bin/python" - <<'PYTHON'
import warnings

import numpy as np
import pymust

warnings.simplefilter("ignore", RuntimeWarning)


def echo(first, param):
    """Return the greatest echo when 32 elements from `first` on send at once."""
    delays = np.full((1, 128), np.nan)
    delays[0, first : first + 32] = 0.0
    signals, _ = pymust.simus(np.array([0.0]), np.array([0.06]), np.ones(1), delays, param)
    return float(np.abs(signals).max())


starts = (0, 16, 32, 48)
fresh = [echo(first, pymust.getparam("C5-2v")) for first in starts]
one = pymust.getparam("C5-2v")
used = [echo(first, one) for first in starts]
print(f"a param for each {np.round(fresh, 2)}, one for all {np.round(used, 2)}")
print("elements left to send:", int(one.TXapodization.sum()))
assert np.isfinite(fresh).all() and min(fresh) > 1
assert np.isclose(used[0], fresh[0])
assert used[1] < 0.6 * fresh[1], "changed: the second group sends from all of its elements"
assert np.isnan(used[2:]).all(), "changed: later groups have echoes"
PYTHON
