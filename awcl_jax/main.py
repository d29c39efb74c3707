"""Pretrain an encoder, or train a downstream task: `python -m awcl_jax.main --config=configs/fine.py`.

The configuration is a Python file with `get_config()`; a name after a colon is its argument. Override any field on the
command line. Python files are executed: use only files that you trust. JSON files are only read, so they need no trust;
fields that they omit have defaults, and the `config.json` in a run folder repeats that run.

  python -m awcl_jax.main --config=configs/fine.py
  python -m awcl_jax.main --config=configs/fine.py:fetal_planes_db --config.data.path=DIR
  python -m awcl_jax.main --config=configs/fine.py:vit --config.data.path=DIR --config.model.init=WEIGHTS
  python -m awcl_jax.main --config=configs/coarse.py --config.train.steps=500 --workdir=runs/coarse
  python -m awcl_jax.main --config=configs/downstream_planes.py --config.encoder.init=runs/coarse
  python -m awcl_jax.main --config=runs/coarse/config.json --config.seed=1

`--preview` shows what such a run would train on: it draws anchors of the first batch with their views and positives,
describes the batches, and exits without a run.

The same command with the same --workdir resumes a stopped run. `--helpfull` lists the flags of all libraries.

Exit status: 0 finished; 1 bad input, or a full or broken disk; 75 stopped by SIGTERM or ctrl-C, after finishing the
current step and saving a checkpoint; 130 a second ctrl-C, which exits at once; 134 another process of the run was lost;
otherwise 128 plus the number of the signal that ended it.

Slurm's srun and a Cloud TPU slice start a process on every host, and these find each other. Elsewhere, set the flags:

  python -m awcl_jax.main --config=configs/fine.py --workdir=SHARED --coordinator=HOST:PORT --processes=2 --process=0
"""

import datetime
import gc
from pathlib import Path
from typing import Any

from absl import app, flags

from awcl_jax.config.file import define_config, parse_flags
from awcl_jax.runtime import bucket, child_process, memory
from awcl_jax.runtime.cache import keep_compiled_programs
from awcl_jax.runtime.cli import exit_on_bad_input, require_name, silence_libraries
from awcl_jax.runtime.errors import InputError

_CONFIG = define_config()
_FIELDS = flags.DEFINE_bool("fields", False, "List every field of the configuration with its default and meaning.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Run folder, or gs://BUCKET/FOLDER; by default a new one in runs/.")
_PREVIEW = flags.DEFINE_bool(
    "preview", False, "Draw and describe the first batches with their views, then exit; nothing is trained."
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, if no launcher starts the processes.")
_PROCESSES = flags.DEFINE_integer(
    "processes", None, "Number of processes of the run; 1 disables detection of a launcher."
)
_PROCESS = flags.DEFINE_integer("process", None, "Number of this process, from 0.")
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat", 100, "Seconds without a heartbeat after which a process counts as lost, and all others exit."
)


def main(argv: list[str]) -> None:
    """Run the configuration."""
    if len(argv) > 1:
        raise InputError(f"Unknown argument {argv[1]!r}. See --help.")
    if _FIELDS.value:
        from awcl_jax.config.reference import fields_text

        print(fields_text())
        return
    if _CONFIG.value is None:
        raise InputError(
            "--config is missing. Set it, for example --config=configs/fine.py or --config=fine; see --help."
        )
    workdir = _workdir()
    silence_libraries()
    memory.keep_freed_pages()
    # Imported here, so that --help does not wait for JAX.
    from awcl_jax.config.fields import common_fields
    from awcl_jax.downstream import runner as downstream
    from awcl_jax.pretrain import runner as pretrain
    from awcl_jax.runtime import multihost

    # Imported objects stay: garbage collection need not scan a million of them again.
    gc.freeze()
    gc.enable()

    memory.free_before_the_next()
    multihost.join(
        coordinator=_COORDINATOR.value,
        processes=_PROCESSES.value,
        process=_PROCESS.value,
        heartbeat=_HEARTBEAT.value,
    )
    keep_compiled_programs()
    config = _CONFIG.value
    if _PREVIEW.value:
        _preview(config, workdir)
        return
    run = downstream.run if "task" in config else pretrain.run
    with multihost.loss_in_words():
        multihost.require_same(common_fields(config))
        run(config, workdir or _new_workdir(config.name))


def _workdir() -> str | None:
    """Return --workdir, in the user's home folder if it begins with ~; None without the flag.

    Raises:
      InputError: it is empty, or neither a path nor a bucket.
    """
    if _WORKDIR.value is None:
        return None
    require_name("--workdir", _WORKDIR.value)
    # A Path would shorten the // of a bucket's address.
    return _WORKDIR.value if bucket.on_bucket(_WORKDIR.value) else str(Path(_WORKDIR.value).expanduser())


def _preview(config: Any, workdir: str | None) -> None:
    """Write the picture beside the run's folder, not into it: a folder with other files is refused as that of a run."""
    from awcl_jax.pretrain import runner as pretrain
    from awcl_jax.runtime import multihost

    if "task" in config:
        raise InputError("--preview shows the batches of pretraining; this configuration is of a downstream run.")
    place = Path("runs", config.name) if workdir is None or bucket.on_bucket(workdir) else Path(workdir)
    if place.name in ("", ".."):  # such as ., the folder of which has a name
        place = place.resolve()
    if not place.name:
        raise InputError(
            f"--preview writes its picture beside the run's folder. Choose another --workdir; got {place}."
        )
    out = place.with_name(f"{place.name}-preview.png")
    if not multihost.first():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    print(f"{pretrain.preview(config, out)}\n\nThe picture is {out}; nothing was trained.")


def _new_workdir(name: str) -> str:
    """Return the name of a folder that does not exist, from the time of the first process."""
    from awcl_jax.runtime import multihost

    epoch, moment = datetime.datetime(2026, 1, 1), datetime.datetime.now()
    while Path(_workdir_at(moment, name)).exists():  # since a clock was set back
        moment += datetime.timedelta(seconds=1)
    # The first process's clock, whatever the time zones of the others.
    since = moment - epoch
    agreed = datetime.timedelta(days=multihost.agreed(since.days), seconds=multihost.agreed(since.seconds))
    return _workdir_at(epoch + agreed, name)


def _workdir_at(moment: datetime.datetime, name: str) -> str:
    return f"runs/{moment:%Y%m%d-%H%M%S}-{name}"


if __name__ == "__main__":
    with exit_on_bad_input():
        # Before flags are parsed: configurations in Python import NumPy and JAX, which start threads.
        child_process.continue_in_child()
        gc.disable()  # imports leave almost no garbage
        app.run(main, flags_parser=parse_flags)
