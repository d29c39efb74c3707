"""The files of tested versions pin all that the extra `test` installs."""

import re
from importlib.metadata import distribution, requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers.lock import LOCK, LOCKS

PACKAGE = "awcl-jax"


def pinned(lock):
    lines = [line for line in lock.read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!]+", line) for line in lines), lines
    return {canonicalize_name(line.partition("==")[0]) for line in lines}


def needed(*, everything):
    """Return what the package with its extra `test` requires on this Python, and if asked also what that requires."""
    found, waiting = set(), [(PACKAGE, "test")]
    seen = set()
    while waiting:
        name, extra = asked = waiting.pop()
        if asked in seen:
            continue
        seen.add(asked)
        for requirement in map(Requirement, requires(name) or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                other = canonicalize_name(requirement.name)
                found.add(other)
                if everything or other == PACKAGE:
                    waiting += [(other, extra) for extra in ("", *requirement.extras)]
    return found - {PACKAGE}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_lock_pins_what_the_package_asks_for(lock):
    assert needed(everything=False) - pinned(lock) == set()


def test_the_lock_of_this_python_pins_all_that_is_installed_for_the_tests():
    names = needed(everything=True)
    assert {"wandb", "et-xmlfile", "jaxlib"} <= names
    assert all(distribution(name) for name in names)
    assert names - pinned(LOCK) == set()
