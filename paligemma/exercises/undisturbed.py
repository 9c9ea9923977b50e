"""What a learner's code may do to torch, numpy, Pillow and the package, and how it is undone.

A function that is checked can set the default dtype, enter autocast, replace torch.softmax or a class of the package.
None of it may bend the next judgement. So everything that a check relies on is remembered when this module is imported,
is put in place while a check runs, and is put in place again after each call of the learner's code. Afterwards the
learner's own settings are as they were before the check.

Not undone: what another thread does meanwhile, what is written into the memory of an object of the package
(model.weight.zero_()), and a name that was replaced before the course was imported.
"""

import builtins
import linecache
import math
import os
import random
import sys
import traceback
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
import torch.nn.functional
from torch import nn

# How an object prints itself is the learner's affair: libraries that print tensors prettily replace these. And Jupyter
# gives every cell an `input` of its own.
NOT_WATCHED = {
    "__repr__", "__str__", "__format__", "__doc__", "__dict__", "__weakref__", "__abstractmethods__", "__spec__",
    "input", "breakpoint", "_",
}  # fmt: skip
MISSING = object()


class Originals:
    """Modules and classes as they were: {owner: {name: value}}."""

    def __init__(self):
        self.saved: dict[object, dict[str, object]] = {}

    def remember(self, owner, only_callables: bool = True) -> None:
        """Remember the names of a module or class. Its constants too, when it is the package's own."""
        if owner in self.saved:
            return
        self.saved[owner] = {
            name: value
            for name, value in vars(owner).items()
            if name not in NOT_WATCHED
            and not isinstance(value, types.ModuleType)
            and (not only_callables or callable(value) or isinstance(value, property | staticmethod | classmethod))
        }

    def remember_package(self) -> None:
        """The modules of the package that are imported by now, and their classes."""
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] != "paligemma" or module is None or module in self.saved:
                continue
            self.remember(module, only_callables=False)
            for value in list(vars(module).values()):
                if isinstance(value, type) and value.__module__ == name:
                    self.remember(value, only_callables=False)

    def replaced(self) -> list[tuple[object, str, object]]:
        """(owner, name, what is there now) for all that is not as it was."""
        found = []
        for owner, saved in self.saved.items():
            now = vars(owner)
            found += [(owner, name, now.get(name, MISSING)) for name, value in saved.items()
                      if now.get(name, MISSING) is not value]  # fmt: skip
            if isinstance(owner, type) and len(now) > len(saved):  # a new name may hide one of a base class
                found += [
                    (owner, name, value)
                    for name, value in list(now.items())
                    if name not in saved
                    and name not in NOT_WATCHED
                    and callable(value)
                    and any(name in vars(base) for base in owner.__mro__[1:-1])
                ]
        return found

    def put_back(self) -> list[tuple[object, str, object]]:
        """Undo every replacement; returns what was found."""
        found = self.replaced()
        for owner, name, _ in found:
            original = self.saved[owner].get(name, MISSING)
            if original is MISSING:
                type.__delattr__(owner, name)
            else:
                place(owner, name, original)
        return found


def place(owner, name: str, value) -> None:
    if value is MISSING:
        (type if isinstance(owner, type) else object).__delattr__(owner, name)
    elif isinstance(owner, type):
        type.__setattr__(owner, name, value)
    else:
        vars(owner)[name] = value


ORIGINALS = Originals()
for owner in (
    builtins, math, random, linecache, traceback,
    torch, torch.Tensor, torch.nn.functional, torch.linalg, torch.autograd, torch.random, nn, nn.init,
    nn.Module, nn.Linear, nn.Embedding, nn.LayerNorm, nn.Conv2d, nn.Dropout, nn.ModuleList, nn.Sequential, nn.Parameter,
    np, np.linalg, np.random, PIL.Image, PIL.Image.Image, PIL.ImageOps,
):  # fmt: skip
    ORIGINALS.remember(owner)


def settings() -> dict:
    """Torch's and Python's settings as they are now."""
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "autocast": {kind: torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")},
        "gradients": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
        "numpy errors": np.geterr(),
        "streams": (sys.stdout, sys.stderr),
        "folder": os.getcwd(),
        "recursion": sys.getrecursionlimit(),
    }


def set_all(wanted: dict) -> None:
    """Back to these settings; only what has changed is touched."""
    if torch.get_default_dtype() != wanted["dtype"]:
        torch.set_default_dtype(wanted["dtype"])
    if torch.get_default_device() != wanted["device"]:
        # None is the CPU without a detour: any other value stays in the way of every later call of torch.
        torch.set_default_device(None if wanted["device"] == torch.device("cpu") else wanted["device"])
    for kind, enabled in wanted["autocast"].items():
        if torch.is_autocast_enabled(kind) != enabled:
            torch.set_autocast_enabled(kind, enabled)
            torch.clear_autocast_cache()
    torch.set_grad_enabled(wanted["gradients"])
    if torch.get_num_threads() != wanted["threads"]:
        torch.set_num_threads(wanted["threads"])
    if torch.get_float32_matmul_precision() != wanted["precision"]:
        torch.set_float32_matmul_precision(wanted["precision"])
    if torch.are_deterministic_algorithms_enabled() != wanted["deterministic"]:
        torch.use_deterministic_algorithms(wanted["deterministic"])
    if torch.is_anomaly_enabled() != wanted["anomaly"]:
        torch.autograd.set_detect_anomaly(wanted["anomaly"])
    torch.set_rng_state(wanted["torch"])
    np.random.set_state(wanted["numpy"])
    random.setstate(wanted["python"])
    np.seterr(**wanted["numpy errors"])
    sys.stdout, sys.stderr = wanted["streams"]
    if os.getcwd() != wanted["folder"]:
        os.chdir(wanted["folder"])
    sys.setrecursionlimit(wanted["recursion"])


def standard() -> None:
    """The settings that every check runs under."""
    if torch.get_default_dtype() != torch.float32:
        torch.set_default_dtype(torch.float32)
    if torch.get_default_device() != torch.device("cpu"):
        torch.set_default_device(None)
    for kind in ("cpu", "cuda"):
        if torch.is_autocast_enabled(kind):
            torch.set_autocast_enabled(kind, False)
            torch.clear_autocast_cache()
    torch.set_grad_enabled(True)


def own_doing(owner, value) -> bool:
    """A library has replaced a function of its own, as torch does with manual_seed when it begins to compile, or has
    wrapped one of ours, as it does with `step` when the first optimizer of a class is made."""
    if getattr(value, "hooked", False) and hasattr(owner, "profile_hook_step"):
        return True
    root = getattr(owner, "__module__", owner.__name__).split(".")[0]
    return str(getattr(value, "__module__", "")).split(".")[0] == root != "paligemma"


@contextmanager
def undisturbed() -> Iterator[list[str]]:
    """Run a check, or one call of the learner's code inside it: what is found is what is left.

    Yields the names that were replaced before, "torch.softmax": inside, the originals are in place.
    """
    found = ORIGINALS.put_back()
    before, modules = settings(), dict(sys.modules)
    try:
        with torch.inference_mode(False), warnings.catch_warnings():
            standard()
            yield [f"{owner.__name__}.{name}" for owner, name, value in found if not own_doing(owner, value)]
    finally:
        ORIGINALS.put_back()
        sys.modules.update(modules)  # those that were taken out are there again
        set_all(before)
        for owner, name, value in found:
            place(owner, name, value)


def say(text: str) -> None:
    """Print, also where the learner's code has closed the stream."""
    for stream in (sys.stdout, sys.__stdout__):
        try:
            print(text, file=stream)
            return
        except (AttributeError, OSError, ValueError):
            continue
