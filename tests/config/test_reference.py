"""The reference of the configuration: complete, and refused where a field has no meaning."""

import re

import pytest
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from awcl_jax.config import reference
from awcl_jax.config.downstream import default_downstream_config
from awcl_jax.config.pretraining import default_config

DEFAULTS = {"pretraining": default_config, "downstream": default_downstream_config}


def leaves(config, prefix=""):
    """Walks a configuration by its own keys."""
    for key in config:
        if isinstance(config[key], ConfigDict):
            yield from leaves(config[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", config[key]


@pytest.mark.parametrize("kind", reference.KINDS)
def test_every_field_is_listed_once_with_its_default(kind):
    rows = reference.describe_fields(kind)
    assert [(row.name, row.default) for row in rows] == sorted(leaves(DEFAULTS[kind]()))
    assert all(row.meaning.strip() for row in rows)


def test_meanings_come_from_the_source():
    pretraining = {row.name: row for row in reference.describe_fields("pretraining")}
    downstream = {row.name: row for row in reference.describe_fields("downstream")}
    assert pretraining["data.size"].meaning == "edge in pixels of the squares that frames are resized to"
    # Of an assignment over three lines.
    assert downstream["encoder.init"].meaning.startswith("initial weights: random, a pretraining run")
    # Of a docstring, over two lines and one.
    assert pretraining["augment.flip"].meaning == (
        "probability of a left-right flip. Use 0 if the side matters (situs)."
    )
    assert pretraining["augment.corner_probability"].meaning == "probability of augment.corners; 0 turns it off"
    # Downstream runs share a group, and say otherwise where a field means something else to them.
    assert downstream["data.size"] == pretraining["data.size"]
    assert downstream["report.pictures"].meaning != pretraining["report.pictures"].meaning
    assert downstream["optim.weight_decay"].default == 0.01
    assert "data.unlabelled" not in downstream


def uncommented():
    config = ConfigDict()
    config.known = 1  # a meaning
    config.train = ConfigDict()
    config.train.length = placeholder(int)  # of two words
    config.train.silent = 2
    return config


def test_a_field_without_a_comment_is_refused():
    comments = reference.comments_of(uncommented)
    assert comments == {"known": "a meaning", "train.length": "of two words"}
    with pytest.raises(AssertionError, match=r"without a meaning: train\.silent"):
        reference.fields_of(uncommented(), comments)


def test_the_text_names_every_field_with_its_default():
    text = reference.fields_text()
    assert max(map(len, text.splitlines())) <= 110
    shown = re.findall(r"^  ([a-z_.]+) +(\S.*?)  ", text, re.MULTILINE)
    rows = [row for kind in reference.KINDS for row in reference.describe_fields(kind)]
    assert shown == [(row.name, row.shown_default) for row in rows]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "unset"),
        ((), "()"),
        ("", '""'),
        (1e-05, "1e-05"),
        (1.0, "1.0"),
        ((0.75, 4 / 3), "(0.75, 1.333)"),
        (3, "3"),
    ],
)
def test_a_default_is_shown_in_a_few_characters(value, shown):
    assert reference.Field("a", value, "b").shown_default == shown


def test_the_markdown_has_a_row_for_every_field():
    page = reference.fields_markdown("downstream")
    names = re.findall(r"^\| `([a-z_.]+)` \| `[^`]+` \| [^|]+ \|$", page, re.MULTILINE)
    assert sorted(names) == [row.name for row in reference.describe_fields("downstream")]
    assert page.count("### ") == len({name.rpartition(".")[0] for name in names})
