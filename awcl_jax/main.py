"""Pretrain an encoder, or put one to use: `python -m awcl_jax.main --config=configs/fine.py`.

The configuration is a Python file with `get_config()`; a name after a colon is its argument, and any field can be set.
Such a file is executed: take only one that you trust. JSON is only read, and may be a stranger's; `config.json` in a
run's folder makes that run again, and a file of a few fields has the defaults for the others.

  python -m awcl_jax.main --config=configs/fine.py
  python -m awcl_jax.main --config=configs/fine.py:fetal_planes_db --config.data.path=DIR
  python -m awcl_jax.main --config=configs/coarse.py --config.train.steps=500 --workdir=runs/coarse
  python -m awcl_jax.main --config=configs/downstream_planes.py --config.encoder.init=runs/coarse
  python -m awcl_jax.main --config=runs/coarse/config.json --config.seed=1

The same command with the same --workdir goes on where a run was stopped. `--helpfull` lists the flags of all libraries.

Exit status: 0 all done; 1 bad input, or a disk that is full or broken; 75 stopped by SIGTERM or ctrl-C, after the step
that was being taken and with all that was learnt saved; 130 a second ctrl-C, which leaves at once; otherwise 128 and
the number of the signal that ended it, as 134 where another process of the run was lost.

Slurm's srun and a Cloud TPU slice start a process on every host, which find each other; elsewhere each is told:

  python -m awcl_jax.main --config=configs/fine.py --workdir=SHARED --coordinator=HOST:PORT --processes=2 --process=0
"""

import datetime
import gc
import sys

from absl import app, flags, logging

from awcl_jax.config.file import define_config, parse_flags
from awcl_jax.runtime import bucket, child_process, memory
from awcl_jax.runtime.cache import keep_compiled_programs
from awcl_jax.runtime.cli import exit_on_bad_input
from awcl_jax.runtime.errors import InputError

_CONFIG = define_config()
_FIELDS = flags.DEFINE_bool("fields", False, "List every field of the configuration with its default and meaning.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, or gs://BUCKET/FOLDER; by default new in runs/.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where no engine starts the processes.")
_PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes of the run; 1 asks no engine for others.")
_PROCESS = flags.DEFINE_integer("process", None, "Number of this process, from 0.")
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat", 100, "Seconds without a sign of life after which a process counts as lost, and all others end."
)


def main(argv: list[str]) -> None:
    """Run what the configuration says."""
    if len(argv) > 1:
        raise InputError(f"Unknown argument {argv[1]!r}; see --help.")
    if _FIELDS.value:
        from awcl_jax.config.reference import fields_text

        print(fields_text())
        return
    if _CONFIG.value is None:
        raise InputError(
            "No configuration. Choose one, for example --config=configs/fine.py or --config=fine; see --help."
        )
    bucket.on_bucket(_WORKDIR.value or "")  # refuses what is neither a path nor a bucket
    # Orbax warns of every checkpoint that is saved without a score and has many lines for a damaged one, of which we
    # tell in one; Matplotlib tells of its fonts when it is imported.
    logging.set_verbosity(logging.FATAL)
    memory.keep_freed_pages()
    child_process.continue_in_child()
    # Imported here, so that --help does not wait for JAX.
    from awcl_jax.config.fields import common_fields
    from awcl_jax.downstream import runner as downstream
    from awcl_jax.pretrain import runner as pretrain
    from awcl_jax.runtime import multihost

    # What was imported stays: a collection of garbage need not look at its million objects again.
    gc.freeze()
    gc.enable()

    multihost.join(
        coordinator=_COORDINATOR.value,
        processes=_PROCESSES.value,
        process=_PROCESS.value,
        heartbeat=_HEARTBEAT.value,
    )
    multihost.require_same(common_fields(_CONFIG.value))
    keep_compiled_programs()
    config = _CONFIG.value
    run = downstream.run if "task" in config else pretrain.run
    run(config, _WORKDIR.value or _new_workdir(config.name))


def _new_workdir(name: str) -> str:
    """A folder named after the moment at which the first process asks."""
    from awcl_jax.runtime import multihost

    # By its clock, whatever the others' zones.
    epoch = datetime.datetime(2026, 1, 1)
    seconds = multihost.agreed(int((datetime.datetime.now() - epoch).total_seconds()))
    return f"runs/{epoch + datetime.timedelta(seconds=seconds):%Y%m%d-%H%M%S}-{name}"


def _parse(argv: list[str]) -> list[str]:
    """Read the flags; absl ends with 1 after --help."""
    try:
        return parse_flags(argv)
    except SystemExit:
        sys.exit(0)


if __name__ == "__main__":
    with exit_on_bad_input():
        gc.disable()  # imports leave next to no garbage
        app.run(main, flags_parser=_parse)
