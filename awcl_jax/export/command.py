"""Export the encoder of a run for use elsewhere: `python -m awcl_jax.export RUN --out=DIR`.

This writes, by `--formats`, `encoder.safetensors` (names of torchvision, or of timm for a ViT or ConvNeXt) with
`encoder_torch.py`, `encoder.onnx`, and `encoder.jax`; `preprocessing.json`, every step from a frame to the network's
input; and a model card, `README.md`.
"""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from awcl_jax import __version__
from awcl_jax.runtime import hub
from awcl_jax.runtime.arguments import Parser
from awcl_jax.runtime.cli import exit_on_bad_input, require_name, silence_libraries
from awcl_jax.runtime.errors import InputError
from awcl_jax.runtime.files import atomic_folder, vacant

FORMATS = ("safetensors", "onnx", "jax")


@exit_on_bad_input()
def main(argv: Sequence[str] | None = None) -> None:
    """Export the encoder that the arguments name."""
    args = _parser().parse_args(argv)
    formats = [name.strip() for name in args.formats.split(",") if name.strip()]
    require_name("RUN", args.run)
    require_name("--out", args.out)
    silence_libraries()
    if args.public and args.push is None:
        raise InputError("--public goes with --push=USER/NAME.")
    if args.push is not None:
        hub.require_push(args.push)
    out = Path(args.out).expanduser()
    export_encoder(args.run, out, formats=formats, channels=args.channels)
    for file in sorted(out.iterdir()):
        print(f"{file}  {file.stat().st_size / 1e6:.2f} MB")
    print(f"Fill in the licences in {out / 'README.md'} before you share it.")
    if args.push is not None:
        try:
            address = hub.push(out, args.push, public=args.public, message=f"Export of awcl_jax {__version__}")
        except InputError as error:
            raise InputError(
                f"{error} The export is complete in {out}. To push again, delete it or choose another --out."
            ) from None
        print(f"{'public' if args.public else 'private'}: {address}")


def export_encoder(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    formats: Sequence[str] = FORMATS,
    channels: int = 1,
) -> None:
    """Write the encoder of a run, without its projection, with its preprocessing and a model card.

    All files compute in float32, whatever type the run used.

    Args:
      checkpoint: folder of a run (its latest checkpoint), or of one of its checkpoints (`RUN/checkpoints/1000`);
        also on a bucket (`gs://BUCKET/FOLDER`).
      out: output folder; it may exist if it is empty. Its files appear when all are complete.
      formats: any of `FORMATS`.
      channels: input channels of the first kernel in the safetensors: 1, or 3 for programs that need 3.

    Raises:
      InputError: there is no such run or checkpoint; a format is unknown or its package missing; `out` is not empty.
      OSError: the files cannot be written.
    """
    formats = list(dict.fromkeys(formats))
    _check(formats, channels)
    out = Path(out).resolve()
    if not vacant(out):
        raise InputError(f"{out} already exists and is not an empty folder. Choose another --out.")
    # Imported here, so that --help and bad arguments do not wait for JAX.
    from awcl_jax.config.trained import find_checkpoint

    run, step = find_checkpoint(checkpoint)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(out) as part:
        _write(run, step, part, formats, channels)


def _check(formats: Sequence[str], channels: int) -> None:
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        found = ", ".join(map(repr, unknown)) or "none"
        raise InputError(f"--formats must be any of {','.join(FORMATS)}, separated by commas; got {found}.")
    if channels not in (1, 3):
        raise InputError(f"--channels must be 1 (as trained) or 3; got {channels}.")
    if "onnx" in formats and importlib.util.find_spec("onnx") is None:
        raise InputError(
            "The format onnx needs the package onnx. Run pip install 'awcl_jax[export]', or remove it from --formats."
        )


def _write(run: Path, step: int, folder: Path, formats: Sequence[str], channels: int) -> None:
    from awcl_jax.config.fields import to_dict
    from awcl_jax.config.trained import read_config, read_variables
    from awcl_jax.data import about
    from awcl_jax.export import encoder_files, model_card
    from awcl_jax.export.preprocessing import Preprocessing
    from awcl_jax.models.vit import ViTOptions
    from awcl_jax.train import run_folder

    config = read_config(run)
    variables = read_variables(run, step, config)
    stored, results = run_folder.read_run_config(run), run_folder.read_results(run)
    settings = to_dict(config)
    flat = dict(run_folder.flattened(settings))
    datasets = about.of_run(flat, stored.get("datasets"), results.get("datasets"))
    preprocessing = Preprocessing(
        config.data.size,
        config.augment.size,
        config.augment.mean,
        config.augment.std,
        mask_overlays=config.data.mask_overlays,
        aspect=run_folder.read_aspect(run),
        region=datasets[0].region,
    )
    encoder = encoder_files.write(
        folder,
        {name: tree["encoder"] for name, tree in variables.items()},
        arch=config.model.arch,
        width_factor=config.model.width_factor,
        strides=config.model.strides,
        preprocessing=preprocessing,
        formats=formats,
        channels=channels,
        vit=ViTOptions(**config.model.vit.to_dict()),
    )
    made_of = model_card.Provenance(
        settings=settings,
        fields=about.recorded_fields(flat, run_folder.shared_fields(settings)),
        datasets=datasets,
        fingerprint=stored["data"],
        step=step,
        results=results,
        validation=_validation(run, step),
        version=__version__,
    )
    card = model_card.model_card(made_of, encoder=encoder, preprocessing=preprocessing, formats=formats)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _validation(run: Path, step: int) -> dict[str, float]:
    """Return the scores on validation patients of the run at this step."""
    from awcl_jax.train.metrics import METRICS_FILE, read_metrics

    path = run / METRICS_FILE
    lines = read_metrics(path) if path.is_file() else []
    return {k: v for line in lines if line["step"] == step for k, v in line.items() if k.startswith("val/")}


def _parser() -> Parser:
    parser = Parser(
        prog="python -m awcl_jax.export",
        description="Export the encoder of a run, without its projection, with its preprocessing and a model card.\n\n"
        "  safetensors  weights under the names of torchvision (ResNet) or timm (ViT, ConvNeXt), and the\n"
        "               network in PyTorch\n"
        "  onnx         a graph for ONNX Runtime and others, with preprocessing\n"
        "  jax          a function that JAX runs without this package on CPU, GPU and TPU, with preprocessing",
        epilog="examples:\n"
        "  python -m awcl_jax.export runs/20260101-120000-fine --out=exported\n"
        "  python -m awcl_jax.export runs/20260101-120000-fine/checkpoints/500 --out=exported --formats=onnx\n"
        "  python -m awcl_jax.export runs/20260101-120000-fine --out=exported --push=lab/ultrasound-encoder",
    )
    parser.add_argument(
        "run",
        metavar="RUN",
        help="folder of a run, or of one of its checkpoints (RUN/checkpoints/500); "
        "also on a bucket (gs://BUCKET/FOLDER)",
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="output folder, new or empty")
    parser.add_argument(
        "--formats", metavar="NAMES", default=",".join(FORMATS), help="formats to write (default: %(default)s)"
    )
    parser.add_argument(
        "--channels",
        type=int,
        default=1,
        metavar="N",
        help="input channels of the first kernel in the safetensors: 1, or 3 (the same grey in each) for programs "
        "that need 3 (default: %(default)s)",
    )
    parser.add_argument(
        "--push",
        metavar="USER/NAME",
        help="also upload the folder to this model on the Hugging Face hub, which is created, private, if it does not "
        "exist; needs awcl_jax[hub], and you to sign in (hf auth login)",
    )
    parser.add_argument(
        "--public", action="store_true", help="with --push: create a public model, or upload to one that is public"
    )
    return parser
