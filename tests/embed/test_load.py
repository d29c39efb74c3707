"""The encoder of a run gives the features that the run evaluated."""

import jax
import numpy as np
import pytest

from awcl_jax.config import build
from awcl_jax.config.fields import augmentation, from_dict, to_dict
from awcl_jax.config.pretraining import default_config
from awcl_jax.embed.command import load_encoder
from awcl_jax.evaluate.encode import make_encode
from awcl_jax.pretrain import runner as pretrain
from awcl_jax.runtime.errors import InputError
from awcl_jax.train import initial_state as first_state
from awcl_jax.train.checkpoint import Checkpoints
from awcl_jax.train.run_folder import open_run
from configs import fine


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder of a run with two checkpoints that differ, and the states of both."""
    folder = tmp_path_factory.mktemp("run") / "fine"
    config = fine.get_config("tiny")
    config.model.arch, config.model.width_factor = "resnet18", 0.0625
    config.queue.size = 32  # of no interest to whoever takes the encoder
    open_run(folder, config=to_dict(config), fingerprint="f00d")
    model, (_, optimiser) = build.make_model(config), build.make_optimiser(config)
    states = {}
    with Checkpoints(folder) as checkpoints:
        for step, seed in ((10, 1), (20, 2)):
            queue = pretrain.make_queue(config, np.zeros(1, np.int32))
            states[step] = first_state.initial_state(model, optimiser, seed=seed, queue=queue)
            checkpoints.save(step, jax.device_put(states[step]))
    return folder, config, model, states


def features_of(run, step, frames):
    _, config, model, states = run
    encode = make_encode(model, augmentation(config))
    return np.asarray(encode(states[step].variables, frames))


def test_a_run_gives_the_features_of_its_latest_checkpoint(run):
    frames = np.random.default_rng(0).integers(0, 256, (3, 48, 48), np.uint8)
    features = load_encoder(run[0])(frames)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, features_of(run, 20, frames), rtol=1e-5, atol=1e-6)
    assert not np.allclose(features, features_of(run, 10, frames), rtol=1e-2)


def test_a_checkpoint_gives_its_own_features(run):
    frames = np.random.default_rng(0).integers(0, 256, (3, 48, 48), np.uint8)
    features = load_encoder(run[0] / "checkpoints" / "10")(frames)
    np.testing.assert_allclose(features, features_of(run, 10, frames), rtol=1e-5, atol=1e-6)


def test_overlays_are_masked_as_in_training(run, tmp_path):
    folder, config, _, states = run
    config = config.copy_and_resolve_references()
    config.data.mask_overlays = True
    open_run(tmp_path / "run", config=to_dict(config), fingerprint="f00d")
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(20, jax.device_put(states[20]))
    frame = np.zeros((1, 48, 48), np.uint8)
    frame[:, 8:44, 6:40] = np.random.default_rng(0).integers(30, 200, (36, 34))
    written = frame.copy()
    written[:, 2:4, 2:14] = 255
    encode = load_encoder(tmp_path / "run")
    np.testing.assert_array_equal(encode(written), encode(frame))
    assert not np.allclose(load_encoder(folder)(written), encode(frame), rtol=1e-3)


def test_floats_channels_and_sizes_are_taken(run):
    encode = load_encoder(run[0])
    frames = np.random.default_rng(0).integers(0, 256, (2, 96, 96), np.uint8)
    small = frames.reshape(2, 48, 2, 48, 2).mean(axis=(2, 4))  # what averaging by two gives, before it is rounded
    expected = encode(frames)
    np.testing.assert_array_equal(encode(frames[..., None]), expected)
    np.testing.assert_array_equal(encode(frames / np.float32(255)), expected)
    np.testing.assert_allclose(encode(np.floor(small + 0.5).astype(np.uint8)), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (np.zeros((1, 3, 48, 48), np.uint8), r"b, h, w\].* got \(1, 3, 48, 48\)"),
        (np.full((1, 48, 48), 2.0), "from 0 to 1"),
        (np.zeros((1, 48, 48), np.int32), "uint8"),
    ],
)
def test_other_frames_are_bad_input(run, frames, said):
    with pytest.raises(InputError, match=said):
        load_encoder(run[0])(frames)


@pytest.mark.quick
def test_what_is_no_run_is_bad_input(run, tmp_path):
    with pytest.raises(InputError, match=r"config\.json not found"):
        load_encoder(tmp_path)
    with pytest.raises(InputError, match=r"no checkpoint of step 30 \(available: up to step 20\)"):
        load_encoder(run[0] / "checkpoints" / "30")
    open_run(tmp_path / "begun", config=to_dict(run[1]), fingerprint="f00d")
    with pytest.raises(InputError, match=r"no checkpoint \(available: none\)"):
        load_encoder(tmp_path / "begun")
    assert [file.name for file in (tmp_path / "begun").iterdir()] == ["config.json"]


@pytest.mark.quick
def test_a_configuration_survives_json():
    config = fine.get_config("paper")
    assert from_dict(to_dict(config), default_config()).to_dict() == config.to_dict()
    with pytest.raises(InputError, match=r"config\.model has no field 'archh': did you mean config\.model\.arch\?"):
        from_dict({"model": {"archh": "resnet18"}}, default_config())
