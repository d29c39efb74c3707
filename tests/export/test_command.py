"""An exported encoder gives, in every format and by the words of its model card, the features of the run."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from safetensors import safe_open

from awcl_jax.augment.options import Augmentation
from awcl_jax.augment.views import centre_view
from awcl_jax.config import build
from awcl_jax.config.fields import to_dict
from awcl_jax.data.about import About, as_json
from awcl_jax.embed.command import embed_frames, load_encoder
from awcl_jax.export import command as export
from awcl_jax.export import encoder_files
from awcl_jax.export.command import export_encoder, main
from awcl_jax.export.model_card import Provenance, model_card
from awcl_jax.export.preprocessing import Preprocessing
from awcl_jax.models.resnet import make_resnet
from awcl_jax.models.shapes import variable_shapes
from awcl_jax.models.weights import load_torch_resnet, save_torch_resnet
from awcl_jax.runtime.errors import InputError
from awcl_jax.train import initial_state as first_state
from awcl_jax.train.checkpoint import Checkpoints
from awcl_jax.train.run_folder import open_run, write_json
from configs import fine

ROOT = Path(__file__).parents[2]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
SCORE = {"low": None, "high": None, "frames": 62, "patients": 6}
RESULTS = {
    "steps": 20,
    "frames": {"train": {"frames": 1192, "labelled": 121, "scans": 12, "patients": 11}},
    **{
        name: {"knn/accuracy": SCORE | {"value": value}}
        for name, value in (("pixels", 0.125), ("untrained", 0.25), ("trained", 0.625))
    },
}


PHANTOM = About("phantom", "tiny", "simulated", "the simulation", confirmed=True)
OWN = About("lab_frames", "", "own", "the first folder", confirmed=False)


def provenance(settings, *datasets, results=None):
    return Provenance(
        settings=settings,
        fields={},
        datasets=datasets or (PHANTOM,),
        fingerprint="f00d",
        step=1,
        results=results or {},
        validation={},
        version="1",
    )


def card_of(*datasets, results=None, **frames):
    settings = to_dict(fine.get_config("tiny"))
    encoder = {"arch": "resnet18", "strides": "v1.5", "width_factor": 1.0, "width": 64, "channels": 1}
    return model_card(
        provenance(settings, *datasets, results=results),
        encoder=encoder | {"features": 512, "parameters": 11_000_000},
        preprocessing=Preprocessing(224, 224, mean=0.17, std=0.18, **frames),
        formats=["jax"],
    )


def test_the_card_lists_what_the_run_started_from_without_folders():
    initial = {"source": "/home/ada/runs/first (step 20 of 20)", "loaded": "encoder (parameters)", "new": "queue"}
    card = card_of(PHANTOM, results={"initial": initial})
    assert "| started from | first (step 20 of 20): encoder (parameters); new: queue |" in card


@pytest.mark.parametrize("steps", [1, 2])
def test_the_card_of_a_run_without_labels_has_its_verdict(steps):
    # The card is of step 1: what the results say of step 2 is not said of it.
    results = {"steps": steps, "pixels": {}, "untrained": {}, "trained": {}, "verdict": ["BAD: it learned nothing."]}
    card = card_of(OWN, results=results)
    assert ("- BAD: it learned nothing." in card) == (steps == 1)
    assert "no scores on test patients" in card


@pytest.mark.parametrize("masked", [False, True])
def test_the_card_and_the_description_tell_of_masked_overlays(masked):
    card = card_of(OWN, mask_overlays=masked)
    steps = card[: card.index("## Files")]
    assert ("`awcl_jax.data.sector.mask_overlays(frame)`" in steps) == masked
    assert not masked or steps.index("mask_overlays") < steps.index("is read as grey and resized")
    assert ("- Frames have burnt-in text" in card) != masked
    assert ("- Text and marks outside of the sector were removed" in card) == masked
    frames = Preprocessing(48, 32, mean=0.17, std=0.18, mask_overlays=masked).describe()["frames"]
    assert ("before the frame is resized" in frames.get("masking", "")) == frames["mask_overlays"] == masked


@pytest.mark.parametrize("region", ["", "whole", "tag,frame"])
def test_the_card_and_the_description_tell_of_what_frames_were_cut_to(region):
    card = card_of(OWN, region=region)
    assert ("by `--region=tag,frame` of `awcl_jax.ingest`" in card[: card.index("## Files")]) == (region == "tag,frame")
    assert ("- Frames have burnt-in text" in card) == (region != "tag,frame")
    frames = Preprocessing(48, 32, mean=0.17, std=0.18, region=region).describe()["frames"]
    assert frames.get("region", "") == region


@pytest.mark.parametrize(("datasets", "warned"), [((PHANTOM,), True), ((OWN,), False), ((OWN, PHANTOM), False)])
def test_the_card_warns_of_simulated_frames_alone(datasets, warned):
    assert ("frames are simulated: expect little" in card_of(*datasets)) == warned


def randomised(variables, seed):
    """Other scales, biases and statistics of batch norm, lest a mean of 0 or a scale of 1 hide a slip."""
    rng = np.random.default_rng(seed)

    def other(x):
        return (np.asarray(x) + rng.uniform(-0.2, 0.3, x.shape) * (x.ndim == 1)).astype(np.float32)

    return jax.tree.map(other, variables)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder of a run with checkpoints of two steps, scores of the last and validation scores of the first."""
    folder = tmp_path_factory.mktemp("run") / "fine"
    config = fine.get_config("tiny")
    config.model.width_factor, config.train.steps, config.data.path = 0.0625, 20, "/home/ada/scans"
    open_run(folder, config=to_dict(config), fingerprint="f00d", datasets=as_json([OWN]))
    model, (_, optimiser) = build.make_model(config), build.make_optimiser(config)
    state = first_state.initial_state(model, optimiser, seed=0)
    with Checkpoints(folder) as checkpoints:
        for step in (10, 20):
            variables = randomised(state.variables, step)
            changed = state.replace(params=variables["params"], batch_stats=variables["batch_stats"])
            checkpoints.save(step, jax.device_put(changed))
    write_json(folder / "results.json", RESULTS)
    (folder / "metrics.jsonl").write_text('{"step": 10, "loss": 1.0, "val/knn/macro_f1": 0.375}\n')
    return folder


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """The run's export in all formats."""
    out = tmp_path_factory.mktemp("exported") / "encoder"
    export_encoder(run, out)
    return out


@pytest.fixture(scope="module")
def frames():
    """Frames of the run's size."""
    return np.random.default_rng(0).integers(0, 256, (3, 48, 48), np.uint8)


@pytest.fixture(scope="module")
def expected(run, frames):
    """Features that the run itself gives."""
    features = load_encoder(run)(frames)
    assert features.std(axis=0).max() > 0.05  # they tell the frames apart by far more than they may differ from these
    return features


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_all_files_have_the_mode_of_the_umask(run, tmp_path, mask):
    before = os.umask(mask)
    try:
        export_encoder(run, tmp_path / "out")
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()}
    assert len(modes) == 6
    assert {*modes.values()} == {0o666 & ~mask}
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.parametrize("of", ["run", "checkpoint", "export"])
def test_a_link_in_a_run_or_an_export_is_refused(run, exported, tmp_path, of):
    folder = tmp_path / "copy"
    shutil.copytree(exported if of == "export" else run, folder)
    asked = folder / "checkpoints" / "10" if of == "checkpoint" else folder
    load_encoder(asked)
    secret = tmp_path / "secret.png"
    secret.write_text("of this machine")
    (folder / "notes.txt").symlink_to(secret)
    uses = [lambda: load_encoder(asked), lambda: embed_frames(asked, secret, tmp_path / "out.npz")]
    if of != "export":
        uses.append(lambda: export_encoder(asked, tmp_path / "out"))
    for use in uses:
        with pytest.raises(InputError, match=f"{folder / 'notes.txt'} is a link, which is not followed"):
            use()
    assert not (tmp_path / "out").exists()


def sections(card: str) -> dict[str, list[str]]:
    """Python code of a model card by the heading above it."""
    parts = re.split(r"^## (.+)$", card, flags=re.MULTILINE)
    found = {
        title: re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        for title, text in zip(parts[1::2], parts[2::2], strict=True)
    }
    return {title: code for title, code in found.items() if code}


def features_by_card(code: str, folder: Path, frames: np.ndarray, tmp_path: Path, *options: str) -> np.ndarray:
    """Run the code of a card in its folder, on these frames, in a process of its own."""
    np.save(tmp_path / "frames.npy", frames)
    code, changed = re.subn(r"frames = np\.zeros.*", f"frames = np.load({str(tmp_path / 'frames.npy')!r})", code)
    assert changed == 1
    code += f"\nnp.save({str(tmp_path / 'features.npy')!r}, np.asarray(features))\n"
    code += "import sys\nassert not [name for name in sys.modules if name.startswith('awcl_jax')]\n"
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, *options, "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    features = np.load(tmp_path / "features.npy")
    assert features.dtype == np.float32
    return features


@pytest.mark.peers
@pytest.mark.parametrize("title", ["PyTorch", "ONNX Runtime", "JAX"])
def test_card_code_computes_the_features_without_this_package(title, exported, frames, expected, tmp_path):
    options = []
    if title == "PyTorch":
        pytest.importorskip("torch")
    else:
        options = ["-I"]  # nothing of this folder or this checkout can be imported
    (code,) = sections((exported / "README.md").read_text())[title]
    np.testing.assert_allclose(features_by_card(code, exported, frames, tmp_path, *options), expected, **CLOSE)


def test_the_cards_code_reads_the_weights_back_bit_for_bit(run, exported):
    (code,) = sections((exported / "README.md").read_text())["awcl_jax"]
    names = {}
    exec(code.replace("encoder.safetensors", str(exported / "encoder.safetensors")), names)
    original = pretrain_variables(run)
    assert jax.tree.structure(names["variables"]) == jax.tree.structure(original)
    for one, other in zip(jax.tree.leaves(names["variables"]), jax.tree.leaves(original), strict=True):
        assert one.dtype == other.dtype
        assert one.tobytes() == np.asarray(other).tobytes()


def pretrain_variables(run):
    """The encoder's variables of the last checkpoint, as Orbax gives them."""
    config = fine.get_config("tiny")
    config.model.width_factor, config.train.steps = 0.0625, 20
    model, (_, optimiser) = build.make_model(config), build.make_optimiser(config)
    with Checkpoints(run) as checkpoints:
        state = checkpoints.restore(20, jax.device_put(first_state.initial_state(model, optimiser, seed=0)))
    return {name: tree["encoder"] for name, tree in jax.device_get(state.variables).items()}


@pytest.mark.peers
@pytest.mark.parametrize("channels", [1, 3])
def test_the_safetensors_fit_a_resnet_of_torch(channels, run, exported, frames, expected, tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    from tests.helpers.torch_resnet import TorchResNet

    out = exported
    if channels == 3:
        out = tmp_path / "three"
        export_encoder(run, out, formats=["safetensors"], channels=3)
    network = TorchResNet("resnet18", width=4, channels=channels)
    network.load_state_dict(load_file(out / "encoder.safetensors"))  # all names, and no other
    view = np.asarray(centre_view(frames, options=Augmentation(size=32)))
    found = network(torch.tensor(view.transpose(0, 3, 1, 2)).expand(-1, channels, -1, -1)).numpy()
    np.testing.assert_allclose(found, expected, **CLOSE)
    if channels == 3:
        (code,) = sections((out / "README.md").read_text())["PyTorch"]
        np.testing.assert_allclose(features_by_card(code, out, frames, tmp_path), expected, **CLOSE)


def test_batches_of_any_number_are_taken(exported, frames, expected):
    session = onnxruntime.InferenceSession(exported / "encoder.onnx")
    content = (exported / "encoder.jax").read_bytes()
    assert str(ROOT).encode() not in content, "it names a folder of the machine that made it"
    function = jax.export.deserialize(bytearray(content))
    assert function.platforms == ("cpu", "cuda", "tpu")
    for count in (1, 2):
        (found,) = session.run(None, {"frames": frames[:count]})
        np.testing.assert_allclose(found, expected[:count], **CLOSE)
        np.testing.assert_allclose(function.call(frames[:count]), expected[:count], **CLOSE)


# A frame that shrinks a little, by one halving, by two, by one of an odd size, that grows, and that stays.
@pytest.mark.quick
@pytest.mark.parametrize(
    ("frame", "view"), [(36, 32), (48, 32), (128, 32), (75, 32), (20, 32), (32, 32), (3, 1), (1, 4)]
)
def test_preprocessing_is_the_centre_view(frame, view):
    images = np.random.default_rng(frame).integers(0, 256, (2, frame, frame), np.uint8)
    preprocessing = Preprocessing(frame, view, mean=0.17, std=0.18)
    halved = images.astype(np.float64)
    for _ in range(preprocessing.halvings):
        edge = halved.shape[1] // 2
        halved = np.floor(halved[:, : 2 * edge, : 2 * edge].reshape(2, edge, 2, edge, 2).mean(axis=(2, 4)) + 0.5)
    weights = preprocessing.weights()
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    found = (weights @ halved @ weights.T / 255 - 0.17) / 0.18
    expected = centre_view(images, options=Augmentation(size=view, mean=0.17, std=0.18))
    np.testing.assert_allclose(found, np.asarray(expected)[..., 0], atol=1e-5)


@pytest.mark.peers
@pytest.mark.parametrize(
    ("arch", "strides", "frame"),
    [
        pytest.param("resnet50", "v1", 36, marks=pytest.mark.slow),
        pytest.param("resnet34", "v1.5", 75, marks=pytest.mark.release),
        pytest.param("resnet50", "v1.5", 128, marks=pytest.mark.release),
    ],
)
def test_onnx_and_torch_know_every_architecture(arch, strides, frame, tmp_path):
    model = make_resnet(arch, width_factor=0.0625, strides=strides)
    variables = jax.jit(lambda key: model.init(key, jnp.zeros((1, 32, 32, 1)), train=False))
    variables = randomised(jax.device_get(variables(jax.random.key(0))), 0)
    preprocessing = Preprocessing(frame, 33, mean=0.3, std=0.2)
    encoder = encoder_files.write(
        tmp_path,
        variables,
        arch=arch,
        width_factor=0.0625,
        strides=strides,
        preprocessing=preprocessing,
        formats=("safetensors", "onnx"),
        channels=1,
    )
    images = np.random.default_rng(0).integers(0, 256, (2, frame, frame), np.uint8)
    view = centre_view(images, options=Augmentation(size=33, mean=0.3, std=0.2))
    expected = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, view)
    assert expected.shape == (2, encoder["features"])
    (found,) = onnxruntime.InferenceSession(tmp_path / "encoder.onnx").run(None, {"frames": images})
    np.testing.assert_allclose(found, expected, **CLOSE)
    graph = onnx.load(tmp_path / "encoder.onnx").graph
    assert {array.name for array in graph.initializer} <= {name for node in graph.node for name in node.input}
    torch = pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("encoder_torch", tmp_path / "encoder_torch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with torch.no_grad():
        found = module.load()(torch.tensor(images)).numpy()
    np.testing.assert_allclose(found, expected, **CLOSE)
    with pytest.raises(ValueError, match="frames must be uint8"):
        module.load()(torch.tensor(images[:, 1:]))


def test_the_card_tells_what_the_run_tells(exported):
    card = re.sub(" +", " ", (exported / "README.md").read_text())  # a table is padded
    front = yaml.safe_load(card.split("---\n")[1])
    assert "license" not in front  # to be filled in
    assert "ultrasound" in front["tags"]
    for told in (
        "A ResNet-18 (width 0.0625, 0.04 M parameters) from grey ultrasound frames to 32 features",
        "| method | AWCL, fine anatomy",
        "| data | lab_frames (frames of the user's own), fingerprint `f00d` |",
        "| patients | Patients are a guess from the first folder, which nobody confirmed:",
        "trained on lab_frames (frames of the user's own) alone",
        "| train frames | 1,192 of 12 scans of 11 patients; 121 are labelled |",
        "| steps | 20 of 20 |",
        "model.width_factor = 0.0625",
        "| kNN accuracy | 0.125 (one patient) | 0.250 (one patient) | 0.625 (one patient) |",
        "62 frames of 6 patients",
    ):
        assert told in card
    assert card.count("TO FILL IN") == 4
    assert "phantom" not in card  # the default of a field that data.path replaces
    assert "simulated" not in card
    assert "torchvision.models" not in card  # it has no such width
    assert "/home" not in card  # paths of the training machine are nobody's business


def test_preprocessing_is_written_down(exported):
    said = json.loads((exported / "preprocessing.json").read_text())
    assert said["encoder"] == {
        **{"arch": "resnet18", "strides": "v1.5", "width_factor": 0.0625, "width": 4, "channels": 1},
        # Of conv1 and bn1 4 * 49 + 8, of the stages 608, 2,128, 8,352 and 33,088.
        **{"features": 32, "parameters": 44_380},
    }
    assert said["jax"] == jax.__version__
    assert f"| `encoder.jax` | frames | JAX {jax.__version__} or newer" in (exported / "README.md").read_text()
    assert said["frames"]["size"] == 48
    assert (said["input"]["size"], said["input"]["halvings"]) == (32, 1)  # 48 / 2 = 24 is nearer to 32 than 48 is
    assert (said["input"]["mean"], said["input"]["std"]) == (0.17, 0.18)
    with safe_open(exported / "encoder.safetensors", "np") as file:
        assert sum(file.get_tensor(name).size for name in file.keys() if "running" not in name) == 44_380  # noqa: SIM118


def test_earlier_checkpoints_card_omits_the_final_scores(run, tmp_path):
    export_encoder(run / "checkpoints" / "10", tmp_path / "out", formats=["safetensors"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "0.625" not in card
    assert "The run has no scores on test patients for this checkpoint (step 10)." in card
    assert "knn/macro_f1 0.375" in card
    assert "encoder.onnx" not in card
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [
        *("README.md", "encoder.safetensors", "encoder_torch.py", "preprocessing.json")
    ]
    later = load_torch_resnet(
        tmp_path / "out" / "encoder.safetensors", "resnet18", width_factor=0.0625, mean=0.17, std=0.18
    )
    assert not np.allclose(later["batch_stats"]["bn1"]["mean"], pretrain_variables(run)["batch_stats"]["bn1"]["mean"])


@pytest.mark.parametrize(("arch", "strides", "fits"), [("resnet18", "v1.5", True), ("resnet50", "v1", False)])
def test_torchvisions_network_is_named_where_it_fits(arch, strides, fits):
    settings = to_dict(fine.get_config("tiny"))
    encoder = {"arch": arch, "strides": strides, "width_factor": 1.0, "width": 64, "channels": 1}
    card = model_card(
        provenance(settings),
        encoder=encoder | {"features": 512, "parameters": 11_000_000},
        preprocessing=Preprocessing(224, 224, mean=0.17, std=0.18),
        formats=["safetensors"],
    )
    assert ("torchvision.models" in card) == fits


@pytest.mark.peers
def test_the_cards_torchvision_code_loads_the_weights(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    from types import ModuleType

    from tests.helpers.torch_resnet import TorchResNet

    class Theirs(TorchResNet):
        """Stands for torchvision's, which has `fc`, too."""

        def __init__(self):
            super().__init__("resnet18")
            self.fc = torch.nn.Linear(512, 1000)

    stub = ModuleType("torchvision")
    stub.models = ModuleType("torchvision.models")
    stub.models.resnet18 = Theirs
    monkeypatch.setitem(sys.modules, "torchvision", stub)
    model = make_resnet("resnet18")
    shapes = variable_shapes(model, 32, 1)
    variables = randomised(jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes), 0)
    save_torch_resnet(tmp_path / "encoder.safetensors", variables, mean=0.17, std=0.18)
    card = model_card(
        provenance(to_dict(fine.get_config("tiny"))),
        encoder={
            **{"arch": "resnet18", "strides": "v1.5", "width_factor": 1.0, "width": 64, "channels": 1},
            **{"features": 512, "parameters": 11_000_000},
        },
        preprocessing=Preprocessing(224, 224, mean=0.17, std=0.18),
        formats=["safetensors"],
    )
    _, code = sections(card)["PyTorch"]
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    found = names["network"].layer3[0].downsample[0].weight.detach().numpy()
    np.testing.assert_array_equal(
        found.transpose(2, 3, 1, 0), variables["params"]["layer3_0"]["downsample_conv"]["kernel"]
    )


@pytest.mark.quick
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["RUN", "--out=OUT", "--formats=onnx,tflite"], "got 'tflite'"),
        (["RUN", "--out=OUT", "--formats="], "got none"),
        (["RUN", "--out=OUT", "--channels=2"], "got 2"),
        (["none", "--out=OUT"], "none is not a run folder: it does not exist"),
        (["RUN/checkpoints/30", "--out=OUT"], "no checkpoint of step 30"),
        (["RUN", "--out=RUN"], "already exists and is not an empty folder"),
        (["RUN", "--out=RUN/config.json"], "already exists and is not an empty folder"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, said, run, tmp_path, capsys):
    before = sorted(run.iterdir())
    places = {"RUN": str(run), "OUT": str(tmp_path / "deep" / "out")}
    with pytest.raises(SystemExit) as left:
        main([re.sub("RUN|OUT", lambda name: places[name[0]], argument) for argument in arguments])
    assert left.value.code == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert said in err
    assert sorted(run.iterdir()) == before
    assert not any(tmp_path.iterdir())


def test_a_missing_package_is_named_before_anything_is_done(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"pip install 'awcl_jax\[export\]'"):
        export_encoder(run, tmp_path / "out")
    export_encoder(run, tmp_path / "out", formats=["jax", "jax"])
    assert "encoder.jax" in {file.name for file in (tmp_path / "out").iterdir()}


def test_a_failed_export_leaves_nothing(run, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(encoder_files, "write_json", full)
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="No space"):
        export_encoder(run, tmp_path / "out", formats=["safetensors"])
    assert [f.name for f in tmp_path.iterdir()] == ["out"]
    assert not any((tmp_path / "out").iterdir())


def test_help_is_whole_and_does_not_wait_for_jax():
    code = (
        "import sys\n"
        "from awcl_jax.export.command import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as left: assert left.code == 0\n"
        "assert not {'jax', 'onnx', 'numpy'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for word in ("RUN", "--out", "--formats", "--channels", *export.FORMATS, "checkpoints/500"):
        assert word in done.stdout


def test_the_command_lists_what_it_wrote(run, tmp_path, capsys):
    main([str(run), f"--out={tmp_path / 'out'}", "--formats=safetensors"])
    said = capsys.readouterr().out
    assert str(tmp_path / "out" / "encoder.safetensors") in said
    assert "Fill in the licences" in said


@pytest.mark.parametrize("command", ["export", "embed"])
def test_a_damaged_checkpoint_is_one_line_without_those_of_libraries(command, run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    latest = max((copy / "checkpoints").iterdir(), key=lambda folder: int(folder.name))
    shutil.rmtree(latest)
    latest.mkdir()
    arguments = [str(copy), *["pictures"] * (command == "embed"), f"--out={tmp_path / 'out.csv'}"]
    (tmp_path / "pictures").mkdir()
    cv2.imwrite(str(tmp_path / "pictures" / "a.png"), np.zeros((64, 64), np.uint8))
    done = subprocess.run(
        [sys.executable, "-m", f"awcl_jax.{command}", *arguments],
        cwd=tmp_path,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: The checkpoint of step {latest.name} in {copy / 'checkpoints'} is damaged")
