"""PaliGemma from scratch: the whole vision-language model in a few files that are written to be read.

    from paligemma import load_pretrained, generate

    model, processor = load_pretrained("assets/tiny-paligemma")
    generate(model, processor, images=[image], text=["caption en"])

Which file holds what, and the chapter that explains it:

The model, each file from top to bottom
    modeling_siglip.py         the image encoder: patches, attention, layers                       02 to 04
    processing_paligemma.py    pictures and prompts to tensors                                     01, 05
    modeling_gemma.py          the decoder, the projector, the merge, the whole model              06 to 10
    modeling_gemma2.py         what Gemma 2 changes, for PaliGemma 2                               15
    kv_cache.py                keys and values of the tokens so far                                11
    generation.py              prefill, decoding, sampling                                         11
    locations.py               boxes as text: <loc> tokens                                         12
    segmentation.py            masks as text: <seg> tokens and their VQ-VAE                        12

Around it
    checkpoint.py              open and write checkpoints; names on the hub                        15
    published.py               the sizes of Google's checkpoints                                   15
    config_checks.py           checks of configurations and arguments
    options.py                 options on the command line
    attention_maps.py          record attention, roll it out, ablate heads                         14
    swap.py                    your class in place of the package's, in the trained model          03 to 12
    files.py                   write a file whole or not at all
    __main__.py                the command line: python -m paligemma
    showcase.py                record what a model says about photographs                          15

speed/, what makes it fast                                                                         16
    fast.py, step.py           the fast path on a CPU, and what it can take over
    gemv.cpp, gemm.cpp         one token (matrix times vector), a prompt (matrix times matrix)
    simd.h                     vectors of numbers for both
    compiled.py                one step for torch.compile or as a CUDA graph
    benchmark.py, gpu.py       the commands that measure a CPU and a GPU
    shapes.py, timing.py, loading.py    what is measured, and how

world/, the little world of coloured shapes
    scenes.py                  pictures that know what they show; questions and answers            13
    pictures.py                training pictures, drawn ahead                                      13
    tiny_model.py              sizes, tokenizer and first weights of the small model               13
    contrastive.py             the image encoder's own training: the sigmoid loss                  04
    evaluation.py              how good a model of this world is

stickers/, a second world: everyday things by several artists
    atlas.py, scenes.py, tasks.py         drawings, pictures with their truth, questions
    pictures.py, sticker_model.py         training pictures; sizes and tokenizer of the model
    encoder.py, recipe.py, evaluation.py, card.py, __main__.py    how it is trained, measured and drawn
    capstone.py                           24 things, one unseen artist, a scoreboard

training/, the recipe                                                                              13
    stages.py, __main__.py     the four stages and their commands
    loop.py, parallel.py       steps, log, state, resume; several processes
    losses.py                  what each stage learns from
    optimizers.py, muon.py     learning rates and the update; Muon in float32
    adapt.py, finetune.py      change a trained model; teach it a new task from memory

finetune/, your own pictures from a folder
    drawings.py                from a few drawings to a folder of examples
    folder.py, check.py        read a folder; name what is wrong with it
    lora.py                    changes of low rank beside frozen weights
    recipe.py, __main__.py     epochs, validation by answers, resume; the command

visualize/, the figures
    style.py, shapes.py        colours and fonts; boxes, arrows and cells
    pictures.py, tokens.py, matrices.py, curves.py       what the chapters draw
    attention.py, encoder.py   attention over pictures (14); what the encoder learned (02, 04)
    drawings.py, model_map.py  drawings that explain one idea; the map of the whole model
    viewer.py, attention_html.py, explorer.py            the viewer of chapter 14; pages for a browser

exercises/, the teaching tools
    tasks.py, ch01.py to ch16.py    what a task is; the tasks of each chapter
    checking.py, comparing.py       the questions that a check asks; how a result differs
    undisturbed.py, watching.py     what a learner's code may not disturb; the part in the trained model
    predicting.py, exposing.py      predictions that are kept; inputs that expose a wrong version
    progress.py, make.py, collect.py, from_notebooks.py, __main__.py    notebooks, classes, commands
    mycode/                         check the code that you typed from the video
"""

from pathlib import Path

from .attention_maps import answer_attention, record_attention, set_attention
from .checkpoint import load_pretrained, save_pretrained
from .generation import generate
from .kv_cache import KVCache
from .modeling_gemma import (
    GemmaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    make_attn_mask,
)
from .modeling_siglip import SiglipVisionConfig, SiglipVisionModel
from .processing_paligemma import PaliGemmaProcessor

ASSETS = Path(__file__).resolve().parent.parent / "assets"  # pictures and the trained model, in the repository

__all__ = [
    "ASSETS",
    "GemmaConfig",
    "KVCache",
    "PaliGemmaConfig",
    "PaliGemmaForConditionalGeneration",
    "PaliGemmaProcessor",
    "SiglipVisionConfig",
    "SiglipVisionModel",
    "answer_attention",
    "generate",
    "load_pretrained",
    "make_attn_mask",
    "record_attention",
    "save_pretrained",
    "set_attention",
]
