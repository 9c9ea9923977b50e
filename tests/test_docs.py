"""The pages to look things up: complete, in order, and in step with the chapters and the package."""

import json
import re

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


@pytest.mark.parametrize("name", ["glossary", "notation", "map", "index", "teaching", "writing"])
def test_links_hold(name, root):
    text = (root / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert target == "figures.md" or (root / "docs" / target).exists(), f"docs/{name}.md links to {target}"


def test_map_names_what_the_package_has(root):
    """Every class and function that the map names exists, in a file that it names."""
    text = (root / "docs" / "map.md").read_text(encoding="utf-8")
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (root / "paligemma").rglob("*.py"))
    for name in re.findall(r"`([A-Za-z_]\w+)`", text):
        if name not in {"Dict"}:
            assert re.search(rf"^(class|def) {name}\b", sources, re.M), f"docs/map.md names {name}: there is none"
    for name in re.findall(r"`([\w/]+\.py)`", text):
        assert (root / "paligemma" / name).exists(), f"docs/map.md names {name}"


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
