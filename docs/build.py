"""Make the course into static pages that need no network: python docs/build.py [--output site].

The chapters (with the outputs they were saved with), docs/*.md and assets/ are copied into a temporary folder laid out
like the repository, so that the links between them hold; an index of all figures is made from the chapters; Sphinx does
the rest. The pages appear in the output folder only when everything went well. Any warning is an error: a dead link
would be one. An output folder that holds anything but such pages is refused.

REPOSITORY_URL, or what GitHub Actions says of itself, gives the pages a link to the repository.
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

from paligemma.visualize.explorer import FILES, write_explorer

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
                      "use_fullscreen_button": False, "show_navbar_depth": 1, "navbar_persistent": [],
                      "repository_url": REPOSITORY_URL, "use_repository_button": bool(REPOSITORY_URL)}
html_static_path = ["_static"]
html_css_files = ["course.css"]
html_js_files = ["course.js"]
html_show_sourcelink = False
html_copy_source = False
html_last_updated_fmt = None
# A widget has no page of its own: its static figure stands beside it. Exercises are reached from their chapters.
suppress_warnings = ["mystnb.unknown_mime_type", "toc.not_included"]
"""

CSS = """
/* The theme's bar over the page is empty here: title and search stand in the column on the left. */
html { --pst-header-height: 0rem; }
.bd-header { display: none !important; }

/* On a narrow screen long names break, and what cannot break scrolls by itself: never the whole page. */
article p, article li, article td, article h1, article h2, article h3 { overflow-wrap: anywhere; }
article :not(pre) > code, article :not(pre) > code .pre { overflow-wrap: anywhere; white-space: pre-wrap; }
article div.math, article mjx-container[display="true"] { overflow-x: auto; overflow-y: hidden; max-width: 100%; }
article mjx-container:not([display="true"]) { max-width: 100%; overflow-x: auto; overflow-y: hidden; }
article table { display: block; max-width: 100%; overflow-x: auto; }
"""

# The excerpts of the search show what is written in the article, not the buttons above it.
JS = """
// Sphinx's `Search` is loaded after this file, and starts when the page is complete.
document.addEventListener("DOMContentLoaded", () => {
  if (typeof Search === "undefined" || !Search.htmlToText) return;
  const plain = Search.htmlToText;
  Search.htmlToText = (html, anchor) => {
    const page = new DOMParser().parseFromString(html, "text/html");
    page.querySelectorAll(".bd-header-article, #jb-print-docs-body, .bd-sidebar-secondary, .prev-next-footer, footer")
      .forEach(element => element.remove());
    return plain(page.documentElement.outerHTML, anchor);
  };
});
"""

# The front page is the index page, whatever folder it lies in.
FRONT = (
    '<!doctype html><meta charset="utf-8"><title>PaliGemma from scratch</title>'
    '<meta http-equiv="refresh" content="0; url=docs/index.html"><a href="docs/index.html">PaliGemma from scratch</a>\n'
)


WIDGET = re.compile(r"(interactive|[HV]?Box|Output|Tab|Accordion)\(")  # how ipywidgets describes one in words


def text_of(cell: dict) -> str:
    return "".join(cell["source"])


def drawn(notebook: dict):
    """(cell, its PNG outputs, what they show) for each cell that draws: the prose after it begins with **Figure.**"""
    cells = notebook["cells"]
    for number, cell in enumerate(cells[:-1]):
        pictures = [out["data"]["image/png"] for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
        told = text_of(cells[number + 1])
        if pictures and told.startswith("**Figure.**"):
            yield cell, pictures, " ".join(told.removeprefix("**Figure.**").split("\n\n")[0].split())


def figures_of(notebook: dict):
    """(PNG bytes, what it shows) for each figure of a notebook."""
    for _, pictures, words in drawn(notebook):
        for picture in pictures:
            yield base64.b64decode("".join(picture)), words


def alt_of(words: str) -> str:
    """What a figure shows, as its alt text: links lose their addresses, the rest Markdown's signs."""
    return re.sub(r"[\[\]*_`$\\\"]", "", re.sub(r"\]\([^)]*\)", "]", words))


def for_the_site(notebook: dict) -> dict:
    """A notebook as its page shows it, changed in place: figures with alt texts, no widgets, no marks of the tests."""
    for cell, _, words in drawn(notebook):
        cell["metadata"]["mystnb"] = {"image": {"alt": alt_of(words)}}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["source"] = re.sub(r"^# NBVAL_[A-Z_]+\n", "", text_of(cell), flags=re.M)
        for output in cell.get("outputs", []):
            if WIDGET.match("".join(output.get("data", {}).get("text/plain", ""))):
                output["data"] = {"text/markdown": "*In JupyterLab, controls to move stand here.*"}
    return notebook


def stage_notebook(path: Path, target: Path, kind: str | None = None) -> None:
    """Copy a notebook as its page shows it. A `kind` ("Solutions") goes into its title, out of the search."""
    notebook = for_the_site(json.loads(path.read_text(encoding="utf-8")))
    if kind:
        first = notebook["cells"][0]
        first["source"] = text_of(first).replace("Exercises:", f"{kind}:", 1)
        notebook["metadata"]["nosearch"] = True
    target.write_text(json.dumps(notebook, ensure_ascii=False), encoding="utf-8")


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
            lines += [f"```{{image}} figures/{name}", f":alt: {alt_of(words)}", ":width: 400px", "```", "", words, ""]
            count += 1
    (source / "docs" / "figures.md").write_text("\n".join(lines), encoding="utf-8")
    return count


def stage(source: Path) -> None:
    """Copy what the site is made of, laid out like the repository."""
    (source / "notebooks").mkdir(parents=True)
    (source / "docs").mkdir()
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        stage_notebook(path, source / "notebooks" / path.name)
    for path in (ROOT / "docs").glob("*.md"):
        shutil.copy(path, source / "docs")
    for name, kind in (("exercises", None), ("solutions", "Solutions")):
        (source / "notebooks" / name).mkdir()
        for path in sorted((ROOT / "notebooks" / name).glob("[0-9]*.ipynb")):
            stage_notebook(path, source / "notebooks" / name / path.name, kind)
    shutil.copytree(ROOT / "assets", source / "assets")
    # Chapters link to the files of the package: they become downloads.
    shutil.copytree(ROOT / "paligemma", source / "paligemma", ignore=shutil.ignore_patterns("__pycache__"))
    (source / "_static").mkdir()
    (source / "_static" / "course.css").write_text(CSS, encoding="utf-8")
    (source / "_static" / "course.js").write_text(JS, encoding="utf-8")
    (source / "conf.py").write_text(f"REPOSITORY_URL = {repository_url()!r}\n{CONF}", encoding="utf-8")


def repository_url() -> str:
    """Where the repository can be seen, or "": the environment says."""
    if os.environ.get("GITHUB_REPOSITORY"):
        on_github = f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{os.environ['GITHUB_REPOSITORY']}"
    else:
        on_github = ""
    return os.environ.get("REPOSITORY_URL", on_github)


def check_output(output: Path) -> None:
    """Raise ValueError unless the folder is missing, empty, or holds pages that this program or `explore` has made."""
    if not output.exists():
        return
    if not output.is_dir():
        raise ValueError(f"{output} is a file, expected a folder: choose another with --output")
    front = output / "index.html"
    ours = front.is_file() and front.read_text("utf-8", "replace") == FRONT
    live_page = {output / "explorer" / name for name in (*FILES, "index.html", "world.js", "data.js")}
    if not ours and any(path not in live_page for path in output.rglob("*") if path != output / "explorer"):
        raise ValueError(
            f"{output} holds other files, expected a new or empty folder, or the pages of an earlier run: "
            "choose another with --output, or empty it yourself"
        )


def link_live_page(source: Path) -> None:
    """Links to the live page, explorer/index.html, as HTML: it is no page of Sphinx's, which would not find it."""
    for path in [*source.rglob("*.ipynb"), *source.rglob("*.md")]:
        quote = r'\\"' if path.suffix == ".ipynb" else '"'  # inside the strings of a notebook
        text = path.read_text(encoding="utf-8")
        # where a chapter writes the page, and where the site has it
        linked = text.replace("../site/explorer/index.html", "../explorer/index.html")
        linked = re.sub(
            r"\[([^\[\]\n]+)\]\(((?:\.\./)+explorer/index\.html[^)\s]*)\)", rf"<a href={quote}\2{quote}>\1</a>", linked
        )
        if linked != text:
            path.write_text(linked, encoding="utf-8", newline="\n")


def build(output: Path, strict: bool = True) -> int:
    """Build into `output`, which is replaced as a whole; returns Sphinx's exit code."""
    try:
        from sphinx.cmd.build import build_main
    except ImportError:
        sys.exit('The site needs Sphinx: pip install -c constraints.txt -e ".[site]", or `make site`.')
    check_output(output)
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
            output.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as beside:
                shutil.copytree(pages, Path(beside) / "pages")
                check_output(output)
                shutil.rmtree(output, ignore_errors=True)
                os.replace(Path(beside) / "pages", output)
            print(f"{output / 'index.html'}: {len(list(output.rglob('*.html')))} pages, {count} figures in the index")
    return code


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "site", help="folder for the pages (default: site)")
    parser.add_argument("--lenient", action="store_true", help="build even where there are warnings")
    arguments = parser.parse_args()
    try:
        sys.exit(build(arguments.output.resolve(), strict=not arguments.lenient))
    except ValueError as error:
        sys.exit(str(error))
