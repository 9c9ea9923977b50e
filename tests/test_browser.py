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
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

SETTINGS = {
    # no question about news, and every cell in the page, also those out of sight
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    "notebook-extension/tracker": {"windowingMode": "none"},
}
START = "--LabApp.default_url=/lab/tree/notebooks/00_tour.ipynb"  # as in the Makefile and the README
MADE = {"docs/figures.md", "explorer/index.html"}  # by `make site` alone
LINK = re.compile(r"(?<!!)\[[^\]]+\]\((?!https?:|#|mailto:|attachment:)([^)#\s]+)")
MINUTES = 60_000  # playwright counts in milliseconds


# --- JupyterLab ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(root, tmp_path_factory):
    """Address of a JupyterLab started as `make course` does, in a copy, with settings and state of its own."""
    home = tmp_path_factory.mktemp("lab")
    folder = home / "the course 과정"
    (folder / "notebooks").mkdir(parents=True)
    for name in ("assets", "docs", "paligemma", "notebooks/exercises", "notebooks/solutions"):
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [root / name for name in ("README.md", "LICENSE", "NOTICE", "CITATION.cff", "Makefile")]:
        shutil.copy(path, folder)
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
        f"--ServerApp.port={port}", "--IdentityProvider.token=course", START,
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


def links(root):
    """(the page, what it links to), both from the repository's root, for every notebook and page."""
    pages = [*root.glob("notebooks/**/[0-9]*.ipynb"), *root.glob("docs/*.md"), *root.glob("assets/**/*.md")]
    for path in [*pages, root / "README.md"]:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            cells = json.loads(text)["cells"]
            text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        for target in LINK.findall(re.sub(r"```.*?```", "", text, flags=re.S)):
            there = os.path.normpath(path.parent / target.strip("<>"))
            yield path.relative_to(root).as_posix(), Path(there).relative_to(root).as_posix()


def test_every_link_leads_somewhere_in_jupyterlab(lab, root):
    """The server, which resolves a clicked link, has each file."""
    found = {pair for pair in links(root) if pair[1] not in MADE}
    assert len({page for page, _ in found}) >= 40
    dead = []
    for target in sorted({target for _, target in found}):
        address = f"{lab}/api/contents/{urllib.parse.quote(target)}?content=0&token=course"
        try:
            urllib.request.urlopen(address, timeout=60).close()
        except urllib.error.HTTPError as error:
            dead += [f"{page} -> {target}: {error.code}" for page, linked in found if linked == target]
    assert not dead, "\n".join(dead)


def test_a_click_on_a_link_opens_the_file(page, lab, root):
    """From a chapter to the package, to a page of the documentation and to an exercise."""
    wanted = {}
    for chapter, target in sorted(links(root)):
        if re.fullmatch(r"notebooks/\d\d_\w+\.ipynb", chapter) and target not in MADE:
            wanted.setdefault(target.split("/")[0], (chapter, target))
    assert {"paligemma", "notebooks"} <= wanted.keys()
    page.set_default_timeout(2 * MINUTES)
    for chapter, target in wanted.values():
        page.goto(f"{lab}/lab/tree/{chapter}?token=course&reset")
        page.locator("#jp-main-statusbar").get_by_text("Idle").wait_for()
        link = page.locator(f'.jp-RenderedMarkdown a[href*="{target.split("/")[-1]}"]').first
        link.scroll_into_view_if_needed()
        link.click()
        page.locator(".lm-TabBar-tabLabel").get_by_text(target.split("/")[-1], exact=True).wait_for()
    assert page.wrong == []


def test_commands_start_jupyterlab_in_the_repository(root):
    """Its root must hold docs/ and paligemma/, so no command names a folder or starts inside notebooks/."""
    for name in ("Makefile", "README.md", "environment.yml", "docs/teaching.md", "docs/questions.md"):
        text = (root / name).read_text(encoding="utf-8").replace("$(FIRST)", "notebooks/00_tour.ipynb")
        assert not re.search(r"jupyter lab [^|`\n]*(?<!/lab/tree/)notebooks", text), name
    for name in ("Makefile", "README.md", "environment.yml"):
        assert START in (root / name).read_text(encoding="utf-8").replace("$(FIRST)", "notebooks/00_tour.ipynb"), name


# --- the site ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(root, tmp_path_factory):
    """The site, built as `make site` builds it: with every warning an error."""
    pytest.importorskip("sphinx", reason="Sphinx is not installed (extra `site`)")
    pytest.importorskip("myst_nb", reason="myst-nb is not installed (extra `site`)")
    if len(list((root / "notebooks").glob("[0-9]*.ipynb"))) < 18:
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


def test_every_link_of_the_site_leads_somewhere(site):
    dead = []
    for path in [*site.glob("*.html"), *site.glob("notebooks/**/*.html"), *site.glob("docs/*.html")]:
        for target in re.findall(
            r'(?:href|src)="(?!https?:|data:|mailto:|#|javascript:)([^"#?]+)', path.read_text("utf-8")
        ):
            if not (path.parent / urllib.parse.unquote(target)).exists():
                dead.append(f"{path.relative_to(site)} -> {target}")
    assert not dead, "\n".join(dead)


def test_site_says_what_each_figure_shows_and_leaves_solutions_out_of_the_search(site, root):
    for path in (root / "notebooks").glob("[0-9]*.ipynb"):
        html = (site / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
        article = re.search(r"<article.*?</article>", html, re.S)[0]
        for alt in re.findall(r'<img alt="([^"]*)"', article):
            assert len(alt) >= 10 and "_images" not in alt, f"{path.name}: alt text {alt!r}"
        assert "NBVAL" not in article and "(children=(" not in article, path.name
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    titles = json.loads(index[index.index("{") : index.rindex("}") + 1])["titles"]
    assert not any("Solutions" in title for title in titles)
    solution = (site / "notebooks" / "solutions" / "06_rmsnorm.html").read_text(encoding="utf-8")
    assert "Solutions:" in solution


def test_excerpts_of_the_search_are_of_the_text(page, site):
    """Over HTTP, since a page from a file may fetch no other page."""
    server = subprocess.Popen(
        [sys.executable, "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(site)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        port = re.search(r"port (\d+)", server.stdout.readline())[1]
        page.goto(f"http://127.0.0.1:{port}/search.html?q=RoPE")
        page.locator("ul.search li p.context").nth(3).wait_for(timeout=MINUTES)
        excerpts = page.locator("ul.search li p.context").all_inner_texts()
    finally:
        server.terminate()
        server.wait(timeout=30)
    assert excerpts and not any("Settings" in text or "Contents" in text for text in excerpts), excerpts
    assert page.wrong == []


def test_no_page_scrolls_sideways_on_a_phone(page, site):
    page.set_viewport_size({"width": 390, "height": 844})
    wide = []
    for path in sorted(site.glob("notebooks/*.html")) + sorted(site.glob("docs/*.html")):
        page.goto(path.as_uri())
        if 'class="math ' in path.read_text(encoding="utf-8"):
            page.locator("mjx-container").first.wait_for(state="attached")
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > 390:
            wide.append(f"{path.name}: {width} pixels")
    assert not wide, "\n".join(wide)


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
