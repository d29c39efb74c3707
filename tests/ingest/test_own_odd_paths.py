"""Folders, links and cells that people have, and what is said of them."""

import pytest

from awcl_jax.data.scans import ScanIndex
from awcl_jax.ingest import command as ingest
from tests.helpers.own_files import draw_files

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("AWCL_ID_KEY", raising=False)


def run(capsys, *args: object) -> tuple[int, str, str]:
    try:
        ingest.main([*map(str, args)])
    except SystemExit as left:
        return left.code, *capsys.readouterr()
    return 0, *capsys.readouterr()


@pytest.mark.parametrize("inside", ["", "/sub/out", "/link"])
def test_out_is_not_in_the_source(tmp_path, capsys, inside):
    source = draw_files(tmp_path / "in", "A/p/0.png")
    (source / "link").symlink_to(source)
    before = sorted(source.rglob("*"))
    status, _, said = run(capsys, "folder", f"--source={source}", f"--out={source}{inside}")
    assert status == 1
    assert said.startswith(f"error: --out={source}{inside} must not be in --source=")
    assert sorted(source.rglob("*")) == before


def test_a_source_within_out_or_a_table_beside_it_is_fine(tmp_path, capsys):
    draw_files(tmp_path / "out/in", *(f"A/p{n}/0.png" for n in range(4)))
    assert run(capsys, "folder", f"--source={tmp_path / 'out/in'}", f"--out={tmp_path / 'out'}")[0] == 0
    (tmp_path / "t.csv").write_text("\n".join(["path,scan_id", *(f"out/in/A/p{n}/0.png,s{n}" for n in range(4))]))
    assert run(capsys, "manifest", f"--source={tmp_path / 't.csv'}", f"--out={tmp_path / 'own'}")[0] == 0


@pytest.mark.parametrize("command", ["folder", "hc18", "phantom", "resplit"])
@pytest.mark.parametrize("below", ["", "/deep/er"])
def test_out_is_not_a_file(tmp_path, capsys, command, below):
    (tmp_path / "file").write_text("x")
    given = {"folder": ["--source=x"], "hc18": ["--source=x"], "phantom": [], "resplit": ["--dataset=x"]}[command]
    status, _, said = run(capsys, command, *given, f"--out={tmp_path / 'file'}{below}")
    assert status == 1
    file = tmp_path / "file"
    assert said == f"error: --out={file}{below} must be a folder, but {file} is not one. Choose another.\n"


def test_a_row_that_names_a_folder(tmp_path, capsys):
    draw_files(tmp_path, *(f"p{n}/0.png" for n in range(4)))
    rows = ["p0,s0", *(f"p{n}/0.png,s{n}" for n in range(1, 4))]
    (tmp_path / "t.csv").write_text("\n".join(["path,scan_id", *rows]))
    _, _, said = run(capsys, "manifest", f"--source={tmp_path / 't.csv'}", f"--out={tmp_path / 'out'}")
    assert "left out row 1, 'p0': it is a folder, not a file\n" in said


def test_links_that_lead_nowhere_are_counted(tmp_path, capsys):
    source = draw_files(tmp_path / "in", *(f"A/p{n}/0.png" for n in range(4)))
    for name in "abcd":
        (source / f"A/p0/{name}.png").symlink_to("gone.png")
    (source / "A/p0/e.png").symlink_to("0.png")
    status, _, said = run(capsys, "folder", f"--source={source}", f"--out={tmp_path / 'out'}")
    assert status == 0
    listed = "'A/p0/a.png'; 'A/p0/b.png'; 'A/p0/c.png'"
    assert f"Ignored 4 link(s) to files that do not exist, such as {listed}.\n" in said


def test_splits_in_any_case_and_partly_filled(tmp_path, capsys):
    draw_files(tmp_path, *(f"{n}.png" for n in range(6)))
    splits = ["TEST", "", "Val", "train", "", "NA"]
    rows = [f"{n}.png,s{n},p{n // 2 if n < 2 else n},{split}" for n, split in enumerate(splits)]
    (tmp_path / "t.csv").write_text("\n".join(["path,scan_id,patient_id,split", *rows]))
    args = ("manifest", f"--source={tmp_path / 't.csv'}", f"--out={tmp_path / 'out'}", "--keep_ids")
    status, printed, _ = run(capsys, *args)
    assert status == 0
    index = ScanIndex.from_dataset(tmp_path / "out")
    found = {
        index.scan_names[scan]: index.split_names[split] for scan, split in zip(index.scans, index.splits, strict=True)
    }
    # The second frame is of the first's patient.
    assert found == {"s0": "test", "s1": "test", "s2": "val", "s3": "train", "s4": "train", "s5": "train"}
    assert "2 of 5 patient(s) have no split in the table and train." in printed


def test_a_column_split_without_a_cell_is_no_split(tmp_path, capsys):
    draw_files(tmp_path, *(f"{n}.png" for n in range(10)))
    (tmp_path / "t.csv").write_text("\n".join(["path,scan_id,split", *(f"{n}.png,s{n}," for n in range(10))]))
    assert run(capsys, "manifest", f"--source={tmp_path / 't.csv'}", f"--out={tmp_path / 'out'}")[0] == 0
    assert set(ScanIndex.from_dataset(tmp_path / "out").split_names) == {"train", "val", "test"}
