"""Teach a model your own pictures: LoRA, and a folder of examples.

lora.py     a trained change of low rank beside each linear map; adapters in peft's format
"""

from .lora import add_lora, load_adapter, merge_lora, save_adapter

__all__ = ["add_lora", "load_adapter", "merge_lora", "save_adapter"]
