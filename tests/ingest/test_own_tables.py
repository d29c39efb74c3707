"""What tables, folders and taxonomies say of a researcher's files."""

import os
import socket
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from awcl_jax.data.anatomy import FETAL_PLANES_14
from awcl_jax.ingest import command as ingest
from awcl_jax.ingest.own import folder, labels, paths
from awcl_jax.ingest.own.items import BadFileError, Listing
from awcl_jax.ingest.own.manifest import read_manifest
from awcl_jax.runtime.errors import InputError

pytestmark = pytest.mark.quick


@pytest.fixture
def source(tmp_path) -> Path:
    for name in ("a.png", "b.png", "c.png", 'odd, "name"\nof a größe.png', " blank .png"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def table(folder: Path, *lines: str, name: str = "scans.csv") -> Path:
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


def faults(listing: Listing) -> list[tuple[int, str]]:
    return [(fault.number, fault.kind) for fault in listing.faults]


def test_all_columns(source):
    listing = read_manifest(
        table(
            source,
            "anatomy,path,scan_id,patient_id,split,machine,mask,pixel_mm,frame,note",
            "4CH,a.png,s1,p1,train,GE,b.png,0.25,7,ignored",
            ",c.png,s1,p1,train,,b.png,,8,",
        )
    )
    first, second = listing.rows
    assert not listing.faults
    assert (listing.has_splits, listing.named, listing.unit) == (True, True, "row")
    assert (first.number, first.path.name, first.scan, first.patient) == (1, "a.png", "s1", "p1")
    assert (first.anatomy, first.split, first.machine, first.mask.name) == ("4CH", "train", "GE", "b.png")
    assert (first.pixel_mm, first.frame) == (0.25, 7)
    assert (second.anatomy, second.machine, second.pixel_mm != second.pixel_mm) == ("", "", True)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters_quotes_and_byte_order_mark(source, delimiter):
    name = 'odd, "name"\nof a größe.png'
    quoted = '"' + name.replace('"', '""') + '"'
    lines = [f"\ufeffpath{delimiter}scan_id", f"{quoted}{delimiter}s1", f" blank .png{delimiter} s2 "]
    listing = read_manifest(table(source, *lines))
    assert [(row.number, row.path.name, row.scan) for row in listing.rows] == [
        (1, name, "s1"),
        (2, " blank .png", "s2"),
    ]


def test_parquet_says_the_same_as_csv(source):
    columns = {
        "path": ["a.png", "b.png", "c.png"],
        "scan_id": [1, 2, 3],
        "patient_id": [12.0, 13.0, 12.0],
        "anatomy": ["x", None, "y"],
        "pixel_mm": [0.5, None, float("nan")],
    }
    parquet.write_table(pa.table(columns), source / "scans.parquet")
    lines = ["path,scan_id,patient_id,anatomy,pixel_mm", "a.png,1,12,x,0.5", "b.png,2,13,,", "c.png,3,12,y,"]
    said = [
        [(row.path.name, row.scan, row.patient, row.anatomy, str(row.pixel_mm)) for row in read_manifest(path).rows]
        for path in (source / "scans.parquet", table(source, *lines))
    ]
    assert said[0] == said[1]


def test_each_bad_row_is_one_fault_and_the_rest_goes_on(source, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "x.png"
    outside.write_bytes(b"x")
    (source / "link.png").symlink_to(outside)
    (source / "inner.png").symlink_to(source / "b.png")
    listing = read_manifest(
        table(
            source,
            "path,scan_id,patient_id,split,frame,pixel_mm",
            "a.png,s1,p1,train,1,",
            "a.png,s1,p1,train,2,",  # the file again
            "inner.png,s1,p1,train,1,",  # the frame again
            "gone.png,s1,p1,train,3,",
            "link.png,s1,p1,train,4,",
            f"{outside},s1,p1,train,5,",
            "../x.png,s1,p1,train,6,",
            "b.png,,p1,train,7,",
            "b.png,s1,p2,train,8,",  # the scan is of p1
            "b.png,s2,p1,trian,9,",
            "b.png,s2,p1,train,nine,",
            "b.png,s2,p1,train,10,-1",
            "b.png,s2,p1,train,11,wide",
            "c.png,s3,p1,test,13,0.5",
            "a\0.png,s3,p1,test,14,0.5",
        )
    )
    assert [row.number for row in listing.rows] == [1, 14]
    kinds = ["same_row"] * 2 + ["missing", *["outside"] * 3, *["bad_cell"] * 6, "missing"]
    assert faults(listing) == list(zip([2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15], kinds, strict=True))
    assert "split must be one of train, val, test; got 'trian'" in listing.faults[8].rule


def test_paths_may_be_of_another_root(source, tmp_path_factory):
    path = table(tmp_path_factory.mktemp("table"), "path,scan_id", f"{source / 'a.png'},s1", "b.png,s2")
    assert [row.path.name for row in read_manifest(path, root=source).rows] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path;patient_id", "a.png;p"], "lacks the column(s) scan_id; it has path, patient_id"),
        (["path;patient_id", "a.png;p"], "Without scans: `ingest folder --labels="),
        (["file,scan_id", "a.png,s"], "has no column 'path' with the file names; its columns are file, scan_id"),
        (["path,scan_id"], "a header but no rows"),
        (["path,scan_id", "\udcff\udcfe,s"], "is not a CSV in UTF-8"),
        (["path,scan_id", "a.png"], "has 1 cells in row 1 and 2 in its header"),
    ],
)
def test_unusable_tables(source, lines, message):
    path = source / "scans.csv"
    path.write_bytes(("\n".join(lines) + "\n").encode(errors="surrogateescape"))
    with pytest.raises(InputError) as error:
        read_manifest(path, required=("path", "scan_id"))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("column", "meant"),
    [
        ("anatmy", "anatomy"),
        ("anatomie", "anatomy"),
        (" Anatomy", "anatomy"),
        ("patient", "patient_id"),
        ("PatientID", "patient_id"),
        ("splt", "split"),
        ("machines", "machine"),
    ],
)
def test_a_misspelt_column_is_not_ignored(source, column, meant):
    path = table(source, f"path,scan_id,{column}", "a.png,s1,x")
    with pytest.raises(InputError, match=f"no column '{meant}', but '{column}'.*--columns={meant}={column}"):
        read_manifest(path)
    assert read_manifest(table(source, f"path,scan_id,{column},{meant}", "a.png,s1,x,")).remarks == [
        f"{path}: column(s) not used: {column}."
    ]


def test_columns_that_are_not_used_are_named(source):
    path = table(source, "path,age,scan_id,plane", "a.png,31,s1,head")
    assert read_manifest(path).remarks == [f"{path}: column(s) not used: age, plane."]
    assert read_manifest(path, names={"anatomy": "plane"}).remarks == [f"{path}: column(s) not used: age."]


def test_no_table(tmp_path):
    (tmp_path / "scans.txt").write_text("path,scan_id\na.png,s\n")
    for name in ("scans.csv", "scans.txt"):
        with pytest.raises(InputError, match=r"must be an existing table \(.csv, .parquet, .xlsx\)"):
            read_manifest(tmp_path / name)
    (tmp_path / "scans.parquet").write_bytes(b"PAR1, not")
    with pytest.raises(InputError, match="is not a Parquet file"):
        read_manifest(tmp_path / "scans.parquet")


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def said(listing: Listing) -> list[tuple[str, str, str]]:
    return [(row.anatomy, row.patient, row.scan) for row in listing.rows]


def test_scans_by_folder(tmp_path):
    tree(
        tmp_path,
        "4CH/p1/s1/a.png",
        "4CH/p1/s2/a.PNG",
        "LVOT/p1/s1/b.png",
        "LVOT/p2/b.jpg",
        "LVOT/p2/notes.txt",
        ".x.png",
    )
    listing = folder.list_images(tmp_path, (".png", ".jpg"))
    # A scan may show several classes.
    assert said(listing) == [
        ("4CH", "p1", "p1/s1"),
        ("4CH", "p1", "p1/s2"),
        ("LVOT", "p1", "p1/s1"),
        ("LVOT", "p2", "p2"),
    ]
    assert (listing.ignored, listing.named, listing.has_splits) == (2, False, False)


def test_scans_by_stem(tmp_path):
    tree(tmp_path, "head/010_HC.png", "head/010-2.png", "femur/011.png")
    assert said(folder.list_images(tmp_path, (".png",))) == [
        ("femur", "", "011"),
        ("head", "", "010"),
        ("head", "", "010"),
    ]
    by_pattern = folder.list_images(tmp_path, (".png",), pattern=r"(?P<patient>\d\d)(?P<scan>\d)(?!$)")
    assert said(by_pattern) == [("head", "01", "01/0"), ("head", "01", "01/0")]
    assert faults(by_pattern) == [(1, "no_scan")]


def test_folders_that_say_nothing(tmp_path):
    tree(tmp_path, "a/x.png", "a/p/y.png", "z.png")
    with pytest.raises(InputError, match="--scan_from=folder or --scan_from=stem"):
        folder.list_images(tmp_path, (".png",))
    listing = folder.list_images(tmp_path, (".png",), scan_from="folder")
    assert said(listing) == [("a", "p", "p")]
    assert faults(listing) == [(2, "no_scan"), (3, "no_class")]
    for pattern, message in (("(", "must be a regular expression"), (r"\d+", r"must have a group \(\?P<scan>")):
        with pytest.raises(InputError, match=message):
            folder.list_images(tmp_path, (".png",), pattern=pattern)
    with pytest.raises(InputError, match=r"has no file that ends in \.mp4"):
        folder.list_clips(tmp_path, (".mp4",))
    with pytest.raises(InputError, match=r"The folder .* does not exist"):
        folder.list_images(tmp_path / "none", (".png",))


def test_clips_of_a_folder(tmp_path):
    listing = folder.list_clips(tree(tmp_path, "p1/a.mp4", "p1/day/b.mp4", "c.mp4"), (".mp4",))
    assert [(row.patient, row.scan) for row in listing.rows] == [
        ("", "c.mp4"),
        ("p1", "p1/a.mp4"),
        ("p1", "p1/day/b.mp4"),
    ]


def test_nothing_is_followed_out_of_the_tree(tmp_path, tmp_path_factory):
    outside = tree(tmp_path_factory.mktemp("outside"), "x.png")
    tree(tmp_path, "a/x.png")
    (tmp_path / "a" / "file.png").symlink_to(outside / "x.png")
    (tmp_path / "a" / "folder").symlink_to(outside)
    (tmp_path / "a" / "gone.png").symlink_to(outside / "gone.png")
    (tmp_path / "a" / "again.png").symlink_to("x.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "a" / "pipe.png")
    listing = paths.find_files(tmp_path, (".png",))
    assert [row.shown for row in listing.rows] == ["a/x.png"]
    assert sorted((fault.path, fault.kind) for fault in listing.faults) == [
        ("a/file.png", "outside"),
        ("a/folder", "outside"),
        ("a/gone.png", "outside"),
        ("a/pipe.png", "special"),
    ]
    assert listing.ignored == 2


def test_a_folder_that_cannot_be_read_is_a_fault(tmp_path, monkeypatch):
    tree(tmp_path, "a/x.png", "b/y.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    listing = paths.find_files(tmp_path, (".png",))
    assert [row.shown for row in listing.rows] == ["b/y.png"]
    assert [(fault.path, fault.kind) for fault in listing.faults] == [("a", "unreadable")]


def test_what_is_opened(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    for name, kind in (("none", "missing"), ("empty", "no_bytes"), ("pipe", "special"), ("socket", "unreadable")):
        with pytest.raises(BadFileError) as error, paths.opened(tmp_path / name):
            pass
        assert error.value.kind == kind, name


TOML = """
unlabelled = ["other"]
[planes]
4CH = "heart"
LVOT = "heart"
FLP = "femur"
[aliases]
"four chamber view" = "4CH"
"""
YAML = """
unlabelled: [other]
planes: {4CH: heart, LVOT: heart, FLP: femur}
aliases: {four chamber view: 4CH}
"""


@pytest.mark.parametrize(("name", "text"), [("t.toml", TOML), ("t.yaml", YAML)])
def test_taxonomy(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    taxonomy, unlabelled = labels.read_taxonomy(tmp_path / name)
    assert taxonomy.groups == {"heart": ("4CH", "LVOT"), "femur": ("FLP",)}
    names = ["4CH", "four chamber view", "heart", "FLP", "other", ""]
    found = labels.resolve_names(names, taxonomy, unlabelled)
    assert [found[name] for name in names] == [(0, 0), (0, 0), (-1, 0), (2, 1), (-1, -1), (-1, -1)]


def test_taxonomies_without_a_file():
    assert labels.read_taxonomy(Path("fetal_planes_14")) == (FETAL_PLANES_14, frozenset())
    with pytest.raises(InputError, match="must be a file or fetal_planes_14 or fetal_planes_db; planes"):
        labels.read_taxonomy(Path("planes"))


def test_without_a_taxonomy_names_are_fine_and_coarse():
    taxonomy = labels.found_taxonomy(["b", "a", "", "b"])
    assert (taxonomy.fine, taxonomy.coarse) == (("a", "b"), ("a", "b"))
    with pytest.raises(InputError, match=r"one line of text; got 'a\\nb'"):
        labels.found_taxonomy(["a\nb"])


def test_all_unknown_names_are_listed_with_the_nearest():
    with pytest.raises(InputError) as error:
        labels.resolve_names(["4CH", "4Ch", "4Ch", "hart"], FETAL_PLANES_14)
    assert "The taxonomy lacks 2 name(s): '4Ch' (2 file(s), nearest '4CH'), 'hart' (1 file(s), nearest 'heart')" in str(
        error.value
    )
    assert "Upper and lower case are different." in str(error.value)
    with pytest.raises(InputError) as error:
        labels.resolve_names(["hart"], FETAL_PLANES_14)
    assert "case" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("planes = 3", r"must have \[planes\]"),
        ("[aliases]\na = 'b'", r"must have \[planes\]"),
        ("[planes]\na = 3", "Every name must be text in quotes; got 3"),
        ("[planes]\na = 'b'\n[other]\nc = 'd'", "it also has other"),
        ("[planes]\na = 'b'\n[aliases]\nc = 'd'", "'c' means 'd'"),
        ("[planes\n", "not a TOML or YAML file"),
        ("", r"must have \[planes\]"),
    ],
)
def test_bad_taxonomies(tmp_path, text, message):
    (tmp_path / "t.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        labels.read_taxonomy(tmp_path / "t.toml")


GAPS = ["nan", "NaN", "NA", "N/A", "None", "null", "<NA>"]


@pytest.mark.parametrize("gap", GAPS)
def test_a_gap_that_is_spelt_out_is_an_empty_cell(source, gap):
    columns = "path,scan_id,patient_id,anatomy,machine,pixel_mm,frame"
    rows = (f"a.png,s1,p1,{gap},{gap},{gap},1", f"b.png,s2,{gap},4CH,,,1", f"c.png,{gap},p2,4CH,,,1")
    listing = read_manifest(table(source, columns, *rows))
    (row,) = listing.rows
    assert (row.anatomy, row.machine, row.pixel_mm != row.pixel_mm) == (gap, "", True)
    assert faults(listing) == [(2, "bad_cell"), (3, "bad_cell")]
    assert [fault.detail for fault in listing.faults] == ["patient_id is empty", "scan_id is empty"]
    names = [row.anatomy, "4CH", ""]
    gaps = frozenset(GAPS)
    assert labels.found_taxonomy(names, gaps).fine == ("4CH",)
    assert labels.resolve_names(names, FETAL_PLANES_14, gaps=gaps)[gap] == (-1, -1)


def test_a_taxonomy_may_name_what_is_spelt_like_a_gap(tmp_path):
    (tmp_path / "t.toml").write_text('[planes]\nNA = "neck"\n[aliases]\nnan = "NA"\n')
    taxonomy, unlabelled = labels.read_taxonomy(tmp_path / "t.toml")
    found = labels.resolve_names(["NA", "nan", "null"], taxonomy, unlabelled, frozenset(GAPS))
    assert [found[name] for name in ("NA", "nan", "null")] == [(0, 0), (0, 0), (-1, -1)]


def test_a_file_of_a_gaps_name_is_a_file(source):
    (source / "NA").write_bytes(b"x")
    assert [row.path.name for row in read_manifest(table(source, "path,scan_id", "NA,s1")).rows] == ["NA"]


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "sep=;;", "\ufeffsep=;"])
def test_a_line_that_names_the_delimiter_is_no_row(source, line):
    listing = read_manifest(table(source, line, "path;scan_id;note", "a.png;s1;x", "b.png;s2;,,,,"))
    assert [(row.number, row.path.name, row.scan) for row in listing.rows] == [(1, "a.png", "s1"), (2, "b.png", "s2")]
    with pytest.raises(InputError, match="2 cells in row 2 and 3 in its header"):
        read_manifest(table(source, line, "path;scan_id;note", "a.png;s1;x", "b.png;s2"))


@pytest.mark.parametrize("line", ["sep=", "sep=,;", "separator=;"])
def test_other_first_lines_are_headers(source, line):
    with pytest.raises(InputError):
        read_manifest(table(source, line, "path;scan_id", "a.png;s1"))


@pytest.mark.parametrize("name", [r"img\f0.png", "img/f0.PNG", r"img\f0.Png", r".\img\f0.png", r"img\..\img\f0.png"])
def test_paths_of_another_system_are_found(source, name):
    (source / "img").mkdir()
    for file in ("f0.png", "f1.TIF"):
        (source / "img" / file).write_bytes(b"x")
    listing = read_manifest(table(source, "path,scan_id,mask", f"{name},s1,{name}", "img/f1.tif,s2,a.png"))
    assert [(row.path.name, row.mask.name) for row in listing.rows] == [("f0.png", "f0.png"), ("f1.TIF", "a.png")]


def test_a_file_of_exactly_that_name_is_preferred(source, tmp_path_factory):
    (source / r"x\a.png").write_bytes(b"x")
    (source / "x").mkdir()
    (source / "x" / "a.png").write_bytes(b"x")
    (source / "a.PNG").write_bytes(b"x")
    listing = read_manifest(table(source, "path,scan_id", r"x\a.png,s1", "a.png,s2", "a.PNG,s3", "gone.PNG,s4"))
    assert [row.path.name for row in listing.rows] == [r"x\a.png", "a.png", "a.PNG"]
    assert faults(listing) == [(4, "missing")]
    outside = tmp_path_factory.mktemp("outside")
    (outside / "x.png").write_bytes(b"x")
    listing = read_manifest(table(source, "path,scan_id", rf"..\{outside.name}\x.png,s1"))
    assert faults(listing) == [(1, "outside")]


def test_accents_are_the_same_however_they_are_composed(source):
    composed, decomposed = "L\u00e4ngsschnitt", "La\u0308ngsschnitt"
    listing = read_manifest(table(source, "path,scan_id,anatomy", f"a.png,s1,{composed}", f"b.png,s2,{decomposed}"))
    assert {row.anatomy for row in listing.rows} == {composed}
    for name in (composed, decomposed):
        (source / "classes" / name).mkdir(parents=True, exist_ok=True)
        (source / "classes" / name / f"{len(name)}.png").write_bytes(b"")
    assert {row.anatomy for row in folder.list_images(source / "classes", (".png",)).rows} == {composed}


MUELLER = ("M\u00fcller", "Mu\u0308ller")  # composed and decomposed


def test_patients_and_scans_are_the_same_however_their_accents_are_composed(source):
    rows = [f"{'ab'[at]}.png,{name}1,{name},4CH,{at}" for at, name in enumerate(MUELLER)]
    listing = read_manifest(table(source, "path,scan_id,patient_id,anatomy,frame", *rows))
    assert {(row.patient, row.scan) for row in listing.rows} == {(MUELLER[0], f"{MUELLER[0]}1")}
    tree(source, *(f"in/{'AB'[at]}/{name}/{at}_{name}.png" for at, name in enumerate(MUELLER)))
    tree(source, *(f"clips/{name}/{at}.mp4" for at, name in enumerate(MUELLER)))
    by_folder = folder.list_images(source / "in", (".png",))
    assert said(by_folder) == [(anatomy, MUELLER[0], MUELLER[0]) for anatomy in "AB"]
    pattern = "._(?P<patient>Mu\u0308l+er)(?P<scan>)"
    by_name = folder.list_images(source / "in", (".png",), pattern=pattern)
    assert [patient for _, patient, _ in said(by_name)] == [MUELLER[0]] * 2
    assert {row.patient for row in folder.list_clips(source / "clips", (".mp4",)).rows} == {MUELLER[0]}


def test_names_that_differ_in_case_are_noticed():
    assert labels.same_but_for_case(["head", "Head", "HEAD", "heart", "", "head"]) == [["HEAD", "Head", "head"]]
    assert labels.same_but_for_case(["head", "heart"]) == []


def test_masks_that_do_not_exist_are_masks_all_the_same(source, capsys):
    path = table(source, "path,scan_id,mask", "a.png,s1,a_mask.png", "b.png,s2,b_mask.png")
    with pytest.raises(SystemExit):
        ingest.main(["manifest", f"--source={path}", f"--out={source / 'out'}", "--mask_names=other,head"])
    said = capsys.readouterr().err
    assert "left out row 1, 'a.png': its mask cannot be used: the file does not exist" in said
    assert "names without masks" not in said
