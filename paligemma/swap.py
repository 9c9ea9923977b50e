"""Your code drives the model: put a class or function of yours in place of the package's, for a while.

    with swap(model, GemmaRMSNorm=MyRMSNorm, rotate_half=my_rotate_half) as mine:
        print(generate(mine, processor, images=[image], text=["caption en"]))

Every GemmaRMSNorm of the model is then a MyRMSNorm with the same weights, and the package calls my_rotate_half where
it called its own. Afterwards the model is as it was, whatever happened inside.
"""

import difflib
import inspect
import sys
import threading
import typing
from contextlib import contextmanager

import torch
from torch import nn

from . import (
    attention_maps,
    checkpoint,
    generation,
    kv_cache,
    locations,
    modeling_gemma,
    modeling_gemma2,
    modeling_siglip,
    processing_paligemma,
    segmentation,
)
from .world import contrastive

# Where names are looked for, in this order.
PARTS = (
    modeling_siglip,
    modeling_gemma,
    modeling_gemma2,
    processing_paligemma,
    kv_cache,
    generation,
    locations,
    segmentation,
    contrastive,
    attention_maps,
    checkpoint,
)


@contextmanager
def swap(model: nn.Module | None, **parts):
    """Inside the `with` block, `parts` stand in for the package's classes and functions of the same names.

    A class of modules (GemmaRMSNorm=Mine) replaces every instance in `model`: yours is constructed with the same
    arguments and takes over weights (a copy: what you do to them leaves the model's alone), dtype, device and mode.
    The outermost goes first. Submodules that your class creates itself are left as they are, unless they are package
    classes that you also named. Anything else (rotate_half=mine, KVCache=Mine) replaces the name in all modules of the
    package; for those alone `model` may be None.

    Swaps may be nested, and closed in any order: what stands in a place is the part of the swap opened last of those
    still open. Another thread sees the parts, too. A module of the package that is imported inside the block gets the
    package's own part when the block ends.

    Yields the model: the same object, or yours when the whole model's class was among the parts. Raises ValueError for
    a name that the package or the model does not have or would never use, and, in plain words, when a constructor or
    the parameters do not fit. Torch's random state is left alone.
    """
    classes, names = {}, {}
    for name, part in parts.items():
        home = find_home(name)
        if not callable(part):
            raise TypeError(f"{name} is to be replaced by a {type(part).__name__}, expected a class or function")
        is_module = inspect.isclass(vars(home)[name]) and issubclass(vars(home)[name], nn.Module)
        (classes if is_module else names)[name] = part
    if classes:
        check_holds(model, classes)

    for name in names:
        check_used(name)

    owner = object()  # this swap, in the books of PLACES
    try:
        for name, function in names.items():
            replace_name(name, function, owner)
        if "repeat_kv" in names and isinstance(model, nn.Module):  # the fused attention shares keys without calling it
            for module in attention_maps.attention_modules(model).values():
                PLACES.put(owner, vars(module), "attention", "eager")
        with torch.random.fork_rng(devices=[]):  # constructors draw weights; a learner's seed is the learner's
            mine = replace_modules(model, classes, owner) if classes else model
        yield mine
    finally:
        PLACES.close(owner)


class Places:
    """What stands in each place of the package and of the models, by the swaps that are open."""

    def __init__(self):
        self.lock = threading.RLock()
        self.stacks: dict[tuple[int, str], tuple[dict, object, list]] = {}  # place: (holder, original, [(owner, part)])
        self.names: dict[object, list[tuple[str, object, object]]] = {}  # owner: [(name, stand-in, original)]

    def put(self, owner, holder: dict, name: str, part) -> None:
        with self.lock:
            self.stacks.setdefault((id(holder), name), (holder, holder.get(name), []))[2].append((owner, part))
            holder[name] = part

    def owners(self) -> list:
        """The swaps that are open."""
        return [*self.names, *(owner for _, _, stack in self.stacks.values() for owner, _ in stack)]

    def close(self, owner) -> None:
        """Take this swap's parts out of every place, whichever other swaps are open."""
        with self.lock:
            for place, (holder, original, stack) in list(self.stacks.items()):
                if all(by is not owner for by, _ in stack):
                    continue
                stack[:] = [entry for entry in stack if entry[0] is not owner]
                holder[place[1]] = stack[-1][1] if stack else original
                if not stack:
                    del self.stacks[place]
            for name, stand_in, original in self.names.pop(owner, []):
                replaced.remove((name, stand_in))
                if any(other == name for other, _ in replaced):
                    continue
                # A module that was imported inside the block has taken the stand-in for the package's.
                for module in package_modules():
                    for key, value in list(vars(module).items()):
                        if value is stand_in and (id(vars(module)), key) not in self.stacks:
                            setattr(module, key, original)


def package_modules() -> list:
    return [module for name, module in list(sys.modules.items()) if name.split(".")[0] == "paligemma" and module]


def check_used(name: str) -> None:
    """Raise ValueError where a part of this name would stand there and never be called."""
    if name.endswith("Config") or name == "PaliGemmaProcessor":
        when = "a model is built" if name.endswith("Config") else "a model is opened, and handed over by you"
        raise ValueError(
            f"{name} is needed when {when}, before the swap: your part would never be used. Make your object yourself"
        )
    for module in package_modules():
        if module.__name__.startswith("paligemma.exercises") or name not in vars(module):
            continue
        if any(name in names_used(value) for value in list(vars(module).values()) if is_defined_in(module, value)):
            return
    raise ValueError(f"nothing of the package that is imported now calls {name}: call yours directly")


def is_defined_in(module, value) -> bool:
    return getattr(value, "__module__", None) == module.__name__ and (
        inspect.isfunction(value) or inspect.isclass(value)
    )


def names_used(value) -> set[str]:
    """The global names that a function, or the methods of a class, look up."""
    members = list(vars(value).values()) if inspect.isclass(value) else [value]
    members = [getattr(member, "__func__", getattr(member, "fget", member)) for member in members]
    functions = [inspect.unwrap(member) for member in members if inspect.isfunction(member)]
    codes = [function.__code__ for function in functions if inspect.isfunction(function)]
    found: set[str] = set()
    while codes:
        code = codes.pop()
        found |= set(code.co_names)
        codes += [constant for constant in code.co_consts if inspect.iscode(constant)]
    return found


def find_home(name: str):
    """The module of the package that defines this class or function. Raises ValueError for an unknown name."""
    for home in PARTS:
        if getattr(vars(home).get(name), "__module__", None) == home.__name__ or is_replaced(home, name):
            return home
    known = sorted({
        known for home in PARTS for known, value in vars(home).items()
        if getattr(value, "__module__", None) == home.__name__ and not known.startswith("_")
    })  # fmt: skip
    close = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else "the names are those of the classes in paligemma/*.py"
    raise ValueError(f"the package has no class or function {name}: {hint}")


# ------------------------------------------------------------------------------------------------ functions

replaced: list[tuple[str, object]] = []  # (name, stand-in) of the swaps that are open now
PLACES = Places()


def is_replaced(home, name: str) -> bool:
    return any(name == other and vars(home).get(name) is stand_in for other, stand_in in replaced)


def replace_name(name: str, stand_in, owner) -> None:
    """Let every module of the package that refers to the package's `name` refer to `stand_in`."""
    with PLACES.lock:
        home = vars(find_home(name))
        current = home[name]
        original = PLACES.stacks[id(home), name][1] if (id(home), name) in PLACES.stacks else current
        replaced.append((name, stand_in))
        PLACES.names.setdefault(owner, []).append((name, stand_in, original))
        for module in package_modules():
            # The checks of the exercises compare with the package: they must never see the learner's.
            if not module.__name__.startswith("paligemma.exercises") and vars(module).get(name) is current:
                PLACES.put(owner, vars(module), name, stand_in)


# ------------------------------------------------------------------------------------------------ modules


def stands_for(module: nn.Module) -> str | None:
    """The package's name for this module: its class, or the class that an open swap has replaced by it."""
    kind = type(module)
    own = kind.__name__ if kind.__module__.split(".")[0] == "paligemma" else None
    return vars(module).get("_stands_for", own)


def check_holds(model, classes) -> None:
    """Raise unless the model has at least one instance of each class."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model is a {type(model).__name__}, expected the module whose parts are to be replaced")
    held = {stands_for(module) for module in model.modules()} - {None}
    for name in classes:
        if name not in held:
            raise ValueError(f"this {type(model).__name__} holds no {name}; it holds {', '.join(sorted(held))}")


def replace_modules(model: nn.Module, classes: dict, owner) -> nn.Module:
    """Replace from the outside in; return the model, which is a new one when its own class is replaced."""
    original = dict(model.named_modules())
    done: dict[int, nn.Module] = {}  # a module that hangs in two places is replaced by one module

    def replacement(module: nn.Module, path: str, current: nn.Module) -> nn.Module:
        name = stands_for(module)
        if name not in classes or module in done.values():
            return module
        if id(module) not in done:
            reference = original if path in original else dict(current.named_modules())
            done[id(module)] = build(name, classes[name], module, path, reference)
        return done[id(module)]

    def descend(module: nn.Module, prefix: str, root: nn.Module) -> None:
        for name, child in list(module._modules.items()):
            if child is None:
                continue
            path = f"{prefix}{name}"
            new = replacement(child, path, root)
            if new is not child:
                PLACES.put(owner, module._modules, name, new)
            descend(new, f"{path}.", root)

    mine = replacement(model, "", model)
    descend(mine, "", mine)
    return mine


def build(name: str, kind, old: nn.Module, path: str, tree: dict[str, nn.Module]) -> nn.Module:
    """A `kind` in place of `old`, which stands at `path` of the model: same arguments, same weights."""
    label = f"{name}={getattr(kind, '__name__', kind)}"
    arguments = constructor_arguments(name, old, path, tree)
    call = ", ".join(f"{key}={brief(value)}" for key, value in arguments.items())
    try:
        new = construct(kind, arguments)
    except Exception as error:
        raise ValueError(
            f"{label} cannot be constructed: {getattr(kind, '__name__', kind)}({call}) raised "
            f"{type(error).__name__}: {error}. Its arguments must have these names, or come in this order"
        ) from error
    if not isinstance(new, nn.Module):
        raise ValueError(f"{label} makes a {type(new).__name__}, expected a torch.nn.Module like paligemma's {name}")
    problems = take_over(new, old)
    if problems:
        where = f" at {path}" if path else ""
        raise ValueError(f"{label} does not fit the weights{where}:\n" + "\n".join(f"  - {line}" for line in problems))
    vars(new)["_stands_for"] = name
    for attribute in ("config", "device", "dtype") if not path else ():  # what `generate` asks the whole model for
        if hasattr(old, attribute) and not hasattr(new, attribute):
            setattr(new, attribute, getattr(old, attribute))
    return new


def construct(kind, arguments: dict):
    """Make an object: each argument by its name where `kind` has one of that name, the others in their order.

    So a constructor with an argument of its own in between (max_position_embeddings before base) gets what it asks for.
    """
    try:
        accepted = list(inspect.signature(kind).parameters.values())
    except (TypeError, ValueError):
        return kind(*arguments.values())
    kinds = {parameter.kind for parameter in accepted}
    names = [p.name for p in accepted if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if inspect.Parameter.POSITIONAL_ONLY in kinds or (inspect.Parameter.VAR_POSITIONAL in kinds and not names):
        return kind(*arguments.values())
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return kind(**arguments)
    named = {key: value for key, value in arguments.items() if key in names}
    others = [value for key, value in arguments.items() if key not in names]
    free = [name for name in names if name not in named]
    if len(others) > len(free):
        return kind(*arguments.values())  # too many: Python says so in its own words
    return kind(**named, **dict(zip(free, others)))


def brief(value) -> str:
    return repr(value) if isinstance(value, int | float | str) else f"{type(value).__name__}(...)"


def constructor_arguments(name: str, old: nn.Module, path: str, tree: dict[str, nn.Module]) -> dict:
    """What the package's constructor of `name` was called with, read off the instance and those around it."""
    home = vars(find_home(name))[name]
    hints = typing.get_type_hints(home.__init__)
    arguments = {}
    for parameter in list(inspect.signature(home).parameters.values()):
        key = parameter.name
        if key == "config":
            arguments[key] = find_config(old, path, tree, hints[key])
        elif hasattr(old, key):
            arguments[key] = getattr(old, key)
        elif key == "dim" and hasattr(old, "weight"):
            arguments[key] = old.weight.shape[0]
        elif key == "layer_idx":  # layers count along their list: "model.layers.3.self_attn"
            arguments[key] = int([step for step in path.split(".") if step.isdigit()][-1])
        elif parameter.default is inspect.Parameter.empty:
            raise ValueError(f"{name} cannot be swapped by itself: its `{key}` is not kept; swap what contains it")
    return arguments


def find_config(old: nn.Module, path: str, tree: dict[str, nn.Module], kind: type):
    """The configuration of this type that lies nearest: its own, one of its parts', or one around it."""
    steps = path.split(".") if path else []
    scopes = [old] + [tree[".".join(steps[:n])] for n in range(len(steps), -1, -1) if ".".join(steps[:n]) in tree]
    for scope in scopes:
        for module in scope.modules():
            if isinstance(getattr(module, "config", None), kind):
                return module.config
    raise ValueError(f"no {kind.__name__} was found around {path or 'the model'}: pass the whole model to swap")


@torch.no_grad()
def take_over(new: nn.Module, old: nn.Module) -> list[str]:
    """Copy weights, dtype, device and mode from old to new. Returns what does not fit, in words."""
    for module in new.modules():  # a head that is tied after loading, as published code does it
        if callable(getattr(module, "tie_weights", None)):
            module.tie_weights()
    parameters, buffers = dict(old.named_parameters()), dict(old.named_buffers())
    source = {**parameters, **{name: buffers[name] for name in old.state_dict() if name in buffers}}
    # Tied weights are one tensor under several names: one of these suffices.
    names_of: dict[int, list[str]] = {}
    tensors = dict(new.named_parameters(remove_duplicate=False))
    computed = dict(new.named_buffers())  # constants that the constructor works out: not in need of a source
    for name, tensor in {**tensors, **computed}.items():
        names_of.setdefault(id(tensor), []).append(name)

    problems, used = [], set()
    device = next((tensor.device for tensor in source.values()), torch.device("cpu"))
    for names in names_of.values():
        tensor = tensors.get(names[0], computed.get(names[0]))
        found = next((name for name in names if name in source), None)
        if found is None:
            if names[0] in computed:
                tensor.data = tensor.data.to(device)
            else:
                problems.append(f"yours has a parameter `{names[0]}` {list(tensor.shape)} that the package's has not")
            continue
        used.update(names)
        theirs = source[found]
        if found in parameters and not isinstance(tensor, nn.Parameter):
            problems.append(f"`{found}` is a buffer, which training never changes: it must be an nn.Parameter")
            continue
        if tensor.shape != theirs.shape:
            turned = "; it looks transposed" if list(tensor.shape) == list(theirs.shape)[::-1] else ""
            problems.append(f"`{found}` has shape {list(tensor.shape)}, expected {list(theirs.shape)}{turned}")
            continue
        tensor.data = theirs.data.clone()
        if isinstance(tensor, nn.Parameter):
            tensor.requires_grad_(theirs.requires_grad)
    for name in parameters:
        if name not in used:
            problems.append(f"parameter `{name}` {list(parameters[name].shape)} is missing{hidden(new, name)}")

    new.train(old.training)
    others = dict(old.named_modules())
    for name, module in new.named_modules():  # "sdpa" or "eager", where it is a setting
        setting = getattr(others.get(name), "attention", None)
        if isinstance(setting, str) and isinstance(getattr(module, "attention", None), str):
            module.attention = setting
    return problems


def hidden(new: nn.Module, name: str) -> str:
    """Why a parameter may be invisible to torch, when it can be seen."""
    *steps, last = name.split(".")
    for depth in range(len(steps) + 1):
        scope = dict(new.named_modules()).get(".".join(steps[:depth]))
        step = (steps + [last])[depth]
        value = vars(scope).get(step) if scope is not None else None
        if isinstance(value, torch.Tensor):
            return ": yours is a plain tensor, which torch does not count among the weights (nn.Parameter does)"
        if isinstance(value, list | tuple) and any(isinstance(item, nn.Module) for item in value):
            return f": `{step}` is a plain list, whose modules torch does not see (nn.ModuleList is seen)"
    return ""
