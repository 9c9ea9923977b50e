"""Who imports whom in the package: never in a circle, and inside a function only where a comment says why."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "paligemma"
# The model, which is read from top to bottom: everything it needs stands at the head of the file.
MODEL_FILES = (
    "checkpoint", "config_checks", "files", "generation", "kv_cache", "locations", "modeling_gemma", "modeling_gemma2",
    "modeling_siglip", "processing_paligemma", "published", "segmentation",
)  # fmt: skip


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(name: str) -> set[str]:
    """The package's modules that this one imports, inside functions as well. Parent packages are not counted."""
    path, found = MODULES[name], set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                found.add(inner if inner in MODULES else source)
    return {module for module in found if module in MODULES and module != name}


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one circle in order, or nothing."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph[name]):
            circle = walk(other, [*path, name])
            if circle:
                return circle
        done.add(name)
        return []

    return next((circle for name in graph if (circle := walk(name, []))), [])


def test_a_circle_would_be_found():
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert "paligemma.modeling_gemma" in imports_of("paligemma.modeling_gemma2")
    assert "paligemma.modeling_gemma" in imports_of("paligemma.checkpoint")


def test_no_module_of_the_package_is_in_a_circle():
    graph = {name: imports_of(name) for name in sorted(MODULES) if name != "paligemma"}
    circle = find_circle({name: others & set(graph) for name, others in graph.items()})
    assert not circle, " -> ".join(circle)


@pytest.mark.parametrize("name", MODEL_FILES)
def test_an_import_inside_a_function_has_its_reason_beside_it(name):
    text = MODULES[f"paligemma.{name}"].read_text(encoding="utf-8")
    lines = text.splitlines()
    for function in ast.walk(ast.parse(text)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "#" in lines[node.lineno - 1], f"{name}.py line {node.lineno} imports without saying why here"
