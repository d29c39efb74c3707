"""The folder for an embedding viewer: its rows are those of the file of features, and its pictures those frames."""

import re

import cv2
import jax
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from awcl_jax.config import build
from awcl_jax.config.fields import to_dict
from awcl_jax.embed import projector as module
from awcl_jax.embed.command import embed_frames, main
from awcl_jax.embed.projector import Projector
from awcl_jax.embed.table import list_column, matrix
from awcl_jax.runtime.errors import InputError
from awcl_jax.train import initial_state as first_state
from awcl_jax.train.checkpoint import Checkpoints
from awcl_jax.train.run_folder import open_run
from configs import fine


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder of a run with one checkpoint, of frames of 48 pixels."""
    folder = tmp_path_factory.mktemp("run") / "fine"
    config = fine.get_config("tiny")
    config.model.width_factor = 0.0625
    open_run(folder, config=to_dict(config), fingerprint="f00d")
    with Checkpoints(folder) as checkpoints:
        state = first_state.initial_state(build.make_model(config), build.make_optimiser(config)[1], seed=0)
        checkpoints.save(10, jax.device_put(state))
    return folder


def written(frames: int, folder, *, labels=("id", "anatomy"), batch: int = 4):
    """Write frames of which frame i is grey i, with features (i, -i), in batches; return their labels."""
    projector = Projector()
    columns = {
        "id": [f"f{i}" for i in range(frames)],
        "anatomy": [None if i == 1 else f"a\t{i}\nb" for i in range(frames)],
    }
    features = np.stack([np.arange(frames), -np.arange(frames)], 1).astype(np.float32)
    table = pa.table({name: columns[name] for name in labels}).append_column("features", list_column(features))
    for start in range(0, frames, batch):
        rows = range(start, min(start + batch, frames))
        projector.see(np.stack([np.full((48, 48), i % 256, np.uint8) for i in rows]))
    assert sum(part.num_rows for part in projector.passing([table[:3], table[3:]])) == frames
    return projector.write(folder)


def cells(folder, count):
    """The pictures of a sprite, by the size that the configuration names."""
    config = (folder / "projector_config.pbtxt").read_text()
    edges = {int(edge) for edge in re.findall(r"single_image_dim: (\d+)", config)}
    (edge,) = edges
    sprite = cv2.imread(str(folder / "sprite.png"), cv2.IMREAD_GRAYSCALE)
    across = sprite.shape[1] // edge
    assert sprite.shape == (across * edge, across * edge)
    return [sprite[i // across * edge :, i % across * edge :][:edge, :edge] for i in range(count)]


def test_rows_labels_and_pictures_belong_together(tmp_path):
    assert written(7, tmp_path / "out") == 7
    vectors = np.loadtxt(tmp_path / "out" / "vectors.tsv", delimiter="\t")
    np.testing.assert_array_equal(vectors, [[i, -i] for i in range(7)])
    labels = (tmp_path / "out" / "metadata.tsv").read_text().splitlines()
    assert labels == ["id\tanatomy", "f0\ta 0 b", "f1\t", *(f"f{i}\ta {i} b" for i in range(2, 7))]
    pictures = cells(tmp_path / "out", 9)
    assert [picture.mean() for picture in pictures] == [*range(7), 0, 0]
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_single_column_has_no_line_of_names(tmp_path):
    written(3, tmp_path / "out", labels=("id",))
    assert (tmp_path / "out" / "metadata.tsv").read_text() == "f0\nf1\nf2\n"


def test_of_many_frames_some_are_written_evenly_spread(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_FRAMES", 5)
    monkeypatch.setattr(module, "_LARGEST_SPRITE", 60)
    assert written(41, tmp_path / "out") == 5
    vectors = np.loadtxt(tmp_path / "out" / "vectors.tsv", delimiter="\t")
    assert vectors[:, 0].tolist() == [0, 10, 20, 30, 40]
    pictures = cells(tmp_path / "out", 5)
    assert pictures[0].shape == (20, 20)
    assert [picture.mean() for picture in pictures] == [0, 10, 20, 30, 40]


def test_the_command_writes_what_is_in_the_file(run, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        cv2.imwrite(str(tmp_path / "in" / f"{i}.png"), rng.integers(0, 256, (48, 48), np.uint8))
    (tmp_path / "in" / "3.png").write_bytes(b"no picture")  # left out of all files
    arguments = [str(run), str(tmp_path / "in"), f"--out={tmp_path / 'f.parquet'}", "--batch_size=2", "--skip_bad"]
    main([*arguments, f"--projector={tmp_path / 'view'}", "--neighbours=1"])
    assert f"tensorboard --logdir {tmp_path / 'view'}" in capsys.readouterr().out
    table = parquet.read_table(tmp_path / "f.parquet")
    vectors = np.loadtxt(tmp_path / "view" / "vectors.tsv", delimiter="\t")
    np.testing.assert_allclose(vectors, matrix(table, "features"), rtol=1e-6)
    assert (tmp_path / "view" / "metadata.tsv").read_text().splitlines() == table["id"].to_pylist()
    for name, picture in zip(table["id"].to_pylist(), cells(tmp_path / "view", 4), strict=True):
        frame = cv2.imread(str(tmp_path / "in" / name), cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(picture, cv2.resize(frame, (64, 64), interpolation=cv2.INTER_LINEAR))
    with pytest.raises(InputError, match=r"view already exists. Choose another --projector"):
        embed_frames(run, tmp_path / "in", tmp_path / "g.parquet", projector=tmp_path / "view")


def test_tensorboard_reads_it(tmp_path):
    pytest.importorskip("tensorboard")
    from google.protobuf import text_format
    from tensorboard.plugins.projector import projector_plugin
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    written(7, tmp_path / "out")
    (embedding,) = text_format.Parse(
        (tmp_path / "out" / "projector_config.pbtxt").read_text(), ProjectorConfig()
    ).embeddings
    tensor = projector_plugin._read_tensor_tsv_file(str(tmp_path / "out" / embedding.tensor_path))
    np.testing.assert_array_equal(tensor, [[i, -i] for i in range(7)])
    assert (tmp_path / "out" / embedding.metadata_path).is_file()
    assert (tmp_path / "out" / embedding.sprite.image_path).is_file()


def test_labels_hold_no_formulas(tmp_path):
    ids = ["=1+1", "@x", "-3.5", "+y", "plain"]
    projector = Projector()
    projector.see(np.zeros((5, 48, 48), np.uint8))
    table = pa.table({"id": ids, "=sum": ids}).append_column("features", list_column(np.eye(5, dtype=np.float32)))
    list(projector.passing([table]))
    projector.write(tmp_path / "p")
    lines = [line.split("\t") for line in (tmp_path / "p" / "metadata.tsv").read_text().splitlines()]
    assert lines == [["id", "'=sum"], *([cell, cell] for cell in ("'=1+1", "'@x", "-3.5", "'+y", "plain"))]


def test_what_a_killed_process_left_is_deleted(tmp_path, monkeypatch):
    def die(*args, **kwargs):
        raise KeyboardInterrupt

    leftover = tmp_path / f".p.{'0' * 32}.part"
    leftover.mkdir()
    (leftover / "vectors.tsv").write_text("1\n")
    written(3, tmp_path / "p")
    assert [entry.name for entry in tmp_path.iterdir()] == ["p"]
    monkeypatch.setattr(module.np, "savetxt", die)
    with pytest.raises(KeyboardInterrupt):
        written(3, tmp_path / "q")
    assert [entry.name for entry in tmp_path.iterdir()] == ["p"]


@pytest.mark.parametrize(
    ("projector", "rule"),
    [
        ("f.csv", "--projector and --out must have different names"),
        ("p.png", "--projector and --picture must have different names"),
        ("file/p", "must be a folder, but .*file is not one"),
        ("link", "already exists"),
    ],
)
def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_read(projector, rule, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    options = {"projector": tmp_path / projector, "picture": tmp_path / "p.png", "neighbours": 1}
    with pytest.raises(InputError, match=rule):
        embed_frames("no encoder", "no source", tmp_path / "f.csv", **options)
    assert {entry.name for entry in tmp_path.iterdir()} == {"file", "link"}
