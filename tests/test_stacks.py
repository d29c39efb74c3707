"""A run that is begun with one set of versions and ends with another, such as those of another Python.

`AWCL_OTHER_PYTHON` is an interpreter with this package and its `test` extra in other versions.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from awcl_jax.embed import load_encoder
from awcl_jax.runtime.errors import InputError
from tests.helpers.killed_runs import STEPS, assert_same_to_rounding, fields, starts

ROOT = Path(__file__).parents[1]
OTHER = os.environ.get("AWCL_OTHER_PYTHON", "")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not OTHER, reason="AWCL_OTHER_PYTHON names no interpreter with other versions"),
]


@pytest.fixture(scope="module", autouse=True)
def any_compiler():
    """Pass on no flags of XLA: another version may not have them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS", raising=False)
        yield


def python(program: str, *arguments: object) -> str:
    """Run a program with the other interpreter and return what it prints."""
    command = [OTHER, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def ended(workdir: Path, phantom: Path, *interpreters: str) -> Path:
    """Run in this folder, with each interpreter from where a SIGKILL ended the one before."""
    for number, interpreter in enumerate(interpreters, start=1):
        last = number == len(interpreters)
        statuses, said = starts(workdir, fields(phantom), [None if last else ["saved", 12]], python=interpreter)
        assert statuses == [0 if last else -signal.SIGKILL], said
        assert ("Resuming from step 12 of 24." in said) == (number > 1)
    return workdir


@pytest.fixture(scope="module")
def here(phantom, tmp_path_factory) -> Path:
    """Return the folder of a run of this interpreter alone."""
    return ended(tmp_path_factory.mktemp("stacks") / "here", phantom, sys.executable)


@pytest.mark.parametrize("order", [(sys.executable, OTHER), (OTHER, sys.executable)], ids=["there", "back"])
def test_a_run_continues_with_other_versions(order, here, phantom):
    run = ended(here.with_name(str(order.index(OTHER))), phantom, *order)
    assert_same_to_rounding(run, here)


_FEATURES = """
import sys
import numpy as np
from awcl_jax.embed import load_encoder
np.save(sys.argv[3], load_encoder(sys.argv[1])(np.load(sys.argv[2])))
"""


def test_encoders_are_read_with_other_versions(here, tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64), np.uint8)
    np.save(tmp_path / "frames.npy", frames)
    expected = load_encoder(here)(frames)
    python("from awcl_jax.export.command import main; main()", here, f"--out={tmp_path}/out", "--formats=jax")
    for encoder in (here / "checkpoints" / str(STEPS), tmp_path / "out"):
        python(_FEATURES, encoder, tmp_path / "frames.npy", tmp_path / "features.npy")
        np.testing.assert_allclose(np.load(tmp_path / "features.npy"), expected, atol=1e-4)
    try:
        found = load_encoder(tmp_path / "out")(frames)
    except InputError as error:  # this JAX is the older one
        refused = str(error)
        assert re.search("encoder.jax was written by JAX .*, and this is JAX .*Install", refused)
        return
    np.testing.assert_allclose(found, expected, atol=1e-4)
