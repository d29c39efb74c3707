"""Files are read as an ingest reads them: the same frames, pixels and names; and the same pixels for every user."""

import json
import os
import re
import shutil

import cv2
import jax
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from awcl_jax.config import build
from awcl_jax.config.fields import to_dict
from awcl_jax.data.about import About, as_json
from awcl_jax.data.reader import FrameReader
from awcl_jax.data.scans import ScanIndex
from awcl_jax.data.square import LETTERBOX, SQUASH, Square
from awcl_jax.embed import load
from awcl_jax.embed.command import embed_frames, load_encoder, main
from awcl_jax.embed.exported import read_export
from awcl_jax.embed.files import FileSource, cut_as_trained, open_files
from awcl_jax.embed.options import FileOptions
from awcl_jax.export.command import export_encoder
from awcl_jax.ingest import command as ingest
from awcl_jax.runtime.errors import InputError
from awcl_jax.train import initial_state as first_state
from awcl_jax.train.checkpoint import Checkpoints
from awcl_jax.train.run_folder import open_run
from configs import fine
from tests.helpers.own_files import draw_files, moving_disc, write_dicom, write_video

SQUARE = Square(32, LETTERBOX)


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("AWCL_ID_KEY", raising=False)


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    file = tmp_path_factory.mktemp("key") / "key"
    file.write_text("a key that is long enough")
    file.chmod(0o600)
    return file


@pytest.fixture(scope="module")
def exams(tmp_path_factory):
    """DICOM of four patients: clips of a wide screen whose region is its middle."""
    folder = tmp_path_factory.mktemp("exams")
    for number in range(4):
        frames = np.full((5, 60, 120), 9, np.uint8)
        frames[:, 6:54, 30:94] = moving_disc(5, seed=number)
        write_dicom(
            folder / f"mary_{number}.dcm", frames, patient=f"p{number}", study=f"1.{number}", region=(30, 6, 93, 53)
        )
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for number in range(4):
        (folder / f"p{number}").mkdir()
        write_video(folder / f"p{number}" / "a.mp4", moving_disc(9, seed=number))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on letterboxed frames."""
    folder = tmp_path_factory.mktemp("run") / "fine"
    config = fine.get_config("tiny")
    config.model.width_factor = 0.0625
    open_run(folder, config=to_dict(config), fingerprint="f00d", aspect=LETTERBOX)
    model, (_, optimiser) = build.make_model(config), build.make_optimiser(config)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(20, jax.device_put(first_state.initial_state(model, optimiser, seed=3)))
    return folder


def prepared(out, command, source, *flags):
    ingest.main([command, f"--source={source}", f"--out={out}", "--workers=1", *flags])
    return ScanIndex.from_dataset(out)


def read_all(source):
    read = [source.read(file, SQUARE) for file in range(len(source))]
    labels = pa.concat_tables([frames.labels for frames in read])
    return labels, np.concatenate([frames.images for frames in read])


def test_files_are_cut_as_the_training_frames_were(run, tmp_path, capsys):
    """Unless the user says how; of a run, and of its export."""
    (tmp_path / "pictures").mkdir()
    whole = np.random.default_rng(0).integers(0, 256, (40, 60), np.uint8)
    cv2.imwrite(str(tmp_path / "pictures" / "a.png"), whole)
    trained = tmp_path / "cut"
    shutil.copytree(run, trained)
    stored = json.loads((trained / "config.json").read_text())
    own = About("lab", "", "own", "a column", confirmed=True, region="4,2,30,22")
    (trained / "config.json").write_text(json.dumps(stored | {"datasets": as_json([own])}))
    export_encoder(trained, tmp_path / "e", formats=["safetensors"])
    features = {}
    for number, (encoder, *flags) in enumerate(
        [(trained,), (tmp_path / "e",), (trained, "--region=4,2,30,22"), (trained, "--region=whole"), (run,)]
    ):
        out = tmp_path / f"{number}.parquet"
        main([str(encoder), str(tmp_path / "pictures"), f"--out={out}", *flags])
        said = "Cut with --region=4,2,30,22, as the encoder's training frames"
        assert (said in capsys.readouterr().err) == (number < 2)
        features[number] = np.asarray(parquet.read_table(out)["features"].to_pylist())
    np.testing.assert_allclose(features[1], features[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(features[2], features[0])
    np.testing.assert_array_equal(features[4], features[3])
    assert np.abs(features[3] - features[0]).max() > 1e-3


def test_a_cut_that_a_kind_of_file_lacks_is_warned_of(tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((40, 60), 9, np.uint8))
    options = FileOptions()
    frames = open_files(tmp_path, split=None, options=options)
    assert cut_as_trained(tmp_path, frames, options=options, region="tag") is frames
    assert "cut with --region=tag, which is none of pictures: set --region" in capsys.readouterr().err
    for region in ("", "whole"):
        assert cut_as_trained(tmp_path, frames, options=options, region=region) is frames
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("command", "region", "shape"),
    [("dicom", None, (48, 64)), ("video", None, (48, 64)), ("video", (8, 4, 48, 44), (40, 40))],
)
def test_frames_and_names_are_those_of_an_ingest(command, region, shape, exams, clips, key, tmp_path):
    source = exams if command == "dicom" else clips
    flags = [f"--key_file={key}", "--every=2"]
    flags += [] if region is None else [f"--region={','.join(map(str, region))}"]
    index = prepared(tmp_path / "out", command, source, *flags)
    reader = FrameReader(index, 32, cache_mb=0)
    assert reader.aspect == LETTERBOX
    np.testing.assert_array_equal(
        reader.read(np.arange(len(index))),
        [SQUARE.of(frame) for frame in (reader._decode("image", f) for f in range(len(index)))],
    )
    assert {reader._decode("image", frame).shape for frame in range(len(index))} == {shape}
    opened = open_files(source, split=None, options=FileOptions(region=region, every=2, key_file=key))
    assert isinstance(opened, FileSource)
    labels, images = read_all(opened)
    rows = {row["id"]: (row, image) for row, image in zip(labels.to_pylist(), images, strict=True)}
    assert rows.keys() == set(index.frame_ids.tolist())
    for frame, frame_id in enumerate(index.frame_ids.tolist()):
        row, image = rows[frame_id]
        np.testing.assert_array_equal(image, reader.read(np.array([frame]))[0])
        assert row["scan_id"] == index.scan_names[index.scans[frame]]
        assert row["patient_id"] == index.patient_names[index.patients[frame]]
    assert "path" not in labels.column_names
    numbers = labels["frame_number"].to_pylist()
    assert set(numbers) == set(range(0, 5 if command == "dicom" else 9, 2))
    row = len(numbers) - 1
    last = len(opened) - 1
    np.testing.assert_array_equal(opened.picture(last, numbers[row], SQUARE), images[row])


def test_without_a_key_clips_are_named_by_their_paths(clips, tmp_path):
    labels, _ = read_all(open_files(clips, split=None, options=FileOptions(every=8)))
    assert labels.column_names == ["id", "scan_id", "machine", "frame_number"]
    assert labels["id"].to_pylist()[:2] == ["p0/a.mp4#0", "p0/a.mp4#8"]
    assert labels["scan_id"].to_pylist()[:2] == ["p0/a.mp4"] * 2
    rows = [f"{clips}/p{number}/a.mp4,7{number},{number % 2}" for number in range(4)]
    (tmp_path / "clips.csv").write_text("\n".join(["path,scan_id,old", *rows]) + "\n")
    labels, _ = read_all(open_files(tmp_path / "clips.csv", split=None, options=FileOptions(every=8)))
    assert labels.column_names == ["id", "path", "scan_id", "old", "machine", "frame_number"]
    assert labels.to_pylist()[-1] == {
        "id": f"{clips}/p3/a.mp4#8", "path": f"{clips}/p3/a.mp4", "scan_id": "73", "old": "1", "machine": None,
        "frame_number": 8,
    }  # fmt: skip


def test_names_that_are_not_utf_8_have_escapes_and_accents_are_composed(clips, key, tmp_path):
    shutil.copytree(clips / "p0", tmp_path / "in" / os.fsdecode(b"K\xe4te"))
    labels, _ = read_all(open_files(tmp_path / "in", split=None, options=FileOptions(every=8)))
    assert labels["id"].to_pylist()[0] == r"K\xe4te/a.mp4#0"
    assert labels["scan_id"].to_pylist()[0] == r"K\xe4te/a.mp4"
    keyed = []
    for name in ("M\u00fcller", "Mu\u0308ller"):
        (tmp_path / "t.csv").write_text(f"path,patient_id\n{clips}/p0/a.mp4,{name}\n")
        labels, _ = read_all(open_files(tmp_path / "t.csv", split=None, options=FileOptions(every=8, key_file=key)))
        keyed.append(labels["patient_id"].to_pylist()[0])
    assert keyed[0] == keyed[1], "as an ingest has it"


def test_a_fault_of_dicom_names_no_path_and_leaves_the_others(exams, key, tmp_path, run, capsys):
    for file in exams.iterdir():
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / file.name).write_bytes(file.read_bytes()[: 2000 if "mary_1" in file.name else None])
    arguments = [str(run), str(tmp_path / "in"), f"--key_file={key}", f"--out={tmp_path / 'f.csv'}", "--every=2"]
    with pytest.raises(SystemExit):
        main(arguments)
    out, err = capsys.readouterr()
    assert "mary" not in out + err
    assert re.search(r"left out: file 2, id [0-9a-f]{20}: it is truncated or damaged", err)
    assert "1 of 4 files could not be read" in err
    assert re.match(rf"{tmp_path / 'f.csv'}  9 frames of 3 file\(s\), \d+ features each  0\.\d\d MB  \d+ s\n", out)
    table = csv.read_csv(tmp_path / "f.csv")
    assert table.num_rows == 9
    assert "mary" not in (tmp_path / "f.csv").read_text()


@pytest.mark.slow
def test_the_dataset_its_files_a_program_and_the_export_see_the_same_pixels(exams, key, tmp_path, run):
    index = prepared(tmp_path / "out", "dicom", exams, f"--key_file={key}", "--every=2")
    export_encoder(run, tmp_path / "export", formats=["jax"])
    config = fine.get_config("tiny")
    square = Square(config.data.size, LETTERBOX)
    assert load.open_encoder(run).square == read_export(tmp_path / "export").square == square
    options = FileOptions(every=2, key_file=key)
    embed_frames(run, index.path, tmp_path / "dataset.parquet")
    embed_frames(run, exams, tmp_path / "files.parquet", options=options, batch_size=5)
    embed_frames(tmp_path / "export", exams, tmp_path / "export.parquet", options=options)
    of = {}
    for name in ("dataset", "files", "export"):
        table = parquet.read_table(tmp_path / f"{name}.parquet")
        of[name] = dict(zip(table["id"].to_pylist(), table["features"].to_pylist(), strict=True))
    reader = FrameReader(index, 8, cache_mb=0)
    stored = [reader._decode("image", frame) for frame in range(len(index))]
    of["program"] = dict(zip(index.frame_ids.tolist(), load_encoder(run)(stored).tolist(), strict=True))
    assert len(of["dataset"]) == 12
    for name in ("files", "export", "program"):
        assert of[name].keys() == of["dataset"].keys()
        for frame_id, features in of["dataset"].items():
            np.testing.assert_allclose(of[name][frame_id], features, rtol=1e-4, atol=1e-5, err_msg=name)
    squashed = [Square(square.size).of(frame) for frame in stored]
    assert not np.allclose(load_encoder(run)(squashed), load_encoder(run)(stored), rtol=1e-2, atol=1e-2)


def test_a_picture_of_neighbours_needs_no_scans(run, tmp_path):
    draw_files(tmp_path / "in", *(f"{number}.png" for number in range(5)))
    picture = tmp_path / "alike.png"
    embed_frames(run, tmp_path / "in", tmp_path / "f.parquet", neighbours=2, picture=picture)
    assert cv2.imread(str(picture)).shape[1] > 300


def test_a_column_of_nanoseconds_is_kept(clips, tmp_path):
    changed = pa.array([1_600_000_000_000_000_001, None], pa.timestamp("ns"))
    paths = [f"{clips}/p{number}/a.mp4" for number in range(2)]
    parquet.write_table(pa.table({"path": paths, "changed": changed}), tmp_path / "clips.parquet")
    labels, _ = read_all(open_files(tmp_path / "clips.parquet", split=None, options=FileOptions(every=8)))
    assert labels["changed"].cast(pa.int64()).to_pylist() == [1_600_000_000_000_000_001] * 2 + [None] * 2
    assert labels["id"].to_pylist() == [f"{path}#{number}" for path in paths for number in (0, 8)]


def test_with_a_key_the_name_of_the_source_is_hidden_too(exams, key, tmp_path, run):
    source = tmp_path / "Mueller_Anna_1980"
    shutil.copytree(exams, source)
    out = tmp_path / "f.parquet"
    main([str(run), str(source), f"--key_file={key}", f"--out={out}", "--every=4"])
    assert b"Mueller" not in out.read_bytes()
    made_of = json.loads(parquet.read_schema(out).metadata[b"awcl_jax"])
    assert re.fullmatch("[0-9a-f]{20}", made_of["source"])


def test_pictures_with_a_region_are_cut(tmp_path, run):
    draw_files(tmp_path, "a.png")
    whole = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_GRAYSCALE)
    _, images = read_all(open_files(tmp_path / "a.png", split=None, options=FileOptions(region=(4, 2, 30, 22))))
    np.testing.assert_array_equal(images[0], SQUARE.of(whole[2:22, 4:30]))


@pytest.mark.parametrize(("kind", "flag"), [("image", None), ("image", (1, 1, 40, 40)), ("dicom", None)])
def test_a_region_in_a_table_is_that_of_an_ingest(kind, flag, exams, key, tmp_path):
    if kind == "image":
        names = [f"{number}.png" for number in range(4)]
        draw_files(tmp_path, *names)
    else:
        names = [str(path) for path in sorted(exams.iterdir())]
    cells = ["4 2 30 22", "", "NaN", "5.0,3.0,29.0,21.0"]
    if kind == "dicom":  # the same size, within the moving part
        cells = ["34 12 60 32", "", "NaN", "35.0,13.0,59.0,31.0"]
    rows = [f'{name},s{n},"{cell}",note {n}' for n, (name, cell) in enumerate(zip(names, cells, strict=True))]
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["path,scan_id,region,note", *rows]) + "\n")
    flags = [f"--key_file={key}", *([] if flag is None else [f"--region={','.join(map(str, flag))}"])]
    command, root = ("manifest", tmp_path) if kind == "image" else ("dicom", exams)
    index = prepared(tmp_path / "out", command, table, *flags, f"--root={root}")
    reader = FrameReader(index, 32, cache_mb=0)
    stored = dict(zip(index.frame_ids.tolist(), reader.read(np.arange(len(index))), strict=True))
    opened = open_files(table, split=None, options=FileOptions(region=flag, key_file=key))
    labels, images = read_all(opened)
    shapes = {reader._decode("image", frame).shape for frame in range(len(index))}
    assert {(20, 26), (18, 24)} < shapes, "rows 1 and 4 are cut to their own region"
    assert dict.fromkeys(labels["id"].to_pylist()).keys() == stored.keys()
    for name, image in zip(labels["id"].to_pylist(), images, strict=True):
        np.testing.assert_array_equal(image, stored[name])
    row = len(images) - 1
    np.testing.assert_array_equal(opened.picture(3, labels["frame_number"].to_pylist()[row], SQUARE), images[row])


def test_a_region_in_a_table_of_plain_pictures(run, tmp_path, capsys):
    draw_files(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "t.csv").write_text("path,region,note\na.png,4 2 30 22,x\nb.png,heart,y\nc.png,,z\n")
    opened = open_files(tmp_path / "t.csv", split=None, options=FileOptions())
    whole = [cv2.imread(str(tmp_path / f"{name}.png"), cv2.IMREAD_GRAYSCALE) for name in "abc"]
    np.testing.assert_array_equal(opened.read(0, SQUARE).images[0], SQUARE.of(whole[0][2:22, 4:30]))
    np.testing.assert_array_equal(opened.read(2, SQUARE).images[0], SQUARE.of(whole[2]))
    main([str(run), str(tmp_path / "t.csv"), f"--out={tmp_path / 'f.parquet'}", "--skip_bad"])
    assert (
        "left out: b.png: a cell of its row is empty or invalid: region must be x0 y0 x1 y1 in pixels, with x0 < x1 "
        "and y0 < y1; got 'heart'."
    ) in capsys.readouterr().err
    written = parquet.read_table(tmp_path / "f.parquet")
    assert written.select(["id", "region", "note"]).to_pylist() == [
        {"id": "a.png", "region": "4 2 30 22", "note": "x"},
        {"id": "c.png", "region": None, "note": "z"},
    ]


def test_a_run_keeps_its_aspect(run):
    config = to_dict(fine.get_config("tiny"))
    config["model"]["width_factor"] = 0.0625
    open_run(run, config=config, fingerprint="f00d", aspect=LETTERBOX)
    with pytest.raises(InputError, match="made square by letterbox, but its dataset now records squash"):
        open_run(run, config=config, fingerprint="f00d")


def test_formats_of_exports(run, tmp_path):
    export_encoder(run, tmp_path / "e", formats=["safetensors"])
    file = tmp_path / "e" / "preprocessing.json"
    described = json.loads(file.read_text())
    assert (described["format"], described["frames"]["aspect"]) == (2, LETTERBOX)
    del described["format"], described["frames"]["aspect"]  # as before
    file.write_text(json.dumps(described))
    assert read_export(tmp_path / "e").square.aspect == SQUASH
    for format_ in (3, "2", None):
        file.write_text(json.dumps(described | {"format": format_}))
        with pytest.raises(InputError, match="must be at most 2; got"):
            read_export(tmp_path / "e")


def test_the_model_card_shows_how_frames_become_square(run, tmp_path, monkeypatch):
    export_encoder(run, tmp_path / "e", formats=["safetensors"])
    card = (tmp_path / "e" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(import cv2\n.*?)```", card, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    square = Square(fine.get_config("tiny").data.size, LETTERBOX)
    for shape in ((100, 160), (160, 101), (20, 31)):
        frame = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        cv2.imwrite("frame.png", frame)
        names = {}
        exec(code, names)
        np.testing.assert_array_equal(names["square"], square.of(frame))


def test_paths_of_a_private_table(clips, tmp_path, run):
    index = prepared(tmp_path / "out", "video", clips, "--every=4")
    embed_frames(run, index.path, tmp_path / "f.parquet", split="train", paths=True)
    rows = parquet.read_table(tmp_path / "f.parquet").to_pylist()
    by_file = {}
    for file in range(4):
        frames = open_files(clips / f"p{file}" / "a.mp4", split=None, options=FileOptions(every=4)).read(0, SQUARE)
        by_file[str((clips / f"p{file}" / "a.mp4").resolve())] = dict(zip(frames.numbers, frames.images, strict=True))
    reader = FrameReader(index, 32)
    assert len(rows) == (index.splits == index.split_names.index("train")).sum()
    for row in rows:
        (frame,) = np.flatnonzero(index.frame_ids == row["id"])
        np.testing.assert_array_equal(by_file[row["path"]][row["frame_number"]], reader.read(np.array([frame]))[0])
    bare = prepared(tmp_path / "bare", "video", clips, "--no-keep_paths").path
    for source, said in ((clips, r"Omit --paths: .* the column id begins with the path"), (bare, r"[oO]mit --paths")):
        with pytest.raises(InputError, match=said):
            embed_frames(run, source, tmp_path / "g.parquet", paths=True)


@pytest.mark.parametrize(
    ("flag", "rule"),
    [
        ("--window=-inf,inf", "two finite numbers"),
        ("--near_duplicate=nan", "grey levels >= 0"),
        ("--near_duplicate=-1", "grey levels >= 0"),
        ("--near_duplicate=inf", "grey levels >= 0"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(flag, rule, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main(["run", "clips", f"--out={tmp_path / 'f.csv'}", flag])
    assert left.value.code == 2
    assert rule in capsys.readouterr().err


def test_a_batch_that_no_memory_holds_is_refused(tmp_path):
    with pytest.raises(InputError, match="--batch_size must be from 1 to 1,048,576 frames"):
        embed_frames("no encoder", "no source", tmp_path / "f.csv", batch_size=2**20 + 1)


def test_a_name_with_a_null_character_is_a_file_that_is_missing(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"path,anatomy\na\0b.xyz,head\n")
    source = open_files(tmp_path / "t.csv", split=None, options=FileOptions())
    assert len(source) == 1
