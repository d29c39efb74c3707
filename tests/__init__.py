"""Tests; a file for each module, and some over all."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""Checks shapes and types while tests run (see pyproject.toml); an int passes for a float, as for a type checker."""
