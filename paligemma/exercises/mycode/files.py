"""Find the learner's classes and functions in a folder, and load them without running the rest of their files.

Only imports, definitions and plain assignments are executed, statement by statement: a script that would start a
training at the bottom of a file does not start it here, and one broken class does not hide the others. Imports between
the learner's files are resolved among these files by their names, so that a config.py or utils.py of theirs can never
be mistaken for another module of that name.
"""

import __future__

import ast
import difflib
import importlib
import json
import linecache
import re
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path

SKIPPED = {"site-packages", "node_modules", "__pycache__", "venv", "env", "build", "dist"}
LARGEST = 1_000_000  # characters of a file that is still read: typed files have a few thousand
MOST_FILES = 400

# Names that are looked for, in the order in which they are built in the video, and other names seen for them.
WANTED = {
    "SiglipVisionConfig": ("SiglipConfig",),
    "SiglipVisionEmbeddings": ("SiglipVisionEmbedding", "SiglipEmbeddings", "SiglipImageEmbeddingLayer"),
    "SiglipAttention": ("SiglipVisionAttention", "SiglipMultiHeadAttention", "SiglipSelfAttention"),
    "SiglipMLP": ("SiglipVisionMLP", "SiglipFeedForward"),
    "SiglipEncoderLayer": ("SiglipVisionEncoderLayer", "SiglipVisionLayer", "SiglipTransformerEncoderLayer"),
    "SiglipEncoder": ("SiglipVisionEncoder", "SiglipTransformerEncoder"),
    "SiglipVisionTransformer": ("SiglipTransformer", "SiglipVisualTransformer"),
    "SiglipVisionModel": ("SiglipModel", "SiglipVisionModule"),
    "add_image_tokens_to_prompt": ("add_image_token_to_prompt", "add_image_tokens"),
    "resize": ("resize_image",),
    "rescale": ("rescale_image",),
    "normalize": ("normalise", "normalize_image"),
    "process_images": ("process_image", "preprocess_images"),
    "PaliGemmaProcessor": ("PaliGemmaImageProcessor",),
    "KVCache": (),
    "GemmaConfig": (),
    "PaliGemmaConfig": (),
    "GemmaRMSNorm": ("RMSNorm",),
    "GemmaRotaryEmbedding": ("RotaryEmbedding", "GemmaRotaryEmbeddings"),
    "rotate_half": ("_rotate_half",),
    "apply_rotary_pos_emb": ("apply_rotary_emb", "apply_rotary_pos_embedding", "apply_rotary_position_embedding"),
    "GemmaMLP": ("GemmaFeedForward",),
    "repeat_kv": ("_repeat_kv",),
    "GemmaAttention": (),
    "GemmaDecoderLayer": ("GemmaLayer",),
    "GemmaModel": (),
    "GemmaForCausalLM": ("GemmaForCausalLLM",),
    "PaliGemmaMultiModalProjector": ("MultiModalProjector", "PaliGemmaMultiModalProjection", "PaliGemmaProjector"),
    "PaliGemmaForConditionalGeneration": ("PaliGemmaConditionalGeneration", "PaliGemmaModel"),
    "sample_top_p": ("top_p_sampling",),
}
USUAL_FILES = ("modeling_siglip", "processing_paligemma", "modeling_gemma", "utils", "inference")


@dataclass
class Trouble:
    """Something that was seen while reading or importing: `line` is where, `text` the line itself.

    `about` is the class or function that it keeps from being checked, if there is one. A `grave` one is a fault.
    """

    file: str
    line: int
    text: str
    saw: str
    means: str = ""
    about: str = ""
    grave: bool = True


@dataclass
class Source:
    """A .py file, or the code cells of a notebook, as top-level statements with the name of where they stand."""

    path: Path
    name: str  # as it is shown: "src/modeling_siglip.py"
    statements: list[tuple[ast.stmt, str]] = field(default_factory=list)  # (statement, filename or "x.ipynb, cell 5")
    troubles: list[Trouble] = field(default_factory=list)
    module: types.ModuleType | None = None

    def defined(self) -> dict[str, ast.stmt]:
        """{name: node} of the classes and functions, methods as "Class.method"."""
        found = {}
        for node, _ in self.statements:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                found[node.name] = node
            if isinstance(node, ast.ClassDef):
                for part in node.body:
                    if isinstance(part, ast.FunctionDef):
                        found.setdefault(f"{node.name}.{part.name}", part)
        return found


@dataclass
class Found:
    """One class or function of the learner's: the object, and where it stands."""

    name: str  # the usual name
    own_name: str  # theirs
    thing: object
    source: Source
    filename: str  # what Python calls the file (a notebook's cell has a name of its own)
    first: int
    last: int

    @property
    def file(self) -> str:
        return shown_name(self.filename, self.source)


def shown_name(filename: str, source: Source) -> str:
    """ "modeling_siglip.py", or "video.ipynb, cell 5" """
    return filename if filename.startswith(source.name) else source.name


# --- reading ----------------------------------------------------------------------------------------------------------


def read_folder(folder: Path) -> list[Source]:
    """All Python files and notebooks below a folder (or the one file that it is), parsed; the likely ones first."""
    if folder.is_file():
        paths, root = [folder], folder.parent
    else:
        paths, root = list(walk(folder)), folder
    sources = []
    for path in paths[:MOST_FILES]:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            text = path.read_text(encoding="latin-1")
        except OSError:
            continue
        if len(text) > LARGEST and path.suffix == ".py":
            continue
        source = Source(path, path.relative_to(root).as_posix())
        if path.suffix == ".ipynb":
            read_notebook(source, text)
        else:
            read_text(source, text, str(path))
        if source.statements or source.troubles:
            sources.append(source)
    return sorted(sources, key=rank)


def walk(folder: Path):
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in SKIPPED:
            continue
        if path.is_dir() and not path.is_symlink() and not (path / "pyvenv.cfg").exists():
            yield from walk(path)
        elif path.suffix in (".py", ".ipynb"):
            yield path


def rank(source: Source):
    """Which file is taken when a class stands in several: plain files first, near the top, with the usual names."""
    usual = source.path.stem in USUAL_FILES
    count = sum(find_wanted(name) is not None for name in source.defined())
    return source.path.suffix == ".ipynb", not usual, len(source.path.parts), -count, source.name


def read_notebook(source: Source, text: str) -> None:
    try:
        cells = json.loads(text)["cells"]
    except (ValueError, KeyError, TypeError):
        source.troubles.append(Trouble(source.name, 1, "", "the notebook cannot be read: it is no valid JSON"))
        return
    number = 0
    for cell in cells:
        if not isinstance(cell, dict) or cell.get("cell_type") != "code":
            continue
        number += 1
        code = cell.get("source", "")
        code = "".join(code) if isinstance(code, list) else code
        if code.lstrip().startswith("%%") and not code.lstrip().startswith(("%%time", "%%capture", "%%writefile")):
            continue
        lines = [re.sub(r"^(\s*)[%!].*", r"\1pass", line) for line in code.splitlines()]  # magics and shell commands
        filename = f"{source.name}, cell {number}"
        linecache.cache[filename] = (len(code), None, [line + "\n" for line in code.splitlines()], filename)
        read_text(source, "\n".join(lines) + "\n", filename)


def read_text(source: Source, text: str, filename: str) -> None:
    """Parse; when that fails, parse each top-level definition by itself, so that one error costs one definition."""
    try:
        source.statements += [(node, filename) for node in ast.parse(text, filename).body]
        return
    except (SyntaxError, ValueError) as error:
        whole = error
    lines, told = text.splitlines(), False
    for start, end in pieces(lines):
        piece = "\n" * start + "\n".join(lines[start:end]) + "\n"
        try:
            source.statements += [(node, filename) for node in ast.parse(piece, filename).body]
        except (SyntaxError, ValueError) as error:
            heading = next((line for line in lines[start:end] if re.match(r"(class|def) ", line)), lines[start])
            about = re.match(r"(?:class|def)\s+(\w+)", heading)
            source.troubles.append(explain_syntax(source, filename, error, lines, about.group(1) if about else ""))
            told = True
    if not told:
        source.troubles.append(explain_syntax(source, filename, whole, lines, ""))


def pieces(lines: list[str]):
    """(start, end) of the top-level definitions and of what stands between them."""
    starts, decorated = [0], False
    for index, line in enumerate(lines):
        begins = re.match(r"(class|def|async def|import|from|if __name__)\b|@\w", line) is not None
        if begins and not decorated and index:
            starts.append(index)
        decorated = line.startswith("@")
    return zip(starts, [*starts[1:], len(lines)], strict=True)


def explain_syntax(source: Source, filename: str, error, lines: list[str], about: str) -> Trouble:
    line = getattr(error, "lineno", None) or 1
    opener = re.search(r"after .* on line (\d+)", str(getattr(error, "msg", "")))  # "expected an indented block after…"
    line = int(opener.group(1)) if opener else line
    text = lines[line - 1] if line <= len(lines) else ""
    message = getattr(error, "msg", None) or str(error)
    means = ""
    for pattern, meaning in SYNTAX:
        if re.search(pattern, message):
            means = meaning
            break
    near = range(line, max(0, line - 4), -1)
    tabbed = next(
        (n for n in near if n <= len(lines) and "\t" in lines[n - 1][: -len(lines[n - 1].lstrip()) or None]), 0
    )
    if "indent" in message and tabbed:
        line, text = tabbed, lines[tabbed - 1]
        means = (
            "tabs and spaces are mixed: a tab looks like several spaces and is none of them. Indent every line with "
            "spaces (editors have a command for it)"
        )
    shown = text.strip(" \r\n").replace("\t", "→   ")
    saw = f"{type(error).__name__}: {message}"
    return Trouble(shown_name(filename, source), line, shown, saw, means, about)


SYNTAX = (
    (r"was never closed",
     "a bracket is opened in this line and closed nowhere: count opening and closing brackets from here on"),
    (r"does not match opening|unmatched '[\)\]\}]'", "a closing bracket has no opening one of its kind"),
    (r"forgot a comma", "two values follow one another: a comma is missing, or a bracket that should be closed before"),
    (r"expected ':'", "the colon at the end of a def, class, if, for or while is missing"),
    (r"unindent does not match", "this line is indented by a number of spaces that no line above it has"),
    (r"unexpected indent", "this line is indented further than the lines above allow"),
    (r"expected an indented block", "nothing indented follows a line that ends in a colon"),
    (r"non-printable character|invalid character",
     "a character that only looks like a space, a quote or a dash: it came with a copy from a page. Type it anew"),
    (r"unterminated (string|f-string|triple)", "a quote is opened and not closed in the same line"),
    (r"invalid syntax",
     "Python cannot read this line: look at it and the end of the line above, for a missing bracket, colon or comma"),
    (r"cannot assign to|Maybe you meant '=='", "one = where two are meant, or a value on the left of ="),
)  # fmt: skip


def find_wanted(own_name: str) -> str | None:
    """The usual name for a learner's name: itself, a known other name, or one that differs in case or _ alone."""
    plain = flatten(own_name)
    return next((name for name, others in WANTED.items() if plain in map(flatten, (name, *others))), None)


def flatten(name: str) -> str:
    return name.replace("_", "").lower()


# --- loading ----------------------------------------------------------------------------------------------------------


class Missing:
    """Stands for a library that is not installed, or a name that could not be imported: an error when it is used."""

    def __init__(self, name: str):
        self.__dict__["_name"] = name

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Missing(f"{self._name}.{name}")

    def __call__(self, *args, **kwargs):
        raise ImportError(f"{self._name} could not be imported here")

    def __mro_entries__(self, bases):
        return (object,)


class Workspace:
    """The learner's files, loaded on demand. `stand_ins` {usual name: object} fill in for files not written yet."""

    def __init__(self, folder: str | Path, stand_ins: dict[str, object] | None = None):
        self.folder = Path(folder)
        self.sources = read_folder(self.folder)
        self.stand_ins = stand_ins or {}
        self.troubles: list[Trouble] = [trouble for source in self.sources for trouble in source.troubles]
        self.by_stem: dict[str, Source] = {}
        for source in self.sources:
            self.by_stem.setdefault(source.path.stem, source)
        self.notes: list[str] = []

    # Finding

    def collect(self) -> dict[str, Found]:
        """{usual name: what the learner wrote}, in the order of WANTED."""
        places: dict[str, tuple[str, Source, str]] = {}
        exact = {}
        for source in self.sources:
            for own_name, _ in source.defined().items():
                last = own_name.rpartition(".")[2]
                usual = find_wanted(last)
                if usual is None or (usual[0].isupper() and "." in own_name):
                    continue
                key = ("." in own_name, last != usual)  # a function before a method, the usual name before another
                if usual not in places or (key < exact[usual]):
                    if usual in places and places[usual][1] is not source:
                        continue  # another file, already ranked behind
                    places[usual], exact[usual] = (own_name, source, last), key
        self.place_look_alikes(places)
        found = {}
        for usual in WANTED:
            if usual in places:
                own_name, source, _ = places[usual]
                entry = self.get(usual, own_name, source)
                if entry is not None:
                    found[usual] = entry
        return found

    def place_look_alikes(self, places) -> None:
        """Classes whose names are spelt almost like one that is missing: SiglipVisonModel."""
        taken = {own_name for own_name, _, _ in places.values()}
        for source in self.sources:
            for own_name in source.defined():
                if "." in own_name or own_name in taken or len(own_name) < 8:
                    continue
                left = [name for name in WANTED if name not in places]
                close = difflib.get_close_matches(own_name, left, n=1, cutoff=0.9)
                if close:
                    places[close[0]] = (own_name, source, own_name)

    def get(self, usual: str, own_name: str, source: Source) -> Found | None:
        node = source.defined()[own_name]
        if is_stub(node):
            return None
        module = self.load(source)
        thing = module
        for part in own_name.split("."):
            thing = thing.__dict__.get(part) if isinstance(thing, type) else getattr(thing, part, None)
            if thing is None:
                return None  # its definition raised: told among the troubles
        if "." in own_name:
            thing = as_function(thing)
        top = own_name.split(".")[0]
        filename = next(name for stmt, name in reversed(source.statements) if getattr(stmt, "name", None) == top)
        return Found(usual, own_name, thing, source, filename, node.lineno, node.end_lineno)

    # Loading

    def load(self, source: Source) -> types.ModuleType:
        if source.module is not None:
            return source.module
        name = f"typed_{re.sub(r'[^0-9a-zA-Z]', '_', source.name)}"
        module = source.module = types.ModuleType(name)
        module.__file__ = str(source.path)
        sys.modules[name] = module  # dataclasses look their module up
        for node, filename in source.statements:
            self.run(node, filename, source, module)
        used = names_used(source)
        for usual in self.unwritten():  # the package's, so that the rest can be checked
            for own_name in (usual, *WANTED[usual]):
                stub = isinstance(getattr(module, own_name, None), type) and own_name in source.defined()
                if own_name in used and (stub or not hasattr(module, own_name)):
                    setattr(module, own_name, self.stand_ins[usual])
        return module

    def unwritten(self) -> set[str]:
        """Usual names of which no file has a definition that can be read, or only its first line."""
        written = set()
        for source in self.sources:
            for own_name, node in source.defined().items():
                if not is_stub(node):
                    written.add(find_wanted(own_name.rpartition(".")[2]))
        return set(self.stand_ins) - written

    def run(self, node: ast.stmt, filename: str, source: Source, module) -> None:
        if isinstance(node, ast.ImportFrom):
            self.import_from(node, filename, source, module)
        elif isinstance(node, ast.Import):
            self.import_modules(node, filename, source, module)
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            self.define(node, filename, source, module)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and self.is_harmless(node):
            try:
                execute(node, filename, module)
            except Exception:
                pass  # a constant of a script: what needs it will say so
        elif isinstance(node, ast.Try):
            for inner in node.body:
                self.run(inner, filename, source, module)
        elif isinstance(node, ast.If) and "__name__" not in ast.dump(node.test):
            try:
                chosen = eval(compile(ast.Expression(node.test), filename, "eval"), module.__dict__)
            except Exception:
                chosen = True
            for inner in node.body if chosen else node.orelse:
                self.run(inner, filename, source, module)

    def define(self, node, filename, source, module) -> None:
        try:
            execute(node, filename, module)
        except Exception as error:
            line = line_of(error, filename) or node.lineno
            text = linecache.getline(filename, line).strip()
            saw, means = explain(error, module)
            about = node.name
            try:  # annotations are evaluated at the definition: without them the class may do
                execute(node, filename, module, __future__.annotations.compiler_flag)
                about = ""
            except Exception:
                pass
            self.troubles.append(Trouble(shown_name(filename, source), line, text, saw, means, about))

    def is_harmless(self, node) -> bool:
        """No call of the learner's own code, and none that reads files or fetches a model."""
        own = {name for source in self.sources for name in source.defined()}
        for call in ast.walk(node):
            if isinstance(call, ast.Call):
                name = getattr(call.func, "id", getattr(call.func, "attr", ""))
                if name in own or name in {"from_pretrained", "load", "open", "parse_args", "read", "run", "input"}:
                    return False
                if any(word in name.lower() for word in ("download", "load", "login", "train", "generate")):
                    return False
        return True

    # Imports

    def lookup(self, module: str, level: int) -> Source | None:
        """The learner's file that an import means: `from .siglip import`, `from src.siglip import`, `import siglip`."""
        first, _, last = module.partition(".")[0], None, module.rpartition(".")[2]
        if last not in self.by_stem:
            return None
        folders = {part for source in self.sources for part in source.path.parent.parts}
        return self.by_stem[last] if level or first == last or first in folders else None

    def import_from(self, node, filename, source, module) -> None:
        name = node.module or ""
        if name == "__future__":
            return
        theirs = self.lookup(name, node.level) if name else None
        if not name:  # from . import modeling_siglip
            for alias in node.names:
                other = self.by_stem.get(alias.name)
                setattr(module, alias.asname or alias.name, self.load(other) if other else Missing(alias.name))
            return
        if theirs is None or theirs is source:
            self.import_library(node, name, filename, source, module)
            return
        other = self.load(theirs)
        for alias in node.names:
            if alias.name == "*":
                module.__dict__.update({key: value for key, value in vars(other).items() if not key.startswith("_")})
            elif hasattr(other, alias.name):
                setattr(module, alias.asname or alias.name, getattr(other, alias.name))
            else:
                self.not_there(node, alias, theirs, other, filename, source, module)

    def not_there(self, node, alias, theirs, other, filename, source, module) -> None:
        """A name that the other file of the learner's does not have: said, and replaced as well as it can be."""
        known = [key for key in vars(other) if not key.startswith("_")]
        usual = find_wanted(alias.name)
        same = [key for key in known if usual and find_wanted(key) == usual]
        close = same or difflib.get_close_matches(alias.name, known, n=1, cutoff=0.7)
        broken = [trouble for trouble in self.troubles if trouble.about == alias.name]
        if close:
            value = getattr(other, close[0])
        else:
            value = self.stand_ins.get(usual, Missing(alias.name))
        setattr(module, alias.asname or alias.name, value)
        if broken:
            return  # the class itself is broken, and that is said where it stands
        text = linecache.getline(filename, node.lineno).strip()
        saw = f"{theirs.name} has no {alias.name}"
        means = f"it has {close[0]}: one of the two is a slip" if close else "it is not written yet, or in another file"
        written_later = usual is not None and not close
        self.troubles.append(
            Trouble(shown_name(filename, source), node.lineno, text, saw, means, grave=not written_later)
        )

    def import_library(self, node, name, filename, source, module) -> None:
        for alias in node.names:
            try:
                library = importlib.import_module(name)
                if alias.name == "*":
                    execute(node, filename, module)
                    continue
                try:
                    value = getattr(library, alias.name)
                except AttributeError:
                    value = importlib.import_module(f"{name}.{alias.name}")
            except ImportError as error:
                self.import_failed(error, node, name, alias.name, filename, source)
                usual = find_wanted(alias.name)
                value = self.stand_ins.get(usual, Missing(alias.name)) if usual else Missing(alias.name)
            except Exception as error:  # a library that does not like this machine
                self.import_failed(error, node, name, alias.name, filename, source)
                value = Missing(alias.name)
            setattr(module, alias.asname or alias.name, value)

    def import_modules(self, node, filename, source, module) -> None:
        for alias in node.names:
            theirs = self.lookup(alias.name, 0)
            if theirs is not None and theirs is not source:
                setattr(module, alias.asname or alias.name.partition(".")[0], self.load(theirs))
                continue
            try:
                library = importlib.import_module(alias.name)
                top = sys.modules[alias.name.partition(".")[0]]
                setattr(module, alias.asname or alias.name.partition(".")[0], library if alias.asname else top)
            except Exception as error:
                self.import_failed(error, node, alias.name, None, filename, source)
                setattr(module, alias.asname or alias.name.partition(".")[0], Missing(alias.name))

    def import_failed(self, error, node, name, wanted, filename, source) -> None:
        text = linecache.getline(filename, node.lineno).strip()
        where = shown_name(filename, source), node.lineno, text
        try:
            library = importlib.import_module(name)
        except Exception:
            library = None
        if library is not None and wanted is not None:  # the library is there, the name is not
            close = difflib.get_close_matches(wanted, dir(library), n=1, cutoff=0.6)
            hint = f"did you mean {close[0]}?" if close else ""
            self.troubles.append(Trouble(*where, f"{name} has no {wanted}", hint))
        elif wanted is not None and find_wanted(wanted):
            saw = f"{name} is not among these files"
            self.troubles.append(Trouble(*where, saw, f"the course's {wanted} stands in for it", grave=False))
        elif getattr(node, "level", 0):
            self.troubles.append(Trouble(*where, f"{name}.py is not among these files", "", grave=False))
        else:
            saw = f"{name.partition('.')[0]} cannot be imported here"
            self.troubles.append(Trouble(*where, saw, "what needs it is passed over", grave=False))


def execute(node: ast.stmt, filename: str, module, flags: int = 0) -> None:
    code = compile(ast.Module([node], []), filename, "exec", flags=flags, dont_inherit=True)
    exec(code, module.__dict__)


def names_used(source: Source) -> set[str]:
    return {item.id for node, _ in source.statements for item in ast.walk(node) if isinstance(item, ast.Name)}


def is_stub(node) -> bool:
    """A class or function of which only the first line is there: `pass`, `...`, a docstring."""
    empty = (ast.Pass, ast.Expr)
    if not all(isinstance(part, empty) for part in node.body):
        return False
    return all(isinstance(part, ast.Pass) or isinstance(part.value, ast.Constant) for part in node.body)


def as_function(thing):
    """A method as a function: `self` is an empty object, which functions of this kind do not use."""
    if isinstance(thing, staticmethod):
        return thing.__func__
    if not isinstance(thing, types.FunctionType) or next(iter(thing.__code__.co_varnames), "") != "self":
        return thing

    return types.MethodType(thing, types.SimpleNamespace())


def line_of(error: BaseException, filename: str) -> int | None:
    """The innermost line of this file in the error's trace."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == filename:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


# --- errors in words --------------------------------------------------------------------------------------------------


def explain(error: BaseException, module=None) -> tuple[str, str]:
    """(what Python says, what that usually means), with the name that was probably meant."""
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    close = suggestion(error, module)
    if close:
        return said, f"did you mean {close}?"
    return said, next((meaning for pattern, meaning in ERRORS if re.search(pattern, said)), "")


def suggestion(error: BaseException, module) -> str | None:
    name = getattr(error, "name", None)
    if isinstance(error, UnboundLocalError):
        return None
    if isinstance(error, AttributeError) and name is not None:
        owner = getattr(error, "obj", None)
        if owner is None:
            return None
        known = [key for key in dir(owner) if not key.startswith("__")]
        if hasattr(owner, "_modules"):
            known += [*owner._modules, *owner._parameters, *owner._buffers]
    elif isinstance(error, NameError) and name is not None:
        known, trace = list(vars(module)) if module is not None else [], error.__traceback__
        while trace is not None:
            known += [*trace.tb_frame.f_locals, *trace.tb_frame.f_globals]
            trace = trace.tb_next
        typing_names = ("Optional", "Tuple", "List", "Dict", "Union", "Iterable", "Any")
        if name in typing_names:
            return None
    else:
        return None
    same = {flatten(key): key for key in known}
    if flatten(name) in same:
        return same[flatten(name)]
    usual = find_wanted(name)  # SiglipVisionLayer for SiglipEncoderLayer
    if usual is not None:
        return next((key for key in known if find_wanted(key) == usual), None)
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.75)), None)


ERRORS = (
    (r"before Module.__init__\(\) call", "super().__init__() must be the first line of __init__"),
    (r"attribute '\w+' already exists",
     "the name is already taken when register_buffer comes: assign the tensor to a local variable, not to self.…"),
    (r"Boolean value of Tensor with more than one value is ambiguous",
     "`and`, `or` and `not` ask for one truth value; between tensors, element by element, it is &, | and ~"),
    (r"UnboundLocalError",
     "the variable is used before it has got a value: another one is meant, or a line is missing"),
    (r"NameError: name '(Optional|Tuple|List|Dict|Union|Iterable|Any)'", "the import from typing lacks this name"),
    (r"NameError", "a name that is not defined at this place: a typing slip, or a missing import"),
    (r"not enough values to unpack|too many values to unpack",
     "the number of names on the left is not the number of values on the right"),
    (r"NoneType", "a value is None here: a `return` is missing before, or an argument was not passed"),
    (r"missing the required \"forward\"",
     "the class has no method called forward: it is missing, misspelt or indented too far"),
    (r"view size is not compatible",
     "after a transpose the numbers do not lie in order: reshape, or contiguous() before view"),
    (r"unexpected keyword argument|missing \d+ required|takes \d+ positional",
     "the call and the definition do not have the same arguments"),
    (r"has no attribute", "this object has no such name: it was never set in __init__, or is spelt in another way"),
    (r"mat1 and mat2 shapes|must match the size|Expected size|size mismatch|is invalid for input of size",
     "two shapes do not fit one another: print both just before this line"),
    (r"not tuple|and 'tuple'|'tuple' and|'tuple' object",
     "a tuple is used like a tensor: attention returns two values, (output, weights)"),
    (r"not callable", "something is called with round brackets that is no function"),
    (r"not subscriptable", "square brackets on something that has no elements"),
    (r"ImportError", "what this line needs could not be imported"),
    (r"object.__init__\(\) takes exactly one argument",
     "super().__init__() takes no arguments here: other keys of a config.json stay in **kwargs and are passed over"),
)  # fmt: skip
