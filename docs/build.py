"""Make the course into static pages that need no network: python docs/build.py [--output site].

The chapters (with the outputs they were saved with), docs/*.md and assets/ are copied into a temporary folder laid out
like the repository, so that the links between them hold; an index of all figures is made from the chapters; Sphinx does
the rest. The pages appear in the output folder only when everything went well. Any warning is an error: a dead link
would be one.
"""

import argparse
import base64
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from paligemma.visualize.explorer import write_explorer

ROOT = Path(__file__).resolve().parents[1]

CONF = """
project = "PaliGemma from scratch"
author = copyright = project
html_title = project
root_doc = "docs/index"
extensions = ["myst_nb", "sphinx-mathjax-offline"]
exclude_patterns = ["**.ipynb_checkpoints"]
nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
html_theme = "sphinx_book_theme"
html_theme_options = {"home_page_in_toc": True, "show_toc_level": 2, "use_download_button": False,
                      "use_fullscreen_button": False, "show_navbar_depth": 1}
html_show_sourcelink = False
html_copy_source = False
html_last_updated_fmt = None
# A widget has no page of its own: its static figure stands beside it. Exercises are reached from their chapters.
suppress_warnings = ["mystnb.unknown_mime_type", "toc.not_included"]
"""

# The front page is the index page, whatever folder it lies in.
FRONT = (
    '<!doctype html><meta charset="utf-8"><title>PaliGemma from scratch</title>'
    '<meta http-equiv="refresh" content="0; url=docs/index.html"><a href="docs/index.html">PaliGemma from scratch</a>\n'
)


def text_of(cell: dict) -> str:
    return "".join(cell["source"])


def figures_of(notebook: dict):
    """(PNG bytes, what it shows) for each figure of a notebook: the prose cell after it begins with **Figure.**"""
    cells = notebook["cells"]
    for number, cell in enumerate(cells[:-1]):
        pictures = [out["data"]["image/png"] for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
        told = text_of(cells[number + 1])
        if pictures and told.startswith("**Figure.**"):
            words = " ".join(told.removeprefix("**Figure.**").split("\n\n")[0].split())
            for picture in pictures:
                yield base64.b64decode("".join(picture)), words


def write_index_of_figures(source: Path) -> int:
    """docs/figures.md and docs/figures/*.png of the copy; returns the number of figures."""
    folder = source / "docs" / "figures"
    folder.mkdir()
    lines = [
        "# All figures",
        "",
        "Every figure of the course, with what it shows; the heading leads to its chapter.",
        "",
    ]
    count = 0
    for path in sorted((source / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        title = text_of(notebook["cells"][0]).splitlines()[0].lstrip("# ")
        figures = list(figures_of(notebook))
        if figures:
            lines += [f"## [{title}](../notebooks/{path.name})", ""]
        for number, (picture, words) in enumerate(figures, 1):
            name = f"{path.stem}-{number:02d}.png"
            (folder / name).write_bytes(picture)
            # alt text: the same words, without Markdown's signs
            alt = re.sub(r"[\[\]*_`$\\\"]", "", words)
            lines += [f"```{{image}} figures/{name}", f":alt: {alt}", ":width: 400px", "```", "", words, ""]
            count += 1
    (source / "docs" / "figures.md").write_text("\n".join(lines), encoding="utf-8")
    return count


def stage(source: Path) -> None:
    """Copy what the site is made of, laid out like the repository."""
    (source / "notebooks").mkdir(parents=True)
    (source / "docs").mkdir()
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        shutil.copy(path, source / "notebooks")
    for path in (ROOT / "docs").glob("*.md"):
        shutil.copy(path, source / "docs")
    for name in ("exercises", "solutions"):
        if (ROOT / "notebooks" / name).is_dir():
            shutil.copytree(ROOT / "notebooks" / name, source / "notebooks" / name)
    shutil.copytree(ROOT / "assets", source / "assets")
    for path in sorted((ROOT / "paligemma").rglob("*.*")):  # chapters link to them: they become downloads
        if path.suffix in (".py", ".cpp", ".h"):
            copy = source / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    (source / "conf.py").write_text(CONF, encoding="utf-8")


def link_live_page(source: Path) -> None:
    """Links to the live page, explorer/index.html, as HTML: it is no page of Sphinx's, which would not find it."""
    for path in [*source.rglob("*.ipynb"), *source.rglob("*.md")]:
        quote = r'\\"' if path.suffix == ".ipynb" else '"'  # inside the strings of a notebook
        text = path.read_text(encoding="utf-8")
        linked = re.sub(
            r"\[([^\]\n]+)\]\(((?:\.\./)+explorer/index\.html[^)\s]*)\)", rf"<a href={quote}\2{quote}>\1</a>", text
        )
        if linked != text:
            path.write_text(linked, encoding="utf-8", newline="\n")


def build(output: Path, strict: bool = True) -> int:
    """Build into `output`, which is replaced as a whole; returns Sphinx's exit code."""
    try:
        from sphinx.cmd.build import build_main
    except ImportError:
        sys.exit('The site needs Sphinx: pip install -c constraints.txt -e ".[site]", or `make site`.')
    with tempfile.TemporaryDirectory() as temporary:
        source, pages = Path(temporary) / "source", Path(temporary) / "pages"
        stage(source)
        link_live_page(source)
        count = write_index_of_figures(source)
        flags = ["-q", "-W", "--keep-going"] if strict else ["-q"]
        code = build_main([*flags, "-b", "html", "-d", f"{temporary}/doctrees", str(source), str(pages)])
        if code == 0:
            (pages / "index.html").write_text(FRONT, encoding="utf-8")
            write_explorer(pages / "explorer")
            beside = output.with_name(output.name + ".tmp")
            shutil.rmtree(beside, ignore_errors=True)
            shutil.copytree(pages, beside)
            shutil.rmtree(output, ignore_errors=True)
            os.replace(beside, output)
            print(f"{output / 'index.html'}: {len(list(output.rglob('*.html')))} pages, {count} figures in the index")
    return code


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "site", help="folder for the pages (default: site)")
    parser.add_argument("--lenient", action="store_true", help="build even where there are warnings")
    arguments = parser.parse_args()
    sys.exit(build(arguments.output.resolve(), strict=not arguments.lenient))
