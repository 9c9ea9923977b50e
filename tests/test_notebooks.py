"""What a reader would trip over in a chapter: order, errors, pictures, headings, length, drift from the package.

nbval runs the notebooks and compares their printed outputs; these tests look at the files as they are committed.
Each rule is a small function that yields what is wrong, and `test_each_rule_notices` shows that it can.
"""

import ast
import copy
import json
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
CHAPTERS = """00_tour 01_pictures 02_patches 03_attention 04_image_encoder 05_processor 06_rmsnorm 07_rope
    08_masks_and_gqa 09_decoder 10_paligemma 11_generation 12_boxes_and_masks 13_training 14_attention_maps
    15_published_weights 16_speed 17_your_own_pictures""".split()

chapters = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
exercises = sorted((NOTEBOOKS / "exercises").glob("*.ipynb"))
solutions = sorted((NOTEBOOKS / "solutions").glob("*.ipynb"))

each_chapter = pytest.mark.parametrize("path", chapters, ids=lambda path: path.stem)
each_solution = pytest.mark.parametrize("path", solutions, ids=lambda path: path.stem)
each_notebook = pytest.mark.parametrize(
    "path", chapters + exercises + solutions, ids=lambda path: f"{path.parent.name}-{path.stem}"
)


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell: dict) -> str:
    return "".join(cell["source"])


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and source(cell).strip()]


def prose(notebook: dict) -> str:
    return "\n\n".join(source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown")


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def parse(cell: dict) -> ast.Module:
    """The syntax tree of a cell; lines that only IPython understands (%, !) are left out."""
    lines = ["pass" if re.match(r"\s*[%!]", line) else line for line in source(cell).splitlines()]
    return ast.parse("\n".join(lines))


def headings(text: str) -> list[str]:
    """Markdown headings, those inside code blocks left out."""
    return re.findall(r"^#+ .*$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)


# --- the rules -----------------------------------------------------------------------------------------------


def executed_in_order(notebook):
    counts = [cell.get("execution_count") for cell in code_cells(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"not executed in order from a fresh kernel: {counts}"


def no_errors(notebook):
    for number, cell in enumerate(code_cells(notebook), 1):
        for output in cell["outputs"]:
            if output["output_type"] == "error" and "raises-exception" not in tags(cell):
                yield f"code cell {number} shows an error: {output['ename']}: {output['evalue'][:80]}"
            if output.get("name") == "stderr":
                yield f"code cell {number} writes to stderr: {''.join(output['text'])[:80]!r}"


def one_title(notebook):
    first = notebook["cells"][0]
    if first["cell_type"] != "markdown" or not source(first).startswith("# "):
        yield "the first cell must be prose that begins with the title, `# ...`"
    titles = [heading for heading in headings(prose(notebook)) if heading.startswith("# ")]
    if len(titles) != 1:
        yield f"one title (`# ...`), not {len(titles)}: {titles}"


def all_sections(notebook):
    found = [heading for heading in headings(prose(notebook)) if heading.startswith("## ")]
    for wanted in ("## Goals", "## Recap", "## Exercise", "## Sources"):
        if sum(heading.startswith(wanted) for heading in found) != 1:
            yield f"no section (or more than one) `{wanted}`; there are {found}"


def kernel_and_language(notebook):
    if notebook["metadata"].get("kernelspec", {}).get("name") != "python3":
        yield "kernelspec must be python3"
    if "widgets" in notebook["metadata"]:
        yield "metadata.widgets changes with every run: `make notebooks` takes it out"


def no_absolute_paths(notebook):
    for number, cell in enumerate(notebook["cells"], 1):
        # A picture's base64 text may contain anything; texts may not.
        texts = [source(cell)]
        for output in cell.get("outputs", []):
            texts.append("".join(output.get("text", "")))
            data = output.get("data", {})
            texts += ["".join(text) for kind, text in data.items() if kind.startswith("text/")]
        for text in texts:
            for found in re.findall(r"(?:/root/|/home/|/Users/|/tmp/|[A-Z]:\\\\?Users)\S*", text):
                yield f"cell {number}: absolute path {found}"


def local_pictures_with_alt_text(notebook, folder=NOTEBOOKS):
    text = prose(notebook)
    pictures = re.findall(r"!\[([^\]]*)\]\(([^)\s]*)[^)]*\)", text)
    for tag in re.findall(r"<img\b[^>]*>", text):
        alt = re.search(r'alt="([^"]*)"', tag)
        pictures.append((alt[1] if alt else "", re.search(r'src="([^"]*)"', tag)[1]))
    for alt, target in pictures:
        if len(alt.strip()) < 10:
            yield f"picture {target[:60]}: an alt text that says what it shows"
        if re.match(r"(https?:)?//", target):
            yield f"picture {target} is hosted elsewhere"
        elif not target.startswith(("attachment:", "data:")) and not (folder / target).exists():
            yield f"picture {target} is not there"


def local_links(notebook, folder=NOTEBOOKS):
    for target in re.findall(r"(?<!!)\[[^\]]+\]\((?!https?:|#|mailto:|attachment:)([^)#\s]+)", prose(notebook)):
        if not (folder / target).exists():
            yield f"link to {target}, which is not there"


def is_figure(cell: dict) -> bool:
    return any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))


def figures_said_in_words(notebook):
    cells = notebook["cells"]
    for number, cell in enumerate(cells, 1):
        if not is_figure(cell):
            continue
        after = cells[number] if number < len(cells) else {"cell_type": "none", "source": ""}
        text = source(after).strip()
        if after["cell_type"] != "markdown" or not text.startswith("**Figure.**"):
            yield f"cell {number} draws; the next must be prose that begins with `**Figure.**`"
        elif len(text.split("\n\n")[0]) < 60:
            yield f"cell {number} draws; the text after it must say what is to be seen"


def png_only(notebook):
    for number, cell in enumerate(code_cells(notebook), 1):
        for output in cell["outputs"]:
            if {"image/svg+xml", "application/pdf", "image/jpeg"} & set(output.get("data", {})):
                yield f"code cell {number}: figures as PNG, which nbval leaves alone"


def short_cells(notebook):
    for number, cell in enumerate(code_cells(notebook), 1):
        lines = [line for line in source(cell).splitlines() if line.strip()]
        if len(lines) > 25 and not re.match(r"(class |def |@)", source(cell)):
            yield f"code cell {number} has {len(lines)} lines: at most 25, unless it is one class or function"
        for line in lines:
            if len(line) > 110:
                yield f"code cell {number} has a line of {len(line)} characters: {line[:50]}..."
    lengths = [len(source(cell).splitlines()) for cell in code_cells(notebook)]
    if lengths and statistics.median(lengths) > 15:
        yield f"half of the code cells have more than {statistics.median(lengths):.0f} lines"


def names_defined(tree: ast.Module) -> set[str]:
    """Names that a cell leaves behind at its top level."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, ast.Store):
            while isinstance(node, (ast.Attribute, ast.Subscript)):
                node = node.value
            if isinstance(node, ast.Name):
                names.add(node.id)
    return names


def names_used(tree: ast.Module) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def every_cell_has_a_purpose(notebook):
    cells = code_cells(notebook)
    trees = [parse(cell) for cell in cells]
    for number, (cell, tree) in enumerate(zip(cells, trees, strict=True), 1):
        asserts = any(
            isinstance(node, ast.Assert)
            or (isinstance(node, ast.Attribute) and node.attr.startswith("assert_"))
            or (isinstance(node, ast.Name) and node.id.startswith(("assert_", "check")))
            for node in ast.walk(tree)
        )
        later = set().union(*(names_used(other) for other in trees[number:]))
        if not (asserts or cell["outputs"] or names_defined(tree) & later):
            yield f"code cell {number} neither asserts, prints, draws nor defines: {source(cell)[:60]!r}"


def prose_outweighs_code(notebook):
    told = sum(cell["cell_type"] == "markdown" for cell in notebook["cells"])
    if told < len(code_cells(notebook)):
        yield f"{told} cells of prose to {len(code_cells(notebook))} of code: say what each is for"


def shapes_are_asserted(notebook):
    if not any(re.search(r"assert .*shape", source(cell)) for cell in code_cells(notebook)):
        yield "no shape is asserted"


def nothing_is_downloaded(notebook):
    for number, cell in enumerate(code_cells(notebook), 1):
        for found in re.findall(r"urlopen|urlretrieve|requests\.get|wget |curl |pip install", source(cell)):
            yield f"code cell {number}: {found}"


def nbval_marks_that_work(notebook):
    """A mark that is misspelt is silently ignored, and then nothing is compared."""
    for number, cell in enumerate(code_cells(notebook), 1):
        for line in source(cell).splitlines():
            known = re.fullmatch(r"\s*#\s*NBVAL_(IGNORE_OUTPUT|CHECK_OUTPUT|SKIP|RAISES_EXCEPTION)\s*", line)
            if re.search(r"NBVAL", line, re.I) and not known:
                yield f"code cell {number}: nbval's mark must be a line of its own: {line!r}"
        for tag in tags(cell):
            if tag != tag.lower() or "_" in tag:
                yield f"code cell {number}: tag {tag!r} in lower case with hyphens"
        if "raises-exception" in tags(cell):
            if not any(output["output_type"] == "error" for output in cell["outputs"]):
                yield f"code cell {number} is to raise and doesn't"


def printed(cell: dict) -> str:
    """Everything that a cell has printed or shown as text."""
    texts = [
        "".join(out.get("text", "")) + "".join(out.get("data", {}).get("text/plain", "")) for out in cell["outputs"]
    ]
    return "\n".join(texts)


def no_rounding_noise(notebook):
    """A difference of 3.1e-08, or a float32 number to its ninth digit, is another one on the next processor."""
    for number, cell in enumerate(code_cells(notebook), 1):
        if "nbval-ignore-output" not in tags(cell) and "NBVAL_IGNORE_OUTPUT" not in source(cell):
            for found in re.findall(r"\d(?:\.\d+)?e-(?:0[7-9]|[1-9]\d)\b|\b\d+\.\d{7,}", printed(cell)):
                yield f"code cell {number} prints {found}: print what is stable, assert the rest with a tolerance"


def package_names() -> set[str]:
    """Public classes and functions at the top level of the package's files, without checks and drawings."""
    names = set()
    for path in (ROOT / "paligemma").rglob("*.py"):
        if "exercises" in path.parts or path.name == "drawings.py":
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
                names.add(node.name)
    return names


def twins_are_compared(notebook, package=None):
    """What a chapter builds under a name of the package is set beside the package's own, and compared."""
    package = package_names() if package is None else package
    trees = [parse(cell) for cell in code_cells(notebook)]
    built, fetched = set(), set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("paligemma"):
                fetched |= {alias.name for alias in node.names}
            elif isinstance(node, ast.Attribute):
                fetched.add(node.attr)
        built |= {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    for name in sorted((built & package) - fetched):
        yield f"{name} is built here, but the package's {name} is not imported to compare it with"
    everything = "\n".join(source(cell) for cell in code_cells(notebook))
    if built & package and not re.search(r"assert_close|torch\.equal|array_equal|max_difference|compare\(", everything):
        yield f"{sorted(built & package)} are built here and never compared with the package's"


RULES = [
    executed_in_order, no_errors, one_title, all_sections, kernel_and_language, no_absolute_paths,
    local_pictures_with_alt_text, local_links, figures_said_in_words, png_only, short_cells,
    every_cell_has_a_purpose, prose_outweighs_code, shapes_are_asserted, nothing_is_downloaded,
    nbval_marks_that_work, no_rounding_noise, twins_are_compared,
]  # fmt: skip
# The tour builds nothing: no exercise, no shapes of its own.
NOT_IN_THE_TOUR = {shapes_are_asserted, all_sections}


# --- the rules on every notebook -----------------------------------------------------------------------------


def test_all_chapters_are_there():
    assert [path.stem for path in chapters] == CHAPTERS


def test_chapters_and_readme_agree():
    """Every chapter's title is its question, and the README's table links to it under that question."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in chapters:
        title = source(read(path)["cells"][0]).splitlines()[0]
        row = re.search(rf"^\|[^|]*\(notebooks/{path.name}\)[^|]*\| ([^|]+?) \|", readme, re.M)
        assert row, f"{path.name} is not linked in the README's table"
        assert row[1] in title, f"{path.name}: title {title!r}, README {row[1]!r}"


@each_chapter
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_chapter(path, rule):
    if path.stem == "00_tour" and rule in NOT_IN_THE_TOUR:
        pytest.skip("the tour builds nothing")
    wrong = list(rule(read(path)))
    assert not wrong, f"{path.name}:\n" + "\n".join(wrong)


@each_solution
@pytest.mark.parametrize(
    "rule",
    [
        executed_in_order,
        no_errors,
        one_title,
        kernel_and_language,
        no_absolute_paths,
        nothing_is_downloaded,
        no_rounding_noise,
    ],
    ids=lambda rule: rule.__name__,
)
def test_solution(path, rule):
    wrong = list(rule(read(path)))
    assert not wrong, f"{path.name}:\n" + "\n".join(wrong)


@each_notebook
def test_notebook_is_small_and_valid(path):
    import nbformat

    assert path.stat().st_size <= 1_500_000, f"{path.stat().st_size:,} bytes: at most 1.5 MB"
    nbformat.validate(nbformat.read(path, as_version=4))
    notebook = read(path)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    folder = path.parent
    wrong = [*local_pictures_with_alt_text(notebook, folder), *local_links(notebook, folder)]
    assert not wrong, "\n".join(wrong)


# --- the rules themselves ------------------------------------------------------------------------------------


def md(text):
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def run(text, count, *outputs):
    cell = {"cell_type": "code", "metadata": {}, "source": text, "execution_count": count}
    return {**cell, "outputs": list(outputs)}


PNG = {"output_type": "display_data", "data": {"image/png": "iVBOR"}, "metadata": {}}


def good_chapter():
    """A chapter in which nothing is wrong."""
    return {
        "metadata": {"kernelspec": {"name": "python3"}},
        "cells": [
            md("# Why?\n\n## Goals\n"),
            md("Import."),
            run("import torch\nfrom paligemma import rescale as package_rescale", 1),
            md("Build."),
            run("def rescale(image, scale):\n    return image * scale", 2),
            md("Check."),
            run("x = rescale(torch.ones(2), 3)\nassert x.shape == (2,)\n"
                "torch.testing.assert_close(x, package_rescale(torch.ones(2), 3))", 3),
            md("See."),
            run("plot(x)", 4, PNG),
            md("**Figure.** Two bars of the same height, three, one beside the other, both in blue."),
            md("## Recap\n\n## Exercise\n\n## Sources"),
        ],
    }  # fmt: skip


def test_a_good_chapter_passes():
    for rule in RULES:
        assert list(rule(good_chapter())) == [], rule.__name__


def spoil(rule, change, id):
    return pytest.param(rule, change, id=id)


def put(index, **fields):
    return lambda notebook: notebook["cells"][index].update(fields)


def stderr(text):
    return {"output_type": "stream", "name": "stderr", "text": text}


@pytest.mark.parametrize(
    "rule, change",
    [
        spoil(executed_in_order, put(4, execution_count=7), "out of order"),
        spoil(executed_in_order, put(4, execution_count=None), "not run"),
        spoil(no_errors, put(8, outputs=[{"output_type": "error", "ename": "E", "evalue": ""}]), "error"),
        spoil(no_errors, put(8, outputs=[stderr("UserWarning")]), "warning"),
        spoil(one_title, put(1, source="# Again"), "two titles"),
        spoil(one_title, put(0, source="Why?"), "no title"),
        spoil(all_sections, put(10, source="## Recap\n\n## Sources"), "no exercise"),
        spoil(kernel_and_language, lambda n: n["metadata"].update(kernelspec={"name": "mine"}), "kernel"),
        spoil(kernel_and_language, lambda n: n["metadata"].update(widgets={}), "widget states"),
        spoil(no_absolute_paths, put(4, source="open('/home/me/x.png')"), "path in code"),
        spoil(no_absolute_paths, put(8, outputs=[{"output_type": "stream", "text": ["/tmp/a"]}]), "path"),
        spoil(local_pictures_with_alt_text, put(1, source="![](../assets/cat.jpg)"), "no alt"),
        spoil(local_pictures_with_alt_text, put(1, source="![a cat's face](https://x.org/c.jpg)"), "remote"),
        spoil(local_pictures_with_alt_text, put(1, source="![a cat's face](nowhere.jpg)"), "lost"),
        spoil(local_pictures_with_alt_text, put(1, source='<img src="../assets/cat.jpg">'), "img"),
        spoil(local_links, put(1, source="[next](99_nothing.ipynb)"), "dead link"),
        spoil(figures_said_in_words, put(9, source="And now?"), "figure without words"),
        spoil(figures_said_in_words, put(9, source="**Figure.** Bars."), "too few words"),
        spoil(png_only, put(8, outputs=[{"output_type": "x", "data": {"image/svg+xml": ""}}]), "svg"),
        spoil(short_cells, put(8, source="a = 1\n" * 26), "long cell"),
        spoil(short_cells, put(8, source="a = '" + "x" * 110 + "'"), "long line"),
        spoil(every_cell_has_a_purpose, put(8, source="y = 1", outputs=[]), "unused"),
        spoil(prose_outweighs_code, lambda n: n.update(cells=n["cells"][2::2] + n["cells"][2:9:2]), "code"),
        spoil(shapes_are_asserted, put(6, source="x = 1"), "no shapes"),
        spoil(nothing_is_downloaded, put(8, source="!pip install x"), "pip"),
        spoil(nbval_marks_that_work, put(8, source="f()  # NBVAL_IGNORE_OUTPUT"), "trailing mark"),
        spoil(nbval_marks_that_work, put(8, metadata={"tags": ["NBVAL_IGNORE_OUTPUT"]}), "upper-case tag"),
        spoil(nbval_marks_that_work, put(8, metadata={"tags": ["raises-exception"]}), "doesn't raise"),
        spoil(no_rounding_noise, put(8, outputs=[{"output_type": "stream", "text": ["off by 2.4e-07"]}]), "noise"),
        spoil(
            no_rounding_noise, put(8, outputs=[{"output_type": "x", "data": {"text/plain": "0.12345679"}}]), "digits"
        ),
        spoil(twins_are_compared, put(2, source="import torch"), "twin not imported"),
        spoil(twins_are_compared, put(6, source="rescale(1, 2)"), "twin not compared"),
    ],
)
def test_each_rule_notices(rule, change):
    notebook = copy.deepcopy(good_chapter())
    change(notebook)
    assert list(rule(notebook)), f"{rule.__name__} saw nothing wrong"


def test_every_rule_is_tried():
    tried = {mark.values[0] for mark in test_each_rule_notices.pytestmark[0].args[1]}
    assert tried == set(RULES)


def test_cleaning_takes_out_what_changes_and_nothing_else(tmp_path):
    """docs/clean_notebooks.py: twice the same, figures and text untouched, widgets gone."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("clean_notebooks", ROOT / "docs" / "clean_notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    notebook = good_chapter()
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "8f"}}
    text = {"output_type": "stream", "name": "stdout", "text": ["3"]}
    notebook["cells"][8]["outputs"] = [PNG, {"output_type": "display_data", "data": view, "metadata": {}}, text]
    notebook["metadata"]["widgets"] = {"state": {}}
    path = tmp_path / "x.ipynb"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    module.main([str(path)])
    once = path.read_bytes()
    module.main([str(path)])
    assert path.read_bytes() == once and list(tmp_path.iterdir()) == [path]
    cleaned = read(path)
    assert cleaned["metadata"]["language_info"]["file_extension"] == ".py"  # nbconvert --to script
    assert "widgets" not in cleaned["metadata"]
    assert cleaned["cells"][8]["outputs"] == [PNG, text]
    assert [source(cell) for cell in cleaned["cells"]] == [source(cell) for cell in notebook["cells"]]


def test_a_mark_becomes_a_tag(tmp_path):
    import importlib.util

    spec = importlib.util.spec_from_file_location("clean_notebooks", ROOT / "docs" / "clean_notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    notebook = good_chapter()
    notebook["cells"][8].update(source="# NBVAL_IGNORE_OUTPUT\nplot(x)", metadata={"tags": ["mine"]})
    cell = module.clean(notebook)["cells"][8]
    assert source(cell) == "plot(x)" and cell["metadata"]["tags"] == ["mine", "nbval-ignore-output"]
