"""What every test may use: the folders, a quiet matplotlib, no network, and the trained small model."""

import os
import random
import sys
from pathlib import Path

# Before transformers is imported anywhere: nothing in this repository needs the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("agg")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def tiny_folder() -> Path:
    """The folder of the trained small model."""
    return ROOT / "assets" / "tiny-paligemma"


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    """(model, processor) of the trained small model, loaded once: leave it as you found it."""
    from paligemma import load_pretrained

    return load_pretrained(str(tiny_folder))


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def close_figures():
    """No figure outlives its test."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        import matplotlib.pyplot as plt

        plt.close("all")
