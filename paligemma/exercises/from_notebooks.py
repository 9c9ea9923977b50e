"""Take what was built in the notebooks out of them, and put it together.

Chapter 10 runs a model that is made wholly of the classes in the chapters, as they stand there. Change one in its
notebook, save, run chapter 10 again: the model is made of the changed one. What is finished in the exercises comes
first.
"""

import ast
import dis
import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import CodeType, ModuleType

# Which parts each chapter builds, under the names of the package.
BUILT = {
    "01_pictures.ipynb": ("resize", "rescale", "normalize", "process_images"),
    "02_patches.ipynb": ("SiglipVisionEmbeddings",),
    "03_attention.ipynb": ("SiglipAttention",),
    "04_image_encoder.ipynb": (
        "SiglipMLP",
        "SiglipEncoderLayer",
        "SiglipEncoder",
        "SiglipVisionTransformer",
        "SiglipVisionModel",
    ),
    "05_processor.ipynb": ("add_image_tokens_to_prompt", "PaliGemmaProcessor"),
    "06_rmsnorm.ipynb": ("GemmaRMSNorm",),
    "07_rope.ipynb": ("GemmaRotaryEmbedding", "rotate_half", "apply_rotary_pos_emb"),
    "08_masks_and_gqa.ipynb": ("make_attn_mask", "additive_mask", "repeat_kv", "GemmaAttention"),
    "09_decoder.ipynb": ("GemmaMLP", "GemmaDecoderLayer", "GemmaModel", "GemmaForCausalLM"),
    "10_paligemma.ipynb": ("PaliGemmaMultiModalProjector", "PaliGemmaForConditionalGeneration"),
}


def gather(
    folder: str | os.PathLike = ".",
    chapters: dict[str, tuple[str, ...]] = BUILT,
    exercises: str | os.PathLike | None = None,
) -> ModuleType:
    """The named classes and functions of these notebooks, in one module where each finds the others by name.

    Only imports, the definitions themselves and what they refer to are run, not the rest of a notebook; where a name
    is defined several times, the last definition before the heading "Break it" counts. A part that a notebook
    imports from the package is replaced by the one that an earlier chapter built.

    Args:
        exercises: a folder with exercise notebooks of the same names. A part that is finished there (no line
            `raise NotImplementedError()` is left in it) takes the place of the chapter's.
    Returns the module; its `origin` says of each part which notebook it is from, as `02_patches.ipynb` or
    `exercises/02_patches.ipynb`.

    Raises FileNotFoundError for a missing notebook and ValueError for a name that a notebook does not define.
    """
    module = ModuleType("notebooks")
    module.origin, built = {}, {}

    def take(names, statements: list[ast.stmt], filename: str) -> None:
        for node in statements:
            if isinstance(node, ast.Import | ast.ImportFrom):
                run([node], module, filename)
        for name, value in list(vars(module).items()):  # `package.GemmaMLP` is the one that was built, too
            if isinstance(value, ModuleType) and value.__name__.startswith("paligemma."):
                setattr(module, name, _Built(value, built))
        vars(module).update(built)
        definitions = {name: node for node in statements for name in defined_names(node)}
        missing = [name for name in names if name not in definitions]
        if missing:
            raise ValueError(f"{filename} does not define {', '.join(missing)} before its heading 'Break it'")
        run(needed(names, definitions, statements, skip=built), module, filename)
        built.update({name: vars(module)[name] for name in names})
        module.origin.update(dict.fromkeys(names, filename))

    for filename, names in chapters.items():
        take(names, top_level(read_code(Path(folder) / filename), filename), filename)
        own = Path(exercises) / filename if exercises is not None else None
        if own is not None and own.exists():
            statements = top_level(filter(is_python, read_code(own)), filename)
            take(finished(names, statements), statements, f"{own.parent.name}/{filename}")
    return module


class _Built:
    """A module of the package in which the parts that were built stand in for the package's."""

    def __init__(self, package: ModuleType, built: dict[str, object]):
        self._package, self._built = package, built

    def __getattr__(self, name: str) -> object:
        return self._built[name] if name in self._built else getattr(self._package, name)


def is_python(source: str) -> bool:
    """Whether a cell can be read at all; one that is being written often can't."""
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def finished(names, statements: list[ast.stmt]) -> list[str]:
    """Those of the names that are defined here without a line that is still to be written."""
    definitions = {name: node for node in statements for name in defined_names(node)}
    return [name for name in names if name in definitions and "NotImplementedError" not in ast.dump(definitions[name])]


def read_code(path: Path) -> list[str]:
    """The source of the code cells above the heading "Break it", without IPython's own commands."""
    if not path.exists():
        raise FileNotFoundError(f"there is no notebook {path}: give the folder that the chapters are in")
    sources = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and source.startswith("## Break it"):
            break
        if cell["cell_type"] == "code":
            lines = source.splitlines()
            sources.append("\n".join("pass" if line.startswith(("%", "!")) else line for line in lines))
    return sources


def top_level(sources: Iterable[str], filename: str) -> list[ast.stmt]:
    """All statements of the cells, in order."""
    return [node for source in sources for node in ast.parse(source, filename).body]


def defined_names(node: ast.stmt) -> list[str]:
    """The names that a class, a function or a plain assignment of a value defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


def needed(names, definitions: dict[str, ast.stmt], statements: list[ast.stmt], skip) -> list[ast.stmt]:
    """The definitions of `names` and of all that they refer to, in the order of the notebook."""
    wanted, seen = list(names), set()
    while wanted:
        name = wanted.pop()
        node = definitions.get(name)
        if node is None or name in seen or (name in skip and name not in names):
            continue
        seen.add(name)
        wanted += names_from_outside(node)
    chosen = {id(definitions[name]) for name in seen}
    return [node for node in statements if id(node) in chosen]


def names_from_outside(node: ast.stmt) -> list[str]:
    """The names that a statement looks up in its module; not the variables of its own functions."""
    codes, names = [compile(ast.Module(body=[node], type_ignores=[]), "notebook", "exec")], []
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        loads = (step for step in dis.get_instructions(code) if step.opname.startswith("LOAD_"))
        names += [step.argval for step in loads if "GLOBAL" in step.opname or "NAME" in step.opname]
    return names


def run(nodes: list[ast.stmt], module: ModuleType, filename: str) -> None:
    """Run these statements in the module."""
    exec(compile(ast.Module(body=nodes, type_ignores=[]), filename, "exec"), module.__dict__)
