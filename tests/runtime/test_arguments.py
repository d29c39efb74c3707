"""What a parser says of options that it does not know."""

import pytest

from awcl_jax.runtime.arguments import Parser

pytestmark = pytest.mark.quick


def parser():
    made = Parser(prog="prepare")
    datasets = made.add_subparsers(metavar="DATASET", required=True)
    folder = datasets.add_parser("folder")
    folder.add_argument("--source", required=True)
    folder.add_argument("--key_file")
    folder.add_argument("more", nargs="*")
    return made


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--root=x"], "--root (did you mean --source?)"),
        (["--input-dir", "x"], "--input-dir"),
        (["--data-dir=x"], "--data-dir (did you mean --source?)"),
        (["--source=x", "--key-file=k"], "--key-file (did you mean --key_file?)"),
        (["--sorce=x", "--keyfile=k"], "--sorce --keyfile (did you mean --source, --key_file?)"),
        (["--source=x", "--output=y"], "--output"),  # it has no --out
        (["--sourc=x"], "--sourc (did you mean --source?)"),  # not an abbreviation
    ],
)
def test_names_the_option_that_was_meant_by_the_subcommand(given, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        parser().parse_args(["folder", *given])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith(f"prepare folder: error: unrecognized arguments: {said}\n")


def test_what_argparse_finds_is_as_before(capsys):
    found = parser().parse_args(["folder", "--source=a=--b", "--", "--root"])
    assert (found.source, found.more) == ("a=--b", ["--root"])
    for given, said in ([], "required: DATASET"), (["folder"], "required: --source"), (["folders"], "invalid choice"):
        with pytest.raises(SystemExit):
            parser().parse_args(given)
        assert said in capsys.readouterr().err


def test_texts_are_shown_as_written(capsys):
    made = Parser(prog="prepare", description="one\n  two")
    with pytest.raises(SystemExit) as stopped:
        made.parse_args(["--help"])
    assert stopped.value.code == 0
    assert "one\n  two\n" in capsys.readouterr().out
