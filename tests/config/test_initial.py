"""What a run starts from: another run, one of its checkpoints, an export."""

import json
import shutil

import chex
import jax
import numpy as np
import pytest

from awcl_jax.config import build
from awcl_jax.config.fields import to_dict
from awcl_jax.config.initial import initial_variables
from awcl_jax.data.square import LETTERBOX, SQUASH
from awcl_jax.export.command import export_encoder
from awcl_jax.pretrain import runner as pretrain
from awcl_jax.runtime.errors import InputError
from awcl_jax.train import initial_state as first_state
from awcl_jax.train.checkpoint import Checkpoints
from awcl_jax.train.run_folder import open_run
from configs import downstream_planes, fine, moco


def configured(method=fine, **fields):
    config = method.get_config("tiny")
    config.model.width_factor = 0.0625
    config.update_from_flattened_dict(fields)
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the folder of a run with two checkpoints, and their states, each number of which has moved."""
    folder = tmp_path_factory.mktemp("runs") / "before"
    config = configured(moco)
    open_run(folder, config=to_dict(config), fingerprint="f00d")
    model, (_, optimiser) = build.make_model(config), build.make_optimiser(config)
    queue = pretrain.make_queue(config, np.zeros(1, np.int32))
    states = {}
    with Checkpoints(folder) as checkpoints:
        for step in (10, 20):
            drawn = first_state.initial_state(model, optimiser, seed=step, queue=queue)
            moved = {name: jax.tree.map(lambda x: x + 0.5, getattr(drawn, name)) for name in ("params", "batch_stats")}
            states[step] = drawn.replace(**moved)  # the momentum encoder is another
            checkpoints.save(step, states[step])
    return folder, states


def state_of(config):
    given = initial_variables(config)
    queue = pretrain.make_queue(config, np.zeros(1, np.int32))
    _, optimiser = build.make_optimiser(config)
    return first_state.initial_state(
        build.make_model(config), optimiser, seed=0, queue=queue, given=None if given is None else given.variables
    )


@pytest.mark.parametrize(("place", "step"), [("", 20), ("checkpoints/10", 10)])
@pytest.mark.parametrize("with_head", [False, True])
def test_a_run_starts_from_the_encoder_of_another(run, place, step, with_head):
    folder, states = run
    state = state_of(configured(**{"model.init": str(folder / place), "model.init_head": with_head}))
    drawn, loaded = state_of(configured()), states[step]
    chex.assert_trees_all_equal(state.params["encoder"], loaded.params["encoder"])
    chex.assert_trees_all_equal(state.batch_stats, loaded.batch_stats)
    head = loaded if with_head else drawn
    chex.assert_trees_all_equal(state.params["projection"], head.params["projection"])
    chex.assert_trees_all_equal(state.opt_state, drawn.opt_state)
    assert state.step == 0


def test_the_momentum_encoder_starts_as_a_copy(run):
    folder, states = run
    state = state_of(configured(moco, **{"model.init": str(folder), "model.init_head": True}))
    chex.assert_trees_all_equal(state.momentum.params, states[20].params)


@pytest.mark.parametrize(
    ("method", "fields", "loaded", "new"),
    [
        (
            fine,
            {},
            "encoder (parameters and batch statistics)",
            "projection head, optimiser state, learning-rate schedule",
        ),
        (
            moco,
            {"model.init_head": True},
            "encoder (parameters and batch statistics), projection head",
            "optimiser state, learning-rate schedule, momentum encoder (a copy of the encoder), queue",
        ),
        (
            downstream_planes,
            {},
            "encoder (parameters and batch statistics)",
            "head, optimiser state, learning-rate schedule",
        ),
    ],
)
def test_what_is_loaded_and_what_is_not_is_described(run, method, fields, loaded, new):
    field = "encoder.init" if method is downstream_planes else "model.init"
    config = configured(method, **{field: str(run[0])}, **fields)
    of_run = f"{run[0]} (step 20 of {configured(moco).train.steps})"
    described = {"source": of_run, "loaded": loaded, "new": new}
    assert initial_variables(config).describe(config, aspect=SQUASH) == described


@pytest.mark.parametrize(
    ("trained", "here", "warns"),
    [(LETTERBOX, LETTERBOX, False), (LETTERBOX, SQUASH, True), (SQUASH, LETTERBOX, True), (SQUASH, SQUASH, False)],
)
@pytest.mark.parametrize("kind", ["run", "export"])
def test_an_encoder_of_another_aspect_is_warned_of(run, tmp_path, kind, trained, here, warns):
    folder = shutil.copytree(run[0], tmp_path / "run")
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stored | ({} if trained == SQUASH else {"aspect": trained})))
    if kind == "export":
        export_encoder(folder, tmp_path / "export", formats=["safetensors"])
        folder = tmp_path / "export"
    config = configured(downstream_planes, **{"encoder.init": str(folder)})
    described = initial_variables(config).describe(config, aspect=here)
    source = f"{folder} ({'an export' if kind == 'export' else f'step 20 of {configured(moco).train.steps}'})"
    expected = (
        f"Frames are made square by {here} here, but by {trained} where the encoder of {source} was trained: it sees "
        f"other shapes. Prepare the dataset with --aspect={trained} (your own scans), or use an encoder trained on "
        f"frames of aspect {here}."
    )
    assert described.get("warning") == (expected if warns else None)


def test_an_export_is_the_encoder_of_its_run(run, tmp_path):
    folder, states = run
    export_encoder(folder, tmp_path / "export", formats=["safetensors"])
    for method, field in ((fine, "model.init"), (downstream_planes, "encoder.init")):
        found = initial_variables(configured(method, **{field: str(tmp_path / "export")}))
        chex.assert_trees_all_equal(found.variables["params"]["encoder"], states[20].params["encoder"])
        chex.assert_trees_all_equal(found.variables["batch_stats"]["encoder"], states[20].batch_stats["encoder"])
    with pytest.raises(InputError, match=r"has no projection head\. Set config\.model\.init_head=False, or use a run"):
        initial_variables(configured(**{"model.init": str(tmp_path / "export"), "model.init_head": True}))
    with pytest.raises(InputError, match=r"width_factor 0\.0625 and not 0\.25.*--config\.model\.width_factor=0\.0625"):
        initial_variables(configured(**{"model.init": str(tmp_path / "export"), "model.width_factor": 0.25}))
    (tmp_path / "export" / "encoder.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no encoder\.safetensors\. Export again with --formats=safetensors"):
        initial_variables(configured(**{"model.init": str(tmp_path / "export")}))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model.width_factor": 0.25}, r"width_factor 0\.0625 and not 0\.25.*--config\.model\.width_factor=0\.0625"),
        ({"model.arch": "resnet34"}, r"arch resnet18 and not resnet34"),
        ({"augment.std": 0.226}, r"std 0\.18 and not 0\.226.*--config\.augment\.std=0\.18"),
        ({"model.init_head": True, "model.embedding": 16}, r"embedding \d+ and not 16.*--config\.model\.embedding="),
        ({"model.init": "nowhere"}, r"nowhere is not a run folder"),
        ({"model.init": "random", "model.init_head": True}, r"set config\.model\.init to it"),
    ],
    ids=str,
)
def test_another_encoder_is_refused_in_one_line_before_anything_is_compiled(run, fields, said, compiled):
    with pytest.raises(InputError, match=said):
        initial_variables(configured(**{"model.init": str(run[0])} | fields))
    assert compiled == []
