"""Every figure of the course, in one style. Each file has its subject:

style.py         colours, sizes, fonts, text that may hold anything, files
pictures.py      pictures, patches, boxes, masks and their codes
encoder.py       what the image encoder has learned: filters, similarities, features
matrices.py      matrices, masks of attention, codebooks, dials
tokens.py        token sequences, batches, what a model would say next
attention.py     where attention goes, over pictures and over sequences
curves.py        curves, histograms, bars, the roofline
model_map.py     the map of the whole model, with any of its parts opened
drawings.py      drawings that explain one idea each
shapes.py        boxes, arrows and cells, of which drawings are made
viewer.py        the interactive viewer of attention (needs a notebook)

Each function draws into the axes that it is given, or makes its own, labels them, and returns them (one Axes, or an
array of Axes), so that a test can read back what was drawn: the array, the limits, the titles. Model files never
import this package.

Pictures may be given as a PIL image of any kind, which is drawn as the processor sees it (upright, on white where it
is transparent), or as an array or tensor [H, W], [H, W, C] or [C, H, W], with values 0..255 (uint8), 0..1 (float) or
-1..1 (float, as the image encoder takes them; recognised by negative values). Boxes are (y1, x1, y2, x2) in pixels of
the upright picture, the order in which PaliGemma writes them.
"""

from . import drawings
from .attention import show_answer_attention, show_attention_matrix, show_attention_over_image
from .curves import roofline, show_curves, show_histograms, show_model_sizes, show_spread
from .encoder import show_feature_colours, show_filters, show_similarity, show_similarity_maps
from .matrices import show_clock_hands, show_codebook, show_mask_matrix, show_matrices, show_matrix
from .model_map import architecture
from .pictures import (
    show_boxes,
    show_image,
    show_images,
    show_mask_codes,
    show_masks,
    show_patches,
    to_picture,
)
from .style import (
    BLACK,
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    LINE_STYLES,
    ORANGE,
    PALE,
    PINK,
    RED,
    SKY,
    TOKEN_COLOURS,
    WIDTH,
    YELLOW,
    figure_to_png,
    plain,
    readable_token,
    save_figure,
    set_style,
    small_png,
    to_array,
)
from .tokens import show_batch, show_logit_lens, show_next_tokens, show_tokens

__all__ = [
    "drawings",
    "BLACK",
    "BLUE",
    "CYCLE",
    "GREEN",
    "GREY",
    "LINE_STYLES",
    "ORANGE",
    "PALE",
    "PINK",
    "RED",
    "SKY",
    "TOKEN_COLOURS",
    "WIDTH",
    "YELLOW",
    "architecture",
    "figure_to_png",
    "plain",
    "readable_token",
    "roofline",
    "save_figure",
    "set_style",
    "show_answer_attention",
    "show_attention_matrix",
    "show_attention_over_image",
    "show_batch",
    "show_boxes",
    "show_clock_hands",
    "show_codebook",
    "show_curves",
    "show_feature_colours",
    "show_filters",
    "show_histograms",
    "show_image",
    "show_images",
    "show_logit_lens",
    "show_mask_codes",
    "show_mask_matrix",
    "show_masks",
    "show_matrices",
    "show_matrix",
    "show_model_sizes",
    "show_next_tokens",
    "show_patches",
    "show_similarity",
    "show_similarity_maps",
    "show_spread",
    "show_tokens",
    "small_png",
    "to_array",
    "to_picture",
]
