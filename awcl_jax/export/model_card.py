"""The model card beside an exported encoder, filled from its run."""

import dataclasses
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from awcl_jax.data.about import About, apart, is_cut
from awcl_jax.data.square import LETTERBOX, SQUASH
from awcl_jax.evaluate.scores import Score
from awcl_jax.evaluate.table import results_table
from awcl_jax.export.preprocessing import Preprocessing

_METHODS = {
    "anatomy": "AWCL, {granularity} anatomy: frames of one anatomy attract each other, whichever scan they are of; "
    "a frame without a label attracts its own second view",
    "scan": "patient metadata: frames of one scan attract each other",
    "frame": "SimCLR: the two views of a frame attract each other",
}

_HEAD = """\
---
# license: TO FILL IN
library_name: awcl_jax
pipeline_tag: image-feature-extraction
tags:
- ultrasound
- contrastive-learning
- feature-extraction
- jax
---

# Ultrasound encoder {name}

A {title} (width {width_factor:g}, {millions:.2f} M parameters) from grey ultrasound frames to {features} features,
pretrained with awcl_jax {version}.

{cut}{masking}{resize}
All later steps are in `preprocessing.json` and, except for
`encoder.safetensors`, inside the files.

## Files

| file | input | use |
|---|---|---|
{files}
| `preprocessing.json` | | every step from a frame to the network's input |

Frames are grey, uint8 [b, {size}, {size}], from 0 to 255, any number b of them. Features are float32
[b, {features}]: {pooled}, not of unit length. The arithmetic is float32; accelerators may round products
further."""

_CUT = """\
Its training frames are a part of their pictures, by `--region={region}` of `awcl_jax.ingest`. Cut yours in the same
way: features of whole pictures are others. `python -m awcl_jax.embed` does so by itself.

"""

_MASKING = """\
Before all else, what is outside of a frame's sector (text, marks) is set to 0, by a search that only awcl_jax has:
`awcl_jax.data.sector.mask_overlays(frame)` for a grey frame, uint8 [h, w]. Without it the features are others.

"""

_RESIZE = {
    SQUASH: """\
A frame is read as grey and resized to {size} x {size} pixels without keeping its aspect ratio. With OpenCV:
`cv2.resize(cv2.imread(path, cv2.IMREAD_GRAYSCALE), ({size}, {size}), interpolation=cv2.INTER_AREA)`, or with
`cv2.INTER_LINEAR` if height or width grows.""",
    LETTERBOX: """\
A frame is read as grey, resized so that its longer edge has {size} pixels, which keeps its aspect ratio, and padded
with black to {size} x {size} pixels. With OpenCV:

```python
import cv2
import numpy as np

frame = cv2.imread("frame.png", cv2.IMREAD_GRAYSCALE)  # yours
height, width = (max(1, round(edge * {size} / max(frame.shape))) for edge in frame.shape)
how = cv2.INTER_AREA if max(frame.shape) >= {size} else cv2.INTER_LINEAR
top, left = ({size} - height) // 2, ({size} - width) // 2
square = np.zeros(({size}, {size}), np.uint8)
square[top : top + height, left : left + width] = cv2.resize(frame, (width, height), interpolation=how)
```
""",
}

_FILES = {
    "safetensors": """\
| `encoder.safetensors` | float32 [b, {channels}, {inner}, {inner}]: (grey / 255 - {mean:g}) / {std:g} | weights under \
{names}'s names, for PyTorch and awcl_jax |
| `encoder_torch.py` | frames | the network and its preprocessing in PyTorch |""",
    "onnx": "| `encoder.onnx` | frames | ONNX Runtime and others (opset 17) |",
    "jax": "| `encoder.jax` | frames | JAX {jax} or newer alone, on CPU, NVIDIA GPU and TPU |",
}

_USE = {
    "safetensors": """\
## PyTorch

```python
import numpy as np
import torch
from encoder_torch import load  # of this folder

frames = np.zeros((2, {size}, {size}), np.uint8)  # yours: grey, resized
encoder = load()
with torch.no_grad():
    features = encoder(torch.from_numpy(frames)).numpy()
```
{elsewhere}
## awcl_jax

{awcl_jax}""",
    "onnx": """\
## ONNX Runtime

```python
import numpy as np
import onnxruntime

frames = np.zeros((2, {size}, {size}), np.uint8)  # yours: grey, resized
encoder = onnxruntime.InferenceSession("encoder.onnx")
(features,) = encoder.run(None, {{"frames": frames}})
```""",
    "jax": """\
## JAX

```python
from pathlib import Path

import numpy as np
from jax import export

frames = np.zeros((2, {size}, {size}), np.uint8)  # yours: grey, resized
encoder = export.deserialize(bytearray(Path("encoder.jax").read_bytes()))
features = encoder.call(frames)
```""",
}

_OF_RESNET = """\
```python
from awcl_jax.models.weights import load_torch_resnet

variables = load_torch_resnet(
    "encoder.safetensors", "{arch}", width_factor={width_factor}, mean={mean}, std={std}
)
```"""

_OF_FOLDER = """\
```python
import numpy as np
from awcl_jax.embed import load_encoder

frames = np.zeros((2, {size}, {size}), np.uint8)  # yours: grey, of any size
features = load_encoder(".")(frames)  # of this folder
```"""

_TIMM = """
The weights also fit timm's network; preprocess its input as in `preprocessing.json`:

```python
import functools

import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

network = VisionTransformer(
    img_size={inner},
    in_chans={channels},
    num_classes=0,
    patch_size={patch},
    embed_dim={width},
    depth={depth},
    num_heads={heads},
    reg_tokens={registers},
    no_embed_class={has_registers},
    init_values={init_values},
    pre_norm={pre_norm},
    global_pool="{global_pool}",
    norm_layer=functools.partial(torch.nn.LayerNorm, eps={epsilon}),
    act_layer="{activation}",
)
network.load_state_dict(load_file("encoder.safetensors"), strict=True)
network.eval()
```
"""

_TIMM_ROTARY = """
The weights also fit timm's network, of a version with DINOv3; preprocess its input as in `preprocessing.json`:

```python
import functools

import torch
from safetensors.torch import load_file
from timm.models.eva import Eva

network = Eva(
    img_size={inner},
    in_chans={channels},
    num_classes=0,
    patch_size={patch},
    embed_dim={width},
    depth={depth},
    num_heads={heads},
    num_reg_tokens={registers},
    init_values={init_values},
    use_abs_pos_emb=False,
    use_rot_pos_emb=True,
    rope_type="dinov3",
    rope_temperature=100,
    rope_rotate_half=True,
    global_pool="{global_pool}",
    use_fc_norm={norm_after},
    norm_layer=functools.partial(torch.nn.LayerNorm, eps={epsilon}),
)
network.load_state_dict(load_file("encoder.safetensors"), strict=True)
network.eval()
```
"""

_TIMM_CONVNEXT = """
The weights also fit timm's network; preprocess its input as in `preprocessing.json`:

```python
import timm
from safetensors.torch import load_file

network = timm.create_model("{arch}", in_chans={channels}, num_classes=0, dims={dims})
network.load_state_dict(load_file("encoder.safetensors"), strict=True)
network.eval()
```
"""

_TORCHVISION = """
The weights also fit torchvision's network; preprocess its input as in `preprocessing.json`:

```python
import torch
import torchvision
from safetensors.torch import load_file

network = torchvision.models.{arch}()
network.conv1 = torch.nn.Conv2d({channels}, 64, 7, 2, 3, bias=False)
network.fc = torch.nn.Identity()
network.load_state_dict(load_file("encoder.safetensors"))
network.eval()
```
"""

_LIMITS = """\
## Intended use and limits

For research: features of frames like those that it was trained on, for classifiers, for retrieval, or as a start for
fine-tuning. It is not a medical device, and nothing here was validated for clinical use.

- It was trained on {dataset} alone. Features may be poor for other machines, presets, probes, body regions and
  populations: test them on your own patients before you rely on them.{simulated}
- {overlays}
- The network sees {inner} x {inner} pixels of a frame: smaller details are lost.
- The scores above are for one split and one seed. Their intervals cover the test patients, not other seeds or
  hospitals.

## Licence and contact

- licence of these weights: TO FILL IN (and at the top of this file; consider the licence of the data)
- licence of the training data: TO FILL IN
- who trained it, and contact: TO FILL IN

Method: Fu, Jiao, Yasrab, Drukker, Papageorghiou, Noble: Anatomy-Aware Contrastive Representation Learning for Fetal
Ultrasound. ECCV 2022 workshops."""

_OVERLAYS = {
    False: "Frames have burnt-in text and marks, which an encoder may use instead of the anatomy.",
    True: "Text and marks outside of the sector were removed; an encoder may use those inside instead of the anatomy.",
}
_SIMULATED = "\n- Its training frames are simulated: expect little of these features on real frames."


@dataclasses.dataclass(frozen=True, eq=False)
class Provenance:
    """Where an encoder comes from.

    Attributes:
      settings: configuration of the run, as plain values.
      fields: the fields that affect the results, such as `data.size`; without paths, because a card is shared.
      datasets: that it was trained on, the labelled one first.
      fingerprint: of the dataset.
      step: of the checkpoint.
      results: the run's `results.json`; empty if there is none yet.
      validation: scores on validation patients at this step, by name; empty if there are none.
      version: of this package.
    """

    settings: Mapping[str, Any]
    fields: Mapping[str, Any]
    datasets: Sequence[About]
    fingerprint: str
    step: int
    results: Mapping[str, Any]
    validation: Mapping[str, float]
    version: str


def model_card(
    made_of: Provenance, *, encoder: Mapping[str, Any], preprocessing: Preprocessing, formats: Sequence[str]
) -> str:
    """Return the text of `README.md`: inputs and outputs of each file, how to load it, its training, its scores.

    Args:
      made_of: the run.
      encoder: as `encoder_files.write` returns it.
      preprocessing: of the frames.
      formats: which of `safetensors`, `onnx` and `jax` were written.
    """
    values = {
        **encoder,
        "name": made_of.settings["name"],
        "version": made_of.version,
        "jax": jax.__version__,
        "millions": encoder["parameters"] / 1e6,
        "size": preprocessing.frame_size,
        "inner": preprocessing.input_size,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "dataset": _names(made_of.datasets),
        "simulated": _SIMULATED if all(dataset.kind == "simulated" for dataset in made_of.datasets) else "",
    }
    cut = is_cut(preprocessing.region)
    values["overlays"] = textwrap.fill(_OVERLAYS[cut or preprocessing.mask_overlays], 118, subsequent_indent="  ")
    values["cut"] = _CUT.format(region=preprocessing.region) if cut else ""
    values["masking"] = _MASKING if preprocessing.mask_overlays else ""
    values["resize"] = _RESIZE[preprocessing.aspect].format(**values)
    of_kind = _of_vit if "vit" in encoder else _of_convnext if "stages" in encoder else _of_resnet
    values |= of_kind(values)
    values["files"] = "\n".join(_FILES[name].format(**values) for name in formats)
    sections = [
        _HEAD.format(**values),
        *(_USE[name].format(**values) for name in formats),
        _training(made_of),
        _scores(made_of),
        _LIMITS.format(**values),
    ]
    return "\n\n".join(sections) + "\n"


def _of_resnet(values: Mapping[str, Any]) -> dict[str, str]:
    """Return what a card says of a ResNet."""
    # torchvision has one width only, and no ResNet-50 of version 1.
    theirs = values["width"] == 64 and (values["arch"] != "resnet50" or values["strides"] == "v1.5")
    return {
        "title": values["arch"].replace("resnet", "ResNet-"),
        "pooled": "the mean of the last maps",
        "names": "torchvision",
        "awcl_jax": _OF_RESNET.format(**values),
        "elsewhere": _TORCHVISION.format(**values) if theirs else "",
    }


def _of_vit(values: Mapping[str, Any]) -> dict[str, str]:
    """Return what a card says of a vision transformer."""
    options = values["vit"]
    token, mean = "the class token", "the mean of the patches"
    more = {
        **options,
        "has_registers": options["registers"] > 0,
        "init_values": 1e-5 if options["layer_scale"] else None,
        "global_pool": "avg" if options["pool"] == "mean" else "token",
    }
    if options["rotary"]:
        code, theirs = _TIMM_ROTARY, options["pool"] != "both" and options["activation"] == "gelu"
    else:
        # timm averages patches before the last normalisation only.
        code, theirs = _TIMM, options["pool"] == ("mean" if options["norm_after"] else "token")
    return {
        "title": f"ViT-{values['arch'].removeprefix('vit_')[0].upper()}/{options['patch']}",
        "pooled": {"token": token, "mean": mean, "both": f"{token} and {mean}"}[options["pool"]],
        "names": "timm",
        "awcl_jax": _OF_FOLDER.format(**values),
        "elsewhere": code.format(**values, **more) if theirs else "",
    }


def _of_convnext(values: Mapping[str, Any]) -> dict[str, str]:
    """Return what a card says of a ConvNeXt."""
    version, _, size = values["arch"].removeprefix("convnext").partition("_")
    dims = tuple(values["width"] * 2**stage for stage in range(len(values["stages"])))
    return {
        "title": f"ConvNeXt{' V2' if version else ''}-{size[0].upper()}",
        "pooled": "the layer norm of the last maps' mean",
        "names": "timm",
        "awcl_jax": _OF_FOLDER.format(**values),
        "elsewhere": _TIMM_CONVNEXT.format(**values, dims=dims),
    }


def _training(made_of: Provenance) -> str:
    settings = made_of.settings
    optim = settings["optim"]
    granularity = "fine and coarse" if settings["granularity"] == "both" else settings["granularity"]
    rows = {"method": _METHODS[settings["positives"]].format(granularity=granularity)}
    if settings["queue"]["size"]:
        queue = settings["queue"]
        rows["queue"] = f"{queue['size']:,} keys of a momentum encoder (as MoCo v2), momentum {queue['momentum']:g}"
    if initial := made_of.results.get("initial"):
        source = initial["source"].rpartition("/")[2]  # without the folders of who trained it
        rows["started from"] = f"{source}: {initial['loaded']}; new: {initial['new']}"
    if settings["positives"] == "anatomy":
        rows["labels used"] = f"{settings['anatomy_ratio']:.0%} of the labelled frames"
    rows |= {
        "data": f"{_names(made_of.datasets)}, fingerprint `{made_of.fingerprint}`",
        "patients": apart(made_of.datasets),
        **{f"{part} frames": _count(**counts) for part, counts in made_of.results.get("frames", {}).items()},
        "steps": f"{made_of.step:,} of {settings['train']['steps']:,}",
        "batch": f"{settings['sampler']['batch_size']} frames, each in two views",
        "temperature": f"{settings['loss']['temperature']:g}",
        "optimiser": f"{optim['name']}, weight decay {optim['weight_decay']:g}",
        "learning rate": f"{optim['learning_rate']:g}, {optim['schedule']}",
        "seed": f"{settings['seed']}",
    }
    table = [f"| {title} | {value} |" for title, value in rows.items()]
    everything = [f"{field} = {json.dumps(value)}" for field, value in made_of.fields.items()]
    listed = ["All settings that affect the results:", "", "```", *everything, "```"]
    return "\n".join(["## Training", "", "| | |", "|---|---|", *table, "", *listed])


def _names(datasets: Sequence[About]) -> str:
    return " and ".join(dataset.title for dataset in datasets)


def _count(*, frames: int, labelled: int, scans: int, patients: int) -> str:
    return f"{frames:,} of {scans:,} scans of {patients:,} patients; {labelled:,} are labelled"


def _scores(made_of: Provenance) -> str:
    results = made_of.results if made_of.results.get("steps") == made_of.step else {}
    columns = {
        name: [_score(title, fields) for title, fields in results[name].items()]
        for name in ("pixels", "untrained", "trained")
        if results.get(name)  # of a run without labels they are empty
    }
    parts = ["## Scores", "\n".join(f"- {line}" for line in results.get("verdict", ()))]
    if columns:
        granularity = made_of.settings["eval"]["granularity"]
        text = (
            f"Frozen features of test patients, classified by {granularity} anatomy. `pixels` are frames of 24 x 24\n"
            "pixels, `untrained` is the encoder before the first step, and `trained` is this one."
        )
        return "\n\n".join(filter(None, [*parts, text, results_table(columns)]))
    text = f"The run has no scores on test patients for this checkpoint (step {made_of.step:,})."
    if made_of.validation:
        listed = ", ".join(f"{name.removeprefix('val/')} {value:.3f}" for name, value in made_of.validation.items())
        text += f" On the validation patients, which may be used to select a checkpoint: {listed}."
    return "\n\n".join(filter(None, [*parts, text]))


def _score(name: str, fields: Mapping[str, Any]) -> Score:
    # JSON has no NaN: the ends of an interval are null if there is only one patient to sample.
    values: dict[str, Any] = {key: math.nan if value is None else value for key, value in fields.items()}
    return Score(name, **values)
