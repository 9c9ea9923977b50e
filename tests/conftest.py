"""What every test may use: the folders, a quiet matplotlib, no network, and the trained small model."""

import os
import random
import re
import shutil
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


# --- a browser -----------------------------------------------------------------------------------------------

CHROMIUM = os.environ.get("CHROMIUM") or next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    """Chromium, driven by playwright; the tests that need it are skipped where one of the two is missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra `dev`)")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: apt install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page that remembers in `page.wrong` what went wrong, and in `page.outside` what it asked of other machines."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    yield watched_page(context)
    context.close()


def watched_page(context):
    """A new page of this browser context, with the lists `wrong` and `outside`."""
    page = context.new_page()
    page.wrong, page.outside = [], []
    page.on("pageerror", lambda error: page.wrong.append(str(error)))

    def note(request):
        if not re.match(r"file:|data:|blob:|(http|ws)://(127\.0\.0\.1|localhost)[:/]", request.url):
            page.outside.append(request.url)

    page.on("request", note)
    return page
