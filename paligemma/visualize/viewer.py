"""The interactive attention viewer of chapter 14, for a notebook with a running kernel."""

import html
from collections.abc import Mapping, Sequence

import ipywidgets as widgets
import numpy as np
from matplotlib import pyplot as plt
from PIL import Image

from ..attention_maps import AnswerAttention, answer_attention
from ..modeling_gemma import PaliGemmaForConditionalGeneration
from ..processing_paligemma import PaliGemmaProcessor
from .attention import show_attention_over_image
from .style import figure_to_png, readable_token


def attention_viewer(
    model: PaliGemmaForConditionalGeneration,
    processor: PaliGemmaProcessor,
    images: Mapping[str, Image.Image],
    prompts: Sequence[str],
    layer: int | None = None,
    head: int | None = None,
) -> widgets.Widget:
    """Pick a picture, a prompt, a token of the answer, a layer and a head; see the map over the picture.

    `images` maps names to PIL images. It opens at `layer` and `head`, where they are given, and otherwise at the head
    and the token with the most attention on one patch. Returns a widget whose attribute `state()` gives what it shows
    at the moment: (answer, token, layer, head, map [grid, grid]); so a test can read it.
    """
    text_config = model.config.text_config
    wide = {"layout": widgets.Layout(width="440px"), "style": {"description_width": "60px"}}
    picture = widgets.Dropdown(options=list(images), description="picture", **wide)
    prompt = widgets.Combobox(
        value=prompts[0], options=list(prompts), description="prompt", ensure_option=False, **wide
    )
    token_slider = widgets.SelectionSlider(options=[("", 0)], description="token", **wide)
    layer_slider = widgets.IntSlider(min=0, max=text_config.num_hidden_layers - 1, description="layer", **wide)
    head_slider = widgets.IntSlider(min=0, max=text_config.num_attention_heads - 1, description="head", **wide)
    answer, numbers = (widgets.HTML(layout=widgets.Layout(width="440px")) for _ in range(2))
    figure = widgets.Image(format="png", width=400)
    shown = {"attention": None}

    def ask(change=None):
        shown["attention"] = None  # moving the sliders must not draw the old answer
        attention = answer_attention(model, processor, images[picture.value], prompt.value)
        answer.value = _wrapped(f"answer: {attention.text or '(nothing)'}")
        token_slider.options = [(f"{i}: {readable_token(name)}", i) for i, name in enumerate(attention.tokens)]
        token_slider.value = 0
        if change is None:  # at the start
            best_layer, best_head, token_slider.value = sharpest(attention)
            layer_slider.value = best_layer if layer is None else layer
            head_slider.value = best_head if head is None else head
        shown["attention"] = attention
        draw()

    def draw(change=None):
        attention = shown["attention"]
        if attention is None:
            return
        weights = attention.to_image(layer_slider.value, head_slider.value, token_slider.value).numpy()  # [grid, grid]
        shown["map"] = weights
        row, column = np.unravel_index(int(weights.argmax()), weights.shape)
        numbers.value = _wrapped(
            f"{float(weights.sum()):.0%} of this head's attention goes to the picture; "
            f"the strongest patch is row {row}, column {column} with {float(weights.max()):.0%}"
        )
        word = readable_token(attention.tokens[token_slider.value])
        title = f"“{word}”: layer {layer_slider.value}, head {head_slider.value}"
        axes = show_attention_over_image(images[picture.value], weights, title=title)
        figure.value = figure_to_png(axes.figure)
        plt.close(axes.figure)

    for control in (picture, prompt):
        control.observe(ask, names="value")
    for control in (token_slider, layer_slider, head_slider):
        control.observe(draw, names="value")
    ask()
    controls = widgets.VBox([picture, prompt, answer, token_slider, layer_slider, head_slider, numbers])
    viewer = widgets.HBox([controls, figure], layout=widgets.Layout(flex_flow="row wrap"))
    viewer.state = lambda: (
        shown["attention"].text, token_slider.value, layer_slider.value, head_slider.value, shown["map"],
    )  # fmt: skip
    viewer.controls = {
        "picture": picture, "prompt": prompt, "token": token_slider, "layer": layer_slider, "head": head_slider,
    }  # fmt: skip
    return viewer


def sharpest(attention: AnswerAttention) -> tuple[int, int, int]:
    """(layer, head, token) with the most attention on one patch."""
    num_patches = attention.grid**2
    maps = attention.decoder[:, :, attention.queries, :num_patches]  # [layers, H, A, N]
    layer, head, token, _ = np.unravel_index(int(maps.argmax()), maps.shape)
    return int(layer), int(head), int(token)


def _wrapped(text: str) -> str:
    """Text for an HTML widget, broken into lines where it is too long, also inside of a row of tokens."""
    return f'<div style="line-height:1.4; overflow-wrap:anywhere">{html.escape(text)}</div>'
