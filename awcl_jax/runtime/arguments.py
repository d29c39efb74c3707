"""The parser of every command that is not configured by a file."""

import argparse
import difflib
import itertools
import sys
from collections.abc import Iterable, Sequence
from typing import Any

# Words for the same thing in other programs -> option here.
_ELSEWHERE = {
    **dict.fromkeys(("--root", "--input", "--data", "--data_dir", "--path", "--images", "--folder"), "--source"),
    **dict.fromkeys(("--output", "--output_dir", "--outdir", "--dest", "--workdir", "--target"), "--out"),
}


class Parser(argparse.ArgumentParser):
    """A parser that shows its texts as written, knows no abbreviations, and names the option that was meant.

    Its subcommands are such parsers, too: an error shows the options of the one that was called.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Make one; arguments are those of argparse, by name."""
        settings = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
        super().__init__(**{**settings, **kwargs})

    def parse_known_args(  # type: ignore[override]  # argparse types it by its namespace
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse as argparse does, but report unknown options before missing ones: one may be the other, misspelt."""
        given = list(sys.argv[1:] if args is None else args)
        if self._subparsers is None:  # otherwise they are those of the subcommand
            self._require_known(itertools.takewhile(lambda one: one != "--", given))
        return super().parse_known_args(given, namespace)

    def _require_known(self, given: Iterable[str]) -> None:
        known = [option for action in self._actions for option in action.option_strings]
        names = [one.partition("=")[0] for one in given if one.startswith("--")]
        unknown = list(dict.fromkeys(name for name in names if name not in known))
        meant = dict.fromkeys(option for name in unknown if (option := _nearest(name, known)))
        if unknown:
            asked = f" (did you mean {', '.join(meant)}?)" if meant else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{asked}")


def _nearest(name: str, known: Sequence[str]) -> str | None:
    """Return the option that was probably meant; None if no one can tell."""
    plain = f"--{name.strip('-').replace('-', '_')}"
    near = [_ELSEWHERE.get(plain), *difflib.get_close_matches(plain, known, n=1, cutoff=0.7)]
    return next((option for option in near if option in known), None)
