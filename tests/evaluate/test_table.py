"""The table of scores: every cell by hand."""

import numpy as np
import pytest

from awcl_jax.evaluate.scores import Score
from awcl_jax.evaluate.table import results_table
from awcl_jax.runtime.errors import InputError

pytestmark = pytest.mark.quick


def scores(value, frames=1141):
    return [
        Score("knn/accuracy", value, value - 0.02, value + 0.03, frames=frames, patients=241),
        Score("knn/macro_f1", value / 2, np.nan, np.nan, frames=frames, patients=241),
    ]


def test_results_table_by_hand():
    table = results_table({"untrained": scores(0.5), "trained": [*scores(0.75)[:1]]})
    assert table == "\n".join(
        [
            "|              | untrained              | trained                |",
            "| ------------ | ---------------------- | ---------------------- |",
            "| kNN accuracy | 0.500 (0.480 to 0.530) | 0.750 (0.730 to 0.780) |",
            "| kNN macro-F1 | 0.250 (one patient)    | -                      |",
            "",
            "Tested on 1,141 frames of 241 patients. In parentheses: 95% interval (bootstrap over patients).",
        ]
    )


def test_results_table_names_each_test_set_and_accepts_other_rows():
    columns = {"10%": scores(0.5), "50%": scores(0.6), "100%": scores(0.7, frames=9)}
    table = results_table(columns, rows={"Accuracy": "knn/accuracy", "Dice": "dice"})
    assert "Dice" not in table
    assert "10%: 1,141 frames of 241 patients" in table
    assert "100%: 9 frames of 241 patients" in table
    with pytest.raises(InputError, match="has a score named dice"):
        results_table(columns, rows={"Dice": "dice"})
