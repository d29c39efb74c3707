"""Texts in tables for spreadsheets, which run a cell that begins like a formula, also one that a stranger wrote."""

from typing import Any


def without_formula(cell: Any) -> Any:
    """Return a cell of a table, with an apostrophe before a text that a spreadsheet would run as a formula."""
    return f"'{cell}" if is_formula(cell) else cell


def is_formula(cell: object) -> bool:
    """Return whether a spreadsheet would run a cell; apostrophes before it do not count."""
    # So that they are read back as they were.
    text = cell.lstrip("'") if isinstance(cell, str) else ""
    return text.startswith(("=", "+", "-", "@", "\t", "\r")) and not _is_decimal(text)


def _is_decimal(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
