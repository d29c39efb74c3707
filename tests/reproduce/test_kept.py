"""What is kept of a study's finished runs, and a study that continues from it."""

import json
import shutil

import pytest

from awcl_jax.reproduce import command as reproduce
from awcl_jax.train import checkpoint
from tests.helpers.study import fake_runs

STUDY = ["--methods=random,fine", "--tasks=planes"]


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A study's finished runs without their checkpoints; the study itself is gone."""
    fake_runs(monkeypatch)
    reproduce.main([f"--out={tmp_path / 'first'}", f"--keep={tmp_path / 'kept'}", *STUDY])
    shutil.rmtree(tmp_path / "first")
    return tmp_path / "kept"


def files_of(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_what_is_kept_has_no_checkpoints_and_no_pictures(kept):
    assert files_of(kept) == [
        f"{run}/{name}"
        for run in ("planes/fine-0", "planes/random-0", "pretrain/fine-0")
        for name in ("config.json", "results.json", "test_frames.csv")
    ]


def test_what_is_kept_names_no_folder_of_the_machine(kept, tmp_path):
    for name in files_of(kept):
        assert str(tmp_path) not in (kept / name).read_text()


def test_runs_of_an_earlier_command_are_kept_too(tmp_path, monkeypatch):
    fake_runs(monkeypatch)
    reproduce.main([f"--out={tmp_path / 'study'}", *STUDY])
    assert fake_runs(monkeypatch) == []
    reproduce.main([f"--out={tmp_path / 'study'}", f"--keep={tmp_path / 'kept'}", *STUDY])
    assert len(files_of(tmp_path / "kept")) == 9


def test_tables_need_no_checkpoint(kept, tmp_path, monkeypatch):
    taken = fake_runs(monkeypatch)
    reproduce.main([f"--out={tmp_path / 'second'}", f"--resume={kept}", *STUDY])
    assert taken == []
    assert "| AWCL, fine | 0.500" in (tmp_path / "second/tables.md").read_text()


def test_an_encoder_that_a_further_task_needs_is_trained_again(kept, tmp_path, monkeypatch, capsys):
    taken = fake_runs(monkeypatch)
    more = [f"--out={tmp_path / 'second'}", f"--resume={kept}", "--methods=random,fine", "--tasks=planes,heart"]
    reproduce.main(more)
    assert taken == ["heart/random-0", "pretrain/fine-0", "heart/fine-0"]
    assert "(pretrain/fine-0 again, because its encoder is needed)" in capsys.readouterr().out
    taken.clear()
    reproduce.main(more)
    assert taken == []


def test_an_encoder_whose_training_was_stopped_does_not_count(kept, tmp_path, monkeypatch):
    more = [f"--out={tmp_path / 'second'}", f"--resume={kept}", "--methods=fine", "--tasks=heart"]
    fake_runs(monkeypatch, dies_at="pretrain/fine-0")
    with pytest.raises(SystemExit):
        reproduce.main(more)
    assert (tmp_path / "second/pretrain/fine-0" / checkpoint.FOLDER).is_dir()
    taken = fake_runs(monkeypatch)
    reproduce.main(more[:1] + more[2:])
    assert taken == ["pretrain/fine-0", "heart/fine-0"]


def set_field(file, group, field, value):
    content = json.loads(file.read_text())
    content["config"][group][field] = value
    file.write_text(json.dumps(content))


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        reproduce.main(list(arguments))
    assert left.value.code == 1
    *_, said = capsys.readouterr().err.splitlines()  # after the progress bar, if runs began
    return said


def test_a_run_with_other_settings_is_refused_before_any_is_taken(kept, tmp_path, capsys):
    set_field(kept / "planes/fine-0/config.json", "train", "steps", 7)
    said = refused(capsys, f"--out={tmp_path / 'second'}", f"--resume={kept}", *STUDY)
    assert "planes/fine-0 was made with other settings than this study's: train.steps (7 -> 100)" in said
    assert not (tmp_path / "second").exists()


def test_paths_of_another_machine_are_no_other_settings(kept, tmp_path, monkeypatch):
    set_field(kept / "pretrain/fine-0/config.json", "data", "path", "/elsewhere/phantom")
    set_field(kept / "planes/fine-0/config.json", "encoder", "init", "/elsewhere/study/pretrain/fine-0")
    taken = fake_runs(monkeypatch)
    reproduce.main([f"--out={tmp_path / 'second'}", f"--resume={kept}", *STUDY])
    assert taken == []
    own = json.loads((tmp_path / "second/planes/fine-0/config.json").read_text())
    assert own["config"]["encoder"]["init"] == str(tmp_path / "second/pretrain/fine-0")


def test_scores_of_other_data_are_not_mixed_in(kept, tmp_path, monkeypatch, capsys):
    fake_runs(monkeypatch, data="f1")
    more = [f"--out={tmp_path / 'second'}", f"--resume={kept}", "--methods=random,fine,simclr", "--tasks=planes"]
    said = refused(capsys, *more)
    assert "pretrain/simclr-0 saw other data than" in said or "pretrain/fine-0 saw other data than" in said
    assert "(fingerprints f0 and f1)" in said or "(fingerprints f1 and f0)" in said


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    said = refused(capsys, f"--out={tmp_path / 'second'}", f"--resume={tmp_path / 'nothing'}", *STUDY)
    assert f"{tmp_path / 'nothing'} has no finished run of this study" in said


def test_a_link_in_what_is_resumed_is_refused(kept, tmp_path, capsys):
    (kept / "planes/fine-0/test_frames.csv").unlink()
    (kept / "planes/fine-0/test_frames.csv").symlink_to("/etc/hostname")
    said = refused(capsys, f"--out={tmp_path / 'second'}", f"--resume={kept}", *STUDY)
    assert "test_frames.csv" in said
    assert not (tmp_path / "second").exists()
