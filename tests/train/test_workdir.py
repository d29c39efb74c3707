"""The folder of a run in a bucket."""

import errno
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from awcl_jax.runtime import bucket as storage
from awcl_jax.runtime.errors import InputError
from awcl_jax.train.checkpoint import Checkpoints
from awcl_jax.train.metrics import MetricsWriter, read_metrics
from awcl_jax.train.run_folder import open_run
from awcl_jax.train.workdir import Workdir, fetch_run


@pytest.fixture
def home(bucket):
    return f"gs://{bucket.name}/runs/one"


def begin(folder, **config):
    folder.fetch()
    open_run(folder.files, config=config or {"seed": 0}, fingerprint="f")


def on_bucket(home):
    return {name: blob.download_as_bytes() for name, blob in storage.listed(home).items()}


def save(folder, *steps):
    with Checkpoints(folder.files) as checkpoints:
        for step in steps:
            checkpoints.save(step, {"a": step * jnp.arange(3.0)}, score=-step)


def steps_on_bucket(home):
    return {name.split("/")[1] for name in storage.listed(home) if name.startswith("checkpoints/")}


@pytest.fixture
def moved(monkeypatch):
    """Return the files sent and removed, in order, a list that grows."""
    calls, send, remove = [], storage.send, storage.remove

    def sending(folder, names, url):
        calls.extend(("sent", name) for name in names)
        send(folder, names, url)

    def removing(names, url):
        calls.extend(("removed", name) for name in names)
        remove(names, url)

    monkeypatch.setattr(storage, "send", sending)
    monkeypatch.setattr(storage, "remove", removing)
    return calls


def test_a_folder_is_of_one_process_at_a_time(tmp_path):
    with Workdir(tmp_path / "run") as first:
        first.hold()
        with pytest.raises(InputError, match=r"is running in .*run\. Wait"), Workdir(tmp_path / "run") as second:
            second.hold()
        with Workdir(tmp_path / "other") as third:
            third.hold()
        with pytest.raises(InputError), Workdir(tmp_path / "run") as fourth:
            fourth.hold()  # the refused processes have not released the lock
    with Workdir(tmp_path / "run") as fifth:
        fifth.hold()


def test_a_disk_without_locks_refuses_no_process(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with Workdir(tmp_path) as first, Workdir(tmp_path) as second:
        first.hold()
        second.hold()


def test_a_folder_of_this_host_is_used_as_it_is(tmp_path):
    with Workdir(tmp_path / "run") as folder:
        assert folder.files == folder.home == tmp_path / "run"
        begin(folder)
        folder.send(after=pytest.fail)
        folder.share()
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["config.json"]
    assert fetch_run(tmp_path / "run") == tmp_path / "run"


def test_a_run_leaves_on_the_bucket_what_it_leaves_in_a_folder(home):
    with Workdir(home) as folder:
        begin(folder)
        with MetricsWriter(folder.files, start_step=0) as metrics:
            metrics.write(1, {"loss": 2.0})
            folder.send()
            assert on_bucket(home)["metrics.jsonl"] == b'{"step": 1, "loss": 2.0}\n'
            metrics.write(2, {"loss": 1.0})
    assert not folder.files.exists()
    assert {name.split("/")[0] for name in on_bucket(home)} == {"config.json", "metrics.jsonl", "tensorboard"}
    # Another host resumes it, from the step of a checkpoint.
    with Workdir(home) as folder:
        begin(folder)
        with MetricsWriter(folder.files, start_step=1) as metrics:
            metrics.write(2, {"loss": 0.5})
    with Workdir(home) as folder:
        folder.fetch()
        assert [line["loss"] for line in read_metrics(folder.files / "metrics.jsonl")] == [2.0, 0.5]
    with pytest.raises(InputError, match=f"^{home} holds another run, with other seed"), Workdir(home) as folder:
        begin(folder, seed=1)


def test_checkpoints_are_fetched_and_stale_ones_removed(home):
    with Workdir(home) as folder:
        begin(folder)
        save(folder, 1, 2, 3)
        folder.send()
        assert steps_on_bucket(home) == {"1", "2", "3"}
        save(folder, 4)
    assert steps_on_bucket(home) == {"1", "3", "4"}
    with Workdir(home) as folder:
        folder.fetch()
        with Checkpoints(folder.files) as checkpoints:
            step, state = checkpoints.newest({"a": jnp.zeros(3)}, warn=pytest.fail)
            assert (step, checkpoints.best_step) == (4, 1)
        np.testing.assert_array_equal(state["a"], [0, 4, 8])


def test_a_damaged_checkpoint_is_set_aside_on_the_bucket_too(home):
    with Workdir(home) as folder:
        begin(folder)
        save(folder, 1, 2)
    name = max((n for n in on_bucket(home) if n.startswith("checkpoints/2/")), key=lambda n: len(on_bucket(home)[n]))
    storage.listed(home)[name].upload_from_string(b"damage")
    with Workdir(home) as folder:
        folder.fetch()
        with Checkpoints(folder.files) as checkpoints:
            said = []
            assert checkpoints.newest({"a": jnp.zeros(3)}, warn=said.append)[0] == 1
        assert "The checkpoint of step 2" in said[0]
    assert steps_on_bucket(home) == {"1"}
    assert on_bucket(home)[name.replace("checkpoints/", "damaged/")] == b"damage"


def test_a_checkpoint_is_valid_only_once_it_is_complete(home, moved):
    with Workdir(home) as folder:
        begin(folder)
        save(folder, 1)
        (folder.files / "metrics.jsonl").write_text("")
        (folder.files / "checkpoints" / "2.orbax-checkpoint-tmp").mkdir()
        (folder.files / "checkpoints" / "2.orbax-checkpoint-tmp" / "half").write_text("")
        (folder.files / ".results.json.1.part").write_text("")
        folder.send()
        marker = "checkpoints/1/_CHECKPOINT_METADATA"
        names = [name for _, name in moved]
        first = min(number for number, name in enumerate(names) if name.startswith("checkpoints/"))
        assert {"config.json", "metrics.jsonl"} <= set(names[:first])
        assert names[-1] == marker
        assert not [name for name in names if "tmp" in name or "part" in name]
        moved.clear()
        # The same step again: while its files are mixed it is not valid.
        (folder.files / marker).write_text("{}")
        (folder.files / "checkpoints" / "1" / "other").write_text("")
        folder.send()
        assert moved == [("removed", marker), ("sent", "checkpoints/1/other"), ("sent", marker)]
        moved.clear()
        shutil.rmtree(folder.files / "checkpoints")
        folder.send()
        assert moved[0] == ("removed", marker)
        assert {kind for kind, _ in moved} == {"removed"}
    assert steps_on_bucket(home) == set()


def test_half_a_checkpoint_is_not_fetched_and_is_removed(home, bucket):
    with Workdir(home) as folder:
        begin(folder)
        save(folder, 1)
    bucket.blob("runs/one/checkpoints/2/state/d/half").upload_from_string(b"half")
    assert fetch_run(home).joinpath("checkpoints").is_dir()
    with Workdir(home) as folder:
        folder.fetch()
        assert [step.name for step in (folder.files / "checkpoints").iterdir()] == ["1"]
        assert steps_on_bucket(home) == {"1", "2"}
        folder.send()
        assert steps_on_bucket(home) == {"1"}


def test_leftovers_of_a_killed_run_are_not_sent(home):
    with Workdir(home) as folder:
        begin(folder)
    folder = Workdir(home)
    folder.files.mkdir(parents=True)
    (folder.files / "results.json").write_text("{}")
    with Workdir(home) as folder:
        folder.send()
        folder.fetch()
        folder.send()
    assert set(on_bucket(home)) == {"config.json"}


def test_only_what_has_changed_is_sent(home, moved):
    with Workdir(home) as folder:
        begin(folder)
        folder.send()
        folder.send()
    assert moved == [("sent", "config.json")]


def test_a_folder_that_is_not_a_run_is_left_alone(bucket, monkeypatch):
    bucket.blob("frames/a.png").upload_from_string(b"a")
    monkeypatch.setattr(storage, "mirror", pytest.fail)
    home = f"gs://{bucket.name}"
    with (
        pytest.raises(
            InputError, match=rf"{home} is not empty and not a run folder: config\.json not found\. Choose another"
        ),
        Workdir(f"{home}/") as folder,
    ):
        begin(folder)
    assert set(on_bucket(home)) == {"frames/a.png"}


def test_if_the_last_upload_fails_all_files_stay_here(home, bucket, monkeypatch):
    def fail(*args):
        raise InputError("The bucket is gone.")

    folder = Workdir(home)
    with folder:
        begin(folder)
        monkeypatch.setattr(storage, "send", fail)
        with pytest.raises(InputError, match=rf"gone\. Files not uploaded are in {folder.files}\."):
            folder.__exit__(None, None, None)
        assert (folder.files / "config.json").is_file()
        monkeypatch.undo()
    # The error that ended the run is not hidden by it.
    folder = Workdir(home)
    folder.fetch()
    (folder.files / "results.json").write_text("{}")
    monkeypatch.setattr(storage, "send", fail)
    with pytest.raises(ZeroDivisionError), folder:
        1 // 0  # noqa: B018
    assert (folder.files / "results.json").is_file()


def test_a_second_ctrl_c_does_not_wait_for_the_bucket(home, moved):
    def insist() -> None:
        with Workdir(home) as folder:
            begin(folder)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        insist()
    assert moved == []


def test_a_run_is_fetched_with_only_the_checkpoint_asked_for(home):
    with Workdir(home) as folder:
        begin(folder)
        save(folder, 1, 2, 3)

    def there(path):
        run = path if path.name == "one" else path.parents[1]
        return {file.relative_to(run).parts[1] for file in run.glob("checkpoints/*")}, (run / "config.json").is_file()

    assert there(fetch_run(f"{home}/")) == ({"3"}, True)
    named = fetch_run(f"{home}/checkpoints/2")
    assert named.parts[-2:] == ("checkpoints", "2")
    assert there(named) == ({"2"}, True)
    assert there(fetch_run(home, checkpoint=False)) == (set(), True)
    with pytest.raises(InputError, match=rf"{home}/none is empty or does not exist\. Pass the folder of a run"):
        fetch_run(f"{home}/none")
