"""The anatomies that the user's names mean."""

import difflib
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from awcl_jax.data.anatomy import FETAL_PLANES_14, FETAL_PLANES_DB, UNLABELLED, Taxonomy
from awcl_jax.runtime.errors import InputError

BUILT_IN = {"fetal_planes_14": FETAL_PLANES_14, "fetal_planes_db": FETAL_PLANES_DB}
"""Taxonomies that need no file."""

_TABLES = ("planes", "aliases", "unlabelled")


def read_taxonomy(path: Path) -> tuple[Taxonomy, frozenset[str]]:
    """Read a taxonomy from a TOML or YAML file, or use one of `BUILT_IN` by name.

        unlabelled = ["other", "unknown"]     # names without an anatomy

        [planes]                              # fine name = its coarse group
        4CH = "heart"
        LVOT = "heart"

        [aliases]                             # another name = the fine name
        "four chamber view" = "4CH"

    Returns:
      (the taxonomy, names without an anatomy)

    Raises:
      InputError: the file cannot be read, or does not have this form.
    """
    if str(path) in BUILT_IN:
        return BUILT_IN[str(path)], frozenset()
    tables = _load(path)
    form = f"{path} must have [planes] (fine name = coarse name), and may have [aliases] and a list `unlabelled`"
    planes, aliases, unlabelled = (
        tables.get(name, kind()) for name, kind in zip(_TABLES, (dict, dict, list), strict=True)
    )
    if unknown := tables.keys() - set(_TABLES):
        raise InputError(f"{form}; it also has {', '.join(sorted(map(str, unknown)))}.")
    texts = [*planes.items(), *aliases.items()] if isinstance(planes, dict) and isinstance(aliases, dict) else None
    if not planes or texts is None or not isinstance(unlabelled, list):
        raise InputError(f"{form}.")
    # YAML reads 3 as a number and no as a truth value.
    if wrong := [text for pair in (*texts, unlabelled) for text in pair if not (isinstance(text, str) and text)]:
        raise InputError(f"{form}. Every name must be text in quotes; got {wrong[0]!r}.")
    groups: dict[str, tuple[str, ...]] = {}
    for fine, coarse in planes.items():
        groups[coarse] = (*groups.get(coarse, ()), fine)
    return Taxonomy(groups, aliases), frozenset(unlabelled)


def found_taxonomy(names: Iterable[str], gaps: frozenset[str] = frozenset()) -> Taxonomy:
    """Return a taxonomy in which every name is a fine and a coarse anatomy, except `gaps`, which have none.

    Raises:
      InputError: a name has a line break or another unprintable character.
    """
    found = sorted({*names} - {""} - gaps)
    if wrong := [name for name in found if not name.isprintable()]:
        raise InputError(
            f"An anatomy name must be one line of text; got {wrong[0]!r}. Define an alias in --taxonomy=FILE."
        )
    return Taxonomy({name: (name,) for name in found})


def same_but_for_case(names: Iterable[str]) -> list[list[str]]:
    """Return names that differ only in upper and lower case, which are different anatomies, in groups."""
    groups: dict[str, list[str]] = {}
    for name in sorted({*names} - {""}):
        groups.setdefault(name.casefold(), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def resolve_names(
    names: Iterable[str],
    taxonomy: Taxonomy,
    unlabelled: frozenset[str] = frozenset(),
    gaps: frozenset[str] = frozenset(),
) -> Mapping[str, tuple[int, int]]:
    """Return the fine and coarse label of each name; a coarse name has no fine label.

    Args:
      names: the user's names.
      taxonomy: the known names.
      unlabelled: names without an anatomy.
      gaps: spellings of an empty cell, without an anatomy unless the taxonomy has them.

    Raises:
      InputError: names are unknown; it lists all, each with the nearest known one.
    """
    counts = Counter(names)
    resolved: dict[str, tuple[int, int]] = {}
    unknown, cased = [], False
    for name, count in sorted(counts.items()):
        plane = taxonomy.aliases.get(name, name)
        if not name or name in unlabelled:
            resolved[name] = (UNLABELLED, UNLABELLED)
        elif plane in taxonomy.fine:
            resolved[name] = (taxonomy.fine.index(plane), taxonomy.coarse.index(taxonomy.coarse_of(plane)))
        elif name in taxonomy.coarse:
            resolved[name] = (UNLABELLED, taxonomy.coarse.index(name))
        elif name in gaps:
            resolved[name] = (UNLABELLED, UNLABELLED)
        else:
            known = [*taxonomy.fine, *taxonomy.coarse, *taxonomy.aliases]
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            cased |= name.casefold() == nearest.casefold()
            unknown.append(f"{name!r} ({count:,} file(s), nearest {nearest!r})")
    if unknown:
        raise InputError(
            f"The taxonomy lacks {len(unknown)} name(s): {', '.join(unknown)}. Add them to [planes], "
            f"[aliases] or `unlabelled`.{' Upper and lower case are different.' if cased else ''}"
        )
    return resolved


def _load(path: Path) -> Mapping[Any, Any]:
    if not path.is_file():
        raise InputError(f"--taxonomy must be a file or {' or '.join(BUILT_IN)}; {path} does not exist.")
    try:
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text) if path.suffix.lower() == ".toml" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"The taxonomy {path} is not a TOML or YAML file ({' '.join(str(error).split())}).") from error
    if not isinstance(tables, dict):
        raise InputError(f"The taxonomy {path} has no tables.")
    return tables
