"""What surrounds a run's steps."""

import errno

import pytest

from awcl_jax.runtime.errors import InputError
from awcl_jax.train.harness import after_training
from awcl_jax.train.workdir import Workdir

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InputError("No test frame."), "No test frame."),
        (OSError(errno.ENOSPC, "No space left on device", "results.json"), "No space left on device: results.json"),
        (MemoryError("Unable to allocate 20 GiB"), r"Not enough memory to score .*\(Unable to allocate 20 GiB\)"),
    ],
)
def test_what_fails_after_training_names_the_saved_encoder(tmp_path, error, message):
    with pytest.raises(InputError, match=message) as caught, after_training(Workdir(tmp_path / "run")):
        raise error
    assert f"Training is complete and saved in {tmp_path}/run; rerun the same command" in str(caught.value)


def test_a_fault_of_the_package_stays_one_and_has_the_hint(tmp_path):
    with pytest.raises(KeyError) as caught, after_training(Workdir(tmp_path)):
        raise KeyError("probe")
    assert caught.value.__notes__[0].startswith("Training is complete and saved")


def test_a_closed_pipe_is_no_failure_of_the_scores(tmp_path):
    with pytest.raises(BrokenPipeError), after_training(Workdir(tmp_path)):
        raise BrokenPipeError
