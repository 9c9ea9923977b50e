"""The course in a real browser: JupyterLab runs chapters, the viewer answers its slider, the site shows everything.

Needs Chromium (any of the usual names, or its path in CHROMIUM) and playwright, which drives it; skipped without.
Nothing is written into the repository: the notebooks are copied to a temporary folder, without their outputs.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

SETTINGS = {
    # no question about news, and every cell in the page, also those out of sight
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    "notebook-extension/tracker": {"windowingMode": "none"},
}
MINUTES = 60_000  # playwright counts in milliseconds


# --- JupyterLab ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(root, tmp_path_factory):
    """Address of a JupyterLab that shows a copy of the chapters, with settings and state of its own."""
    home = tmp_path_factory.mktemp("lab")
    folder = home / "course"
    (folder / "notebooks").mkdir(parents=True)
    shutil.copytree(root / "assets", folder / "assets")
    for path in (root / "notebooks").glob("[0-9]*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                cell.update(outputs=[], execution_count=None)
        (folder / "notebooks" / path.name).write_text(json.dumps(notebook), encoding="utf-8")
    for name, values in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")
    names = ["JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR"]
    environment = {**os.environ, **{name: str(home / name.lower()) for name in names}}
    environment["JUPYTERLAB_SETTINGS_DIR"] = str(home / "settings")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}", "--IdentityProvider.token=course", f"--ServerApp.root_dir={folder}",
    ]  # fmt: skip
    with open(home / "log", "w", encoding="utf-8") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/api?token=course", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (home / "log").read_text(encoding="utf-8")
                time.sleep(0.5)
        else:
            raise AssertionError("JupyterLab did not start:\n" + (home / "log").read_text(encoding="utf-8"))
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


def open_and_run(page, lab, root, name):
    """Open a chapter, run all its cells, and assert that each ran and none failed."""
    path = root / "notebooks" / f"{name}.ipynb"
    if not path.exists():
        pytest.skip(f"notebooks/{name}.ipynb is not there")
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    count = sum(bool("".join(cell["source"]).strip()) for cell in cells)
    page.set_default_timeout(2 * MINUTES)
    page.goto(f"{lab}/lab/tree/notebooks/{name}.ipynb?token=course&reset")
    page.locator("#jp-main-statusbar").get_by_text("Idle").wait_for()
    page.locator(".jp-Notebook .jp-Cell").first.click()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    prompts = page.locator(".jp-Notebook .jp-CodeCell .jp-InputPrompt")
    prompts.filter(has_text=re.compile(rf"^\[{count}\]:$")).wait_for(timeout=5 * MINUTES)
    page.locator("#jp-main-statusbar").get_by_text("Idle").wait_for()
    errors = page.locator('.jp-RenderedText[data-mime-type="application/vnd.jupyter.error"]')
    assert errors.all_inner_texts() == []
    return sum(any("image/png" in out.get("data", {}) for out in cell["outputs"]) for cell in cells)


def test_chapter_03_runs_in_jupyterlab(page, lab, root):
    figures = open_and_run(page, lab, root, "03_attention")
    pictures = page.locator(".jp-OutputArea img")
    assert pictures.count() >= figures >= 1
    assert all(pictures.evaluate_all("images => images.map(i => i.complete && i.naturalWidth > 50)"))
    assert page.locator(".jp-RenderedMarkdown mjx-container").count() > 0, "formulas are not rendered"
    assert page.wrong == []


def test_viewer_of_chapter_14_answers_its_slider(page, lab, root):
    """A slider moved one step with the arrow key draws another picture."""
    open_and_run(page, lab, root, "14_attention_maps")
    viewer = page.locator(".jp-CodeCell", has=page.locator(".noUi-handle")).first
    viewer.scroll_into_view_if_needed()
    viewer.locator("img").first.wait_for()
    sources = "images => images.map(image => image.src)"
    before = viewer.locator("img").evaluate_all(sources)
    value = viewer.locator(".widget-readout").first.inner_text()
    handle = viewer.locator(".noUi-handle").first
    handle.focus()
    # away from the end at which the slider stands
    lowest, now = (float(handle.get_attribute(name)) for name in ("aria-valuemin", "aria-valuenow"))
    handle.press("ArrowRight" if now == lowest else "ArrowLeft")
    deadline = time.monotonic() + 60
    while (after := viewer.locator("img").evaluate_all(sources)) in (before, []) and time.monotonic() < deadline:
        page.wait_for_timeout(200)
    assert viewer.locator(".widget-readout").first.inner_text() != value, "the slider did not move"
    assert after and after != before, "the slider moved and the picture stayed the same"
    assert page.locator('.jp-RenderedText[data-mime-type="application/vnd.jupyter.error"]').count() == 0
    assert page.wrong == []


# --- the site ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(root, tmp_path_factory):
    """The site, built as `make site` builds it: with every warning an error."""
    pytest.importorskip("sphinx", reason="Sphinx is not installed (extra `site`)")
    pytest.importorskip("myst_nb", reason="myst-nb is not installed (extra `site`)")
    if len(list((root / "notebooks").glob("[0-9]*.ipynb"))) < 17:
        pytest.skip("not all chapters are there, and the pages link to all of them")
    folder = tmp_path_factory.mktemp("pages") / "site"
    command = [sys.executable, str(root / "docs" / "build.py"), "--output", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


def test_site_has_every_chapter_and_a_working_front_page(site, root):
    for path in (root / "notebooks").glob("[0-9]*.ipynb"):
        html = (site / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
        article = re.search(r"<article.*?</article>", html, re.S)[0]
        assert article.count("<h1") == 1
    assert "docs/index.html" in (site / "index.html").read_text(encoding="utf-8")
    assert (site / "searchindex.js").exists()


def test_site_shows_figures_and_formulas_offline(page, site):
    for name in ("notebooks/03_attention", "notebooks/14_attention_maps", "docs/notation", "docs/figures"):
        page.goto((site / f"{name}.html").as_uri())
        page.wait_for_load_state("load")
        if name in ("notebooks/03_attention", "docs/notation"):
            page.locator("mjx-container").first.wait_for(state="attached")  # it may lie in a folded answer
            assert page.locator("mjx-merror").count() == 0, f"{name}: a formula doesn't parse"
        pictures = page.locator("article img")
        if name != "docs/notation":
            pictures.evaluate_all("images => images.forEach(image => image.loading = 'eager')")
            page.wait_for_function("[...document.querySelectorAll('article img')].every(i => i.complete)")
            widths = pictures.evaluate_all("images => images.map(image => image.naturalWidth)")
            assert widths and min(widths) > 0, f"{name}: a picture is missing"
    assert page.wrong == []
    assert page.outside == [], "the site asks other machines for something"


def test_every_formula_of_the_site_parses(page, site):
    for path in sorted(site.glob("notebooks/*.html")) + sorted(site.glob("docs/*.html")):
        formulas = path.read_text(encoding="utf-8").count('class="math ')
        page.goto(path.as_uri())
        if formulas:
            page.locator("mjx-container").first.wait_for(state="attached")  # it may lie in a folded answer
            page.wait_for_function("n => document.querySelectorAll('mjx-container').length >= n", arg=formulas)
        assert page.locator("mjx-merror").count() == 0, f"{path.name}: a formula doesn't parse"


def test_index_of_figures_counts_all(site, root):
    """Every figure of every chapter stands in the index, once, with its words."""
    html = (site / "docs" / "figures.html").read_text(encoding="utf-8")
    count = 0
    for path in (root / "notebooks").glob("[0-9]*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            count += sum("image/png" in out.get("data", {}) for out in cell.get("outputs", []))
    alts = re.findall(r'<img alt="([^"]{20,})"[^>]*src="\.\./_images/', html)
    assert len(alts) == count
