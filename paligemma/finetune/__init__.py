"""Teach a model your own pictures: `python -m paligemma.finetune DIR`.

drawings.py    makes a folder of examples from a few drawings
folder.py      reads a folder of examples: JSON lines, COCO, YOLO
check.py       names what is wrong with them, with file and line
lora.py        LoRA: a trained change of low rank beside each linear map; adapters in peft's format
recipe.py      epochs, validation by answers, exact resume, what is saved
__main__.py    the command line
"""

from .check import check_examples
from .folder import Example, Examples, Problem, read_folder
from .lora import add_lora, load_adapter, merge_lora, save_adapter
from .recipe import Plan, train_on

__all__ = [
    "Example",
    "Examples",
    "Plan",
    "Problem",
    "add_lora",
    "check_examples",
    "load_adapter",
    "merge_lora",
    "read_folder",
    "save_adapter",
    "train_on",
]
