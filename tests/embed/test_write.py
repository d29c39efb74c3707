"""The command writes what `load_encoder` gives for the same frames, in their order, and is never half done."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from awcl_jax.config import build
from awcl_jax.config.fields import to_dict
from awcl_jax.data.square import resize_frame
from awcl_jax.embed import load, write
from awcl_jax.embed.command import embed_frames, load_encoder, main
from awcl_jax.export.command import export_encoder
from awcl_jax.runtime.errors import InputError
from awcl_jax.train import initial_state as first_state
from awcl_jax.train.checkpoint import Checkpoints
from awcl_jax.train.run_folder import open_run
from configs import fine
from tests.helpers.frames import frame_record, speckle

ROOT = Path(__file__).parents[2]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder of a run with two checkpoints that differ."""
    folder = tmp_path_factory.mktemp("run") / "fine"
    config = fine.get_config("tiny")
    config.model.width_factor = 0.0625
    open_run(folder, config=to_dict(config), fingerprint="f00d")
    model, (_, optimiser) = build.make_model(config), build.make_optimiser(config)
    with Checkpoints(folder) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, jax.device_put(first_state.initial_state(model, optimiser, seed=step)))
    return folder


@pytest.fixture(autouse=True)
def opened_once(monkeypatch):
    """An encoder is restored and compiled once for all tests."""
    monkeypatch.setattr(load, "open_encoder", OPEN)


OPEN = functools.cache(load.open_encoder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of 13 pictures in three scans, and a table that names them in another order."""
    folder = tmp_path_factory.mktemp("pictures")
    names = [f"s{i % 3}/{i:02}.png" for i in range(13)]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(speckle(name)).save(folder / name)
    rows = [f"{name},{name[:2]},{'brain' if i % 2 else ''}" for i, name in enumerate(names)]
    (folder / "scans.csv").write_text("\n".join(["path,scan_id,anatomy", *rows]) + "\n")
    return folder


def expected(run, names):
    return load_encoder(run)(np.stack([speckle(name) for name in names]))


def features_in(path):
    return np.stack(parquet.read_table(path)["features"].to_numpy(zero_copy_only=False))


@pytest.mark.parametrize(
    ("batch_size", "devices"),
    [
        pytest.param(1, 1, marks=pytest.mark.slow),
        pytest.param(13, 1, marks=pytest.mark.slow),
        (5, 2),
        pytest.param(1, 8, marks=pytest.mark.slow),
        (8, 8),
        pytest.param(64, 8, marks=pytest.mark.slow),
    ],
)
def test_features_equal_load_encoder_for_any_batch_and_devices(
    batch_size, devices, run, pictures, tmp_path, monkeypatch
):
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:devices])
    done = embed_frames(run, pictures, tmp_path / "f.parquet", batch_size=batch_size)
    assert (done.frames, done.faults) == (13, {})
    table = parquet.read_table(tmp_path / "f.parquet")
    names = sorted(f"s{i % 3}/{i:02}.png" for i in range(13))
    assert table["id"].to_pylist() == names
    features = features_in(tmp_path / "f.parquet")
    assert features.dtype == np.float32
    assert features.std(axis=0).max() > 0.01  # far more than they may differ
    np.testing.assert_allclose(features, expected(run, names), **CLOSE)
    assert [f.name for f in tmp_path.iterdir()] == ["f.parquet"]


@pytest.mark.slow
def test_a_checkpoint_and_exports_are_encoders_too(run, pictures, tmp_path):
    names = sorted(f"s{i % 3}/{i:02}.png" for i in range(13))
    for formats in (["safetensors"], ["jax"]):
        folder = tmp_path / formats[0]
        export_encoder(run / "checkpoints" / "10", folder, formats=formats)
        np.testing.assert_allclose(
            load_encoder(folder)(np.stack([speckle(n) for n in names])),
            expected(run / "checkpoints" / "10", names),
            **CLOSE,
        )
        embed_frames(folder, pictures, tmp_path / f"{formats[0]}.parquet", batch_size=4)
        found = features_in(tmp_path / f"{formats[0]}.parquet")
        np.testing.assert_allclose(found, expected(run / "checkpoints" / "10", names), **CLOSE)
        assert not np.allclose(found, expected(run, names), rtol=0.01, atol=0.01)


def test_an_export_that_has_no_encoder_for_jax_is_bad_input(run, tmp_path):
    export_encoder(run, tmp_path / "e", formats=["safetensors"])
    (tmp_path / "e" / "encoder.safetensors").unlink()
    with pytest.raises(InputError, match=r"neither encoder\.safetensors nor encoder\.jax"):
        load_encoder(tmp_path / "e")
    (tmp_path / "e" / "encoder.jax").write_bytes(b"no function")
    with pytest.raises(InputError, match="damaged"):
        load_encoder(tmp_path / "e")
    (tmp_path / "e" / "preprocessing.json").write_text('{"encoder": {}}')
    with pytest.raises(InputError, match="Export again"):
        load_encoder(tmp_path / "e")


def test_a_dataset_and_its_split(run, prepare_frames, tmp_path):
    path = prepare_frames(
        train=[frame_record(name, "p") for name in "abc"], test=[frame_record(name, "q") for name in "de"]
    )
    embed_frames(run, path, tmp_path / "all.parquet", batch_size=2)
    embed_frames(run, path, tmp_path / "test.parquet", split="test")
    table = parquet.read_table(tmp_path / "all.parquet")
    assert table["id"].to_pylist() == list("abcde")
    assert table["split"].to_pylist() == ["train"] * 3 + ["test"] * 2
    np.testing.assert_allclose(features_in(tmp_path / "all.parquet"), expected(run, "abcde"), **CLOSE)
    np.testing.assert_allclose(features_in(tmp_path / "test.parquet"), expected(run, "de"), **CLOSE)


def test_npz_and_parquet_say_the_same(run, pictures, tmp_path):
    source = pictures / "scans.csv"
    for end in ("parquet", "npz"):
        embed_frames(run, source, tmp_path / f"f.{end}", batch_size=4, neighbours=3)
    table = parquet.read_table(tmp_path / "f.parquet")
    with np.load(tmp_path / "f.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {*table.column_names, "awcl_jax"}
        for name in table.column_names:
            cells = [["" if c is None else c] if not isinstance(c, list) else c for c in table[name].to_pylist()]
            assert arrays[name].reshape(13, -1).tolist() == cells, name
        made_by = json.loads(str(arrays["awcl_jax"]))
    assert made_by == json.loads(table.schema.metadata[b"awcl_jax"])
    assert made_by["encoder"] == str(run / "checkpoints" / "20")
    assert made_by["source"] == str(source)


def test_neighbours_as_a_loop_finds_them(run, pictures, tmp_path):
    embed_frames(run, pictures / "scans.csv", tmp_path / "f.parquet", neighbours=4)
    rows = parquet.read_table(tmp_path / "f.parquet").to_pylist()
    units = [np.array(row["features"]) / np.linalg.norm(row["features"]) for row in rows]
    for i, row in enumerate(rows):
        cosines = {rows[j]["id"]: units[i] @ units[j] for j in range(13) if j != i}
        nearest = sorted(cosines.values(), reverse=True)[:4]
        np.testing.assert_allclose(row["neighbour_cosines"], nearest, atol=1e-5)
        np.testing.assert_allclose([cosines[name] for name in row["neighbour_ids"]], nearest, atol=1e-5)
        assert row["neighbour_same_scan"] == [name[:2] == row["scan_id"] for name in row["neighbour_ids"]]
    assert any(same for row in rows for same in row["neighbour_same_scan"])


def test_without_a_known_scan_nothing_is_said_of_the_same_scan(run, pictures, tmp_path):
    embed_frames(run, pictures, tmp_path / "f.parquet", neighbours=2)
    assert "neighbour_same_scan" not in parquet.read_table(tmp_path / "f.parquet").column_names
    rows = [f"{pictures}/{name}" for name in ("s0/00.png,x", "s1/01.png,x", "s2/02.png,")]
    (tmp_path / "some.csv").write_text("\n".join(["path,scan_id", *rows]))
    embed_frames(run, tmp_path / "some.csv", tmp_path / "g.parquet", neighbours=2)
    for row in parquet.read_table(tmp_path / "g.parquet").to_pylist():
        for name, same in zip(row["neighbour_ids"], row["neighbour_same_scan"], strict=True):
            assert same is (True if row["scan_id"] and not name.endswith("02.png") else None)


def test_picture_shows_each_query_with_frames_of_other_scans(run, pictures, tmp_path, monkeypatch):
    given = {}
    draw = write.drawing.montage_neighbours

    def remember(queries, neighbours, captions, neighbour_captions, out, *, whence):
        given.update(queries=queries, neighbours=neighbours, captions=captions, theirs=neighbour_captions)
        assert whence == "from other scans"
        draw(queries, neighbours, captions, neighbour_captions, out, whence=whence)

    monkeypatch.setattr(write.drawing, "montage_neighbours", remember)
    # The first cannot be read, so that the rows of the file are not those of the source.
    table = (pictures / "scans.csv").read_text().replace("s0/00.png", "none.png").replace("\ns", f"\n{pictures}/s")
    (tmp_path / "scans.csv").write_text(table)
    picture = tmp_path / "alike.png"
    embed_frames(run, tmp_path / "scans.csv", tmp_path / "f.parquet", neighbours=3, picture=picture)
    assert Image.open(picture).size[0] > 300
    assert [caption[:2] for caption in given["captions"]] == ["s1", "s2", "s0"]  # as they come up
    size = given["queries"].shape[1]
    scan_of = {resize_frame(speckle(f"s{i % 3}/{i:02}.png"), size).tobytes(): i % 3 for i in range(13)}
    for scan, query, neighbours, theirs in zip(
        (1, 2, 0), given["queries"], given["neighbours"], given["theirs"], strict=True
    ):
        assert scan_of[query.tobytes()] == scan
        assert len(neighbours) == len(theirs) == 3
        for image, text in zip(neighbours, theirs, strict=True):
            of = scan_of[image.tobytes()]
            assert of != scan
            assert re.match(rf"-?\d\.\d{{3}} s{of}", text)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["alike.png", "f.parquet", "scans.csv"]


@pytest.fixture
def some_bad(tmp_path):
    """A folder of four pictures, two of which are broken."""
    folder = tmp_path / "bad"
    folder.mkdir()
    for name in "abcd":
        Image.fromarray(speckle(name)).save(folder / f"{name}.png")
    (folder / "a.png").write_text("no picture")
    (folder / "c.png").write_bytes((folder / "c.png").read_bytes()[:-100])
    return folder


@pytest.mark.parametrize(("batch_size", "options"), [(1, []), (64, []), (2, ["--skip_bad"])])
def test_broken_pictures_are_told_and_the_rest_goes_on(batch_size, options, run, some_bad, tmp_path, capsys):
    out = tmp_path / "f.parquet"
    arguments = [str(run), str(some_bad), f"--out={out}", f"--batch_size={batch_size}", *options]
    if options:
        main(arguments)
    else:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 1
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert re.fullmatch(r"left out: .*/a\.png cannot be read: it is not a PNG.*", lines[0])
    assert re.fullmatch(r"left out: .*/c\.png cannot be read: it is broken.*", lines[1])
    assert ("2 of 4 frames could not be read" in said.out) == bool(options)
    assert len(lines) == (2 if options else 3)
    if not options:
        assert lines[2].startswith("error: 2 of 4 frames could not be read and are not in")
    assert parquet.read_table(out)["id"].to_pylist() == ["b.png", "d.png"]
    np.testing.assert_allclose(features_in(out), expected(run, "bd"), **CLOSE)


def test_where_nothing_can_be_read_no_file_is_made(run, some_bad, tmp_path, capsys):
    for name in "bd":
        (some_bad / f"{name}.png").write_bytes(b"")
    for end in ("parquet", "npz"):
        with pytest.raises(SystemExit) as left:
            main([str(run), str(some_bad), f"--out={tmp_path / 'f'}.{end}", "--skip_bad"])
        assert left.value.code == 1
        assert "error: None of the 4 frame(s) could be read" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [some_bad]


def test_one_frame_has_no_neighbours(run, pictures, tmp_path):
    with pytest.raises(InputError, match="at least two readable frames"):
        embed_frames(run, pictures / "s0" / "00.png", tmp_path / "f.npz", neighbours=3)
    embed_frames(run, pictures / "s0" / "00.png", tmp_path / "f.npz")
    with np.load(tmp_path / "f.npz") as arrays:
        assert arrays["id"].tolist() == ["00.png"]
        np.testing.assert_allclose(arrays["features"], expected(run, ["s0/00.png"]), **CLOSE)


def test_a_diverged_encoder_leaves_no_file(run, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "encode_batches", lambda *_, **__: iter([np.full((13, 4), np.nan, np.float32)]))
    with pytest.raises(InputError, match=r"Features of .*checkpoints/20 are not finite"):
        embed_frames(run, pictures, tmp_path / "f.parquet")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["RUN", "PICTURES", "--out=OUT/f.txt"], "--out must end in .parquet, .npz or .csv"),
        (["RUN", "PICTURES", "--out=PICTURES/scans.csv"], "already exists"),
        (["RUN", "PICTURES", "--out=OUT/there.npz"], "already exists"),
        (["RUN", "none", "--out=OUT/f.npz"], "The source none does not exist"),
        (["none", "PICTURES", "--out=OUT/f.npz"], "none is not a run folder"),
        (["RUN/checkpoints/30", "PICTURES", "--out=OUT/f.npz"], "no checkpoint of step 30"),
        (["RUN", "PICTURES", "--out=OUT/f.npz", "--split=test"], "--split needs a prepared dataset"),
        (["RUN", "PICTURES", "--out=OUT/f.npz", "--batch_size=0"], "from 1 to 1,048,576 frames; got 0"),
        (["RUN", "PICTURES", "--out=OUT/f.npz", "--neighbours=-1"], "at least 0; got -1"),
        (["RUN", "PICTURES", "--out=OUT/f.npz", "--picture=OUT/p.png"], "--neighbours=K"),
        (["RUN", "PICTURES", "--out=OUT/f.npz", "--neighbours=1", "--picture=OUT/p.jpg"], "--picture must end in .png"),
        (["RUN", "RUN", "--out=OUT/f.npz"], "is an encoder, not frames"),
        (
            ["RUN", "PICTURES", "--out=OUT/f.npz", "--region=sector"],
            "--region of pictures must be whole, frame or X0,Y0,X1,Y1",
        ),
        (["RUN", "PICTURES", "--out=OUT/f.npz", "--key_file=OUT/none"], "The key file"),
        (["RUN", "OUT/taken.csv", "--out=OUT/f.npz"], "has a column 'features'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, said, run, pictures, tmp_path, capsys):
    (tmp_path / "there.npz").write_text("before")
    (tmp_path / "taken.csv").write_text("path,features\na.png,1\n")
    before = sorted(tmp_path.iterdir())
    places = {"RUN": str(run), "OUT": str(tmp_path), "PICTURES": str(pictures)}
    with pytest.raises(SystemExit) as left:
        main([re.sub("RUN|OUT|PICTURES", lambda name: places[name[0]], argument) for argument in arguments])
    assert left.value.code == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert said in err
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "there.npz").read_text() == "before"


def test_help_is_whole_and_does_not_wait_for_jax():
    code = (
        "import sys\n"
        "from awcl_jax.embed.command import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as left: assert left.code == 0\n"
        "assert not {'jax', 'pyarrow', 'sklearn', 'tensorflow_datasets'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for word in ("ENCODER", "SOURCE", "--out", "--split", "--batch_size", "--neighbours", "--picture", "--skip_bad"):
        assert word in done.stdout


@pytest.mark.slow
def test_files_and_the_dataset_made_of_them_give_the_same(run, real_data, real_dataset, tmp_path):
    embed_frames(run, real_dataset, tmp_path / "dataset.parquet")
    embed_frames(run, real_data / "FETAL_PLANES_DB" / "Images", tmp_path / "files.parquet", batch_size=100)
    files = parquet.read_table(tmp_path / "files.parquet").to_pylist()
    of_file = {row["id"].removesuffix(".png"): row["features"] for row in files}
    dataset = parquet.read_table(tmp_path / "dataset.parquet").to_pylist()
    assert len(of_file) == len(dataset)
    expected = np.array([of_file[row["id"]] for row in dataset])
    np.testing.assert_allclose([row["features"] for row in dataset], expected, **CLOSE)
