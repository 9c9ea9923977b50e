"""The pages to look things up: complete, in order, and in step with the chapters and the package."""

import importlib.util
import json
import re
import sys
import types
from pathlib import Path

import pytest

ENTRY = re.compile(
    r"^- \*\*(?P<term>.+?)\*\* \((?P<korean>.+?)\)\. (?P<text>.+) \[Chapter (\d\d)\]\(\.\./(?P<path>[^)]+)\)$"
)


@pytest.fixture(scope="module")
def entries(root):
    lines = (root / "docs" / "glossary.md").read_text(encoding="utf-8").splitlines()
    matches = [(line, ENTRY.match(line)) for line in lines if line.startswith("- ")]
    for line, match in matches:
        assert match, f"not of the form `- **term** (한국어). What it is. [Chapter NN](...)`: {line}"
    return [match for _, match in matches]


def test_glossary_is_sorted_and_bilingual(entries):
    terms = [entry["term"] for entry in entries]
    assert len(terms) >= 60 and len(set(terms)) == len(terms)
    assert terms == sorted(terms, key=str.casefold)
    for entry in entries:
        assert re.search("[가-힣]", entry["korean"]), f"{entry['term']}: no Korean"
        assert entry[4] == entry["path"].split("/")[-1][:2]


def test_glossary_leads_to_the_chapter_that_speaks_of_the_term(entries, root):
    missing = []
    for entry in entries:
        path = root / entry["path"]
        assert path.exists(), f"{entry['term']}: {entry['path']} is not there"
        notebook = json.loads(path.read_text(encoding="utf-8"))
        prose = " ".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
        plain = (
            re.sub(r"[*_`]", "", " ".join(prose.split())).casefold().replace("-", " ").replace("normalis", "normaliz")
        )
        if entry["term"].casefold().replace("-", " ") not in plain:
            missing.append(f"{entry['term']}: not in the prose of {path.name}")
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize(
    "name",
    ["glossary", "notation", "map", "index", "teaching", "writing", "questions", "performance", "own-pictures"],
)
def test_links_hold(name, root):
    text = (root / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert target == "figures.md" or (root / "docs" / target).exists(), f"docs/{name}.md links to {target}"


def test_no_page_holds_two_versions_of_itself(root):
    """A merge that was left half done leaves its marks in the text, and Sphinx prints them."""
    for path in [root / "README.md", *(root / "docs").glob("*.md"), *(root / "assets").rglob("*.md")]:
        marks = re.findall(r"^(?:<{7}|>{7}) .*", path.read_text(encoding="utf-8"), re.M)
        assert not marks, f"{path.name}: {marks}"


def test_map_names_what_the_package_has(root):
    """Every class and function that the map names exists, in a file that it names."""
    text = (root / "docs" / "map.md").read_text(encoding="utf-8")
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (root / "paligemma").rglob("*.py"))
    for name in re.findall(r"`([A-Za-z_]\w+)`", text):
        if name not in {"Dict"}:
            defined = rf"^(class {name}\b|def {name}\b|{name} = )"
            assert re.search(defined, sources, re.M), f"docs/map.md names {name}: there is none"
    for name in re.findall(r"`([\w/]+\.py)`", text):
        assert (root / "paligemma" / name).exists() or (root / name).exists(), f"docs/map.md names {name}"


def test_package_lists_its_files(root):
    """The list at the top of the package names every file, under the room that holds it, and none that is not there."""
    listed, room = set(), ""
    for line in (root / "paligemma" / "__init__.py").read_text(encoding="utf-8").split('"""')[1].splitlines():
        if not line.startswith(" "):
            room = match[1] if (match := re.match(r"(\w+/)", line)) else ""
        listed |= {room + name for name in re.findall(r"\b\w+\.(?:py|cpp|h)\b|\bmycode/", line)}
    tasks = {f"exercises/ch{number:02}.py" for number in range(1, 17)}  # "ch01.py to ch16.py"
    there = {
        path.relative_to(root / "paligemma").as_posix()
        for pattern in ("*.py", "*.cpp", "*.h")
        for path in (root / "paligemma").rglob(pattern)
        if path.name != "__init__.py" and path.parent.name != "mycode"
    }
    assert listed | tasks == there | {"exercises/mycode/"}


def test_map_names_every_class_of_the_three_core_files(root):
    text = (root / "docs" / "map.md").read_text(encoding="utf-8")
    for name in ("modeling_siglip", "modeling_gemma", "processing_paligemma"):
        source = (root / "paligemma" / f"{name}.py").read_text(encoding="utf-8")
        for found in re.findall(r"^class (\w+)", source, re.M):
            if found != "PaliGemmaOutput":
                assert f"`{found}`" in text, f"docs/map.md doesn't say where {found} is built"


def test_notation_gives_the_small_models_sizes(root, tiny_folder):
    config = json.loads((tiny_folder / "config.json").read_text(encoding="utf-8"))
    vision, text = config["vision_config"], config["text_config"]
    page = (root / "docs" / "notation.md").read_text(encoding="utf-8")
    columns = {
        row[0]: row for line in page.splitlines() if len(row := [c.strip() for c in line.strip("|").split("|")]) == 5
    }
    expected = {
        "P": [vision["patch_size"]],
        "H, W (of a picture)": [vision["image_size"]],
        "N": [(vision["image_size"] // vision["patch_size"]) ** 2],
        "D": [vision["hidden_size"], text["hidden_size"]],
        "F": [vision["intermediate_size"], text["intermediate_size"]],
        "H": [vision["num_attention_heads"], text["num_attention_heads"]],
        "H_kv": [vision["num_attention_heads"], text["num_key_value_heads"]],
        "d": [vision["hidden_size"] // vision["num_attention_heads"], text["head_dim"]],
        "V": [text["vocab_size"]],
    }
    for letter, sizes in expected.items():
        stated = [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", columns[letter][2])]
        assert stated == sizes, f"{letter}: the page says {columns[letter][2]!r}, the model has {sizes}"


# --- docs/performance.md --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def performance(root):
    """The page, and the script that reads its tables."""
    spec = importlib.util.spec_from_file_location("draw_performance", root / "docs" / "draw_performance.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return (root / "docs" / "performance.md").read_text(encoding="utf-8"), module


def test_the_first_table_says_what_the_full_tables_say(performance):
    page, module = performance
    tables = {name: module.read_table(page, name) for name in ("3b, bfloat16", "tiny, float32")}
    step, answer = "one step, batch 8, 300 tokens", "decode, batch 1"
    rows = [
        ("3b, bfloat16", "prefill, 272 tokens, until the first", "ours, fast"),
        ("3b, bfloat16", answer, "ours, fast"),
        ("3b, bfloat16", answer, "ours, fast, 8-bit weights"),
        ("3b, bfloat16", step, "ours, fast"),
        ("tiny, float32", answer, "ours, fast"),
    ]
    lines = page[page.index("| two threads, medians") :].split("\n\n")[0].splitlines()[2:]
    assert len(lines) == len(rows)
    for line, (table, work, way) in zip(lines, rows, strict=True):
        said = [cell.strip().removesuffix(" ms") for cell in line.strip("|").split("|")][1:]
        median, _, ratio, share = tables[table][work, way]
        theirs = [cells[0] for (what, who), cells in tables[table].items() if what == work and who.startswith("transf")]
        fastest = min(theirs, key=lambda cell: float(cell.replace(",", "")))
        assert said == [fastest, median, ratio, share], line


def test_the_roofline_is_drawn_from_the_page(performance):
    page, module = performance
    ax = module.draw(page)
    limit, *marks = [line.get_data() for line in ax.lines if line.get_label()[:1] != "_"]
    assert len(marks) == len(module.POINTS) and max(limit[1]) == 341
    x, y = marks[list(module.POINTS).index("1 answer")]
    assert x[0] == 1.0 and 0.85 < y[0] / 32.7 < 0.95, "the table says 90 % of the limit"


# --- docs/build.py -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def build(root):
    spec = importlib.util.spec_from_file_location("build", root / "docs" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake_sphinx(build, monkeypatch):
    """Sphinx that makes one page in no time, and no live page."""
    monkeypatch.setattr(build, "write_explorer", lambda folder: None)

    def build_main(arguments):
        pages = Path(arguments[-1])
        (pages / "docs").mkdir(parents=True)
        (pages / "docs" / "index.html").write_text("a page", encoding="utf-8")
        return 0

    package, cmd, command = (types.ModuleType(name) for name in ("sphinx", "sphinx.cmd", "sphinx.cmd.build"))
    command.build_main = build_main
    for module in (package, cmd, command):
        monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.parametrize("there", ["thesis.txt", "index.html", "docs/index.html", "explorer/thesis.txt", ".hidden"])
def test_a_folder_with_other_files_is_never_emptied(build, tmp_path, fake_sphinx, there):
    output = tmp_path / "output"
    (output / there).parent.mkdir(parents=True)
    (output / there).write_text("years of work", encoding="utf-8")
    with pytest.raises(ValueError, match="holds other files, expected a new or empty folder"):
        build.build(output)
    assert (output / there).read_text(encoding="utf-8") == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


def test_a_file_is_not_replaced_by_pages(build, tmp_path, fake_sphinx):
    (tmp_path / "output").write_text("years of work", encoding="utf-8")
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        build.build(tmp_path / "output")


def test_a_folder_with_nothing_but_the_live_page_is_taken(build, tmp_path, fake_sphinx):
    """As `python -m paligemma explore` leaves it."""
    page = tmp_path / "site" / "explorer" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text("the live page", encoding="utf-8")
    assert build.build(tmp_path / "site") == 0


def test_pages_replace_pages_and_leave_the_neighbours(build, tmp_path, fake_sphinx):
    neighbour = tmp_path / "deep" / "site.tmp"
    neighbour.mkdir(parents=True)
    (neighbour / "thesis.txt").write_text("years of work", encoding="utf-8")
    output = tmp_path / "deep" / "site"
    assert build.build(output) == 0
    (output / "old.html").write_text("an old page", encoding="utf-8")
    assert build.build(output) == 0
    assert sorted(path.name for path in output.iterdir()) == ["docs", "index.html"]
    assert (neighbour / "thesis.txt").exists() and len(list((tmp_path / "deep").iterdir())) == 2


def test_a_page_has_alt_texts_and_neither_marks_nor_widgets(build):
    figure = {"output_type": "display_data", "data": {"image/png": "iVBOR"}, "metadata": {}}
    widget = {"output_type": "display_data", "data": {"text/plain": "interactive(children=(IntSlider("}, "metadata": {}}
    value = {"output_type": "execute_result", "data": {"text/plain": "Box of 3"}, "metadata": {}}
    notebook = {
        "cells": [
            {"cell_type": "code", "metadata": {}, "source": "# NBVAL_IGNORE_OUTPUT\nplot()", "outputs": [figure]},
            {
                "cell_type": "markdown",
                "metadata": {},
                "source": "**Figure.** A `map` of [chapter 3](03.ipynb).\n\nMore.",
            },
            {"cell_type": "code", "metadata": {}, "source": "slide()", "outputs": [widget, value]},
        ]
    }
    drawn, _, slider = build.for_the_site(notebook)["cells"]
    assert drawn["metadata"]["mystnb"]["image"]["alt"] == "A map of chapter 3."
    assert drawn["source"] == "plot()"
    assert "interactive" not in json.dumps(slider["outputs"][0]) and slider["outputs"][1] == value


def test_the_link_to_the_repository_comes_from_the_environment(build, monkeypatch):
    for name in ("REPOSITORY_URL", "GITHUB_REPOSITORY", "GITHUB_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    assert build.repository_url() == ""
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/course")
    assert build.repository_url() == "https://github.com/someone/course"
    monkeypatch.setenv("REPOSITORY_URL", "https://example.org/course")
    assert build.repository_url() == "https://example.org/course"
