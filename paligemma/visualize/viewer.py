"""The interactive attention viewer of chapter 14, for a notebook with a running kernel."""

import ipywidgets as widgets
import numpy as np
from matplotlib import pyplot as plt

from ..attention_maps import answer_attention
from . import figure_to_png, show_attention_over_image


def attention_viewer(model, processor, images: dict, prompts: list[str]) -> widgets.Widget:
    """Pick a picture, a prompt, a token of the answer, a layer and a head; see the map over the picture.

    `images` maps names to PIL images. Returns a widget whose attribute `state()` gives what it shows at the moment:
    (answer, token, layer, head, map [grid, grid]); so a test can read it.
    """
    text_config = model.config.text_config
    picture = widgets.Dropdown(options=list(images), description="picture")
    prompt = widgets.Combobox(value=prompts[0], options=prompts, description="prompt", ensure_option=False)
    token = widgets.SelectionSlider(options=[("", 0)], description="token")
    layer = widgets.IntSlider(min=0, max=text_config.num_hidden_layers - 1, description="layer")
    head = widgets.IntSlider(min=0, max=text_config.num_attention_heads - 1, description="head")
    answer, numbers, figure = widgets.Label(), widgets.Label(), widgets.Image(format="png", width=340)
    shown = {}

    def ask(change=None):
        shown["attention"] = None  # moving the token's slider must not draw the old answer
        attention = answer_attention(model, processor, images[picture.value], prompt.value)
        answer.value = f"answer: {attention.text or '(nothing)'}"
        token.options = [(f"{i}: {name.replace('▁', '')}", i) for i, name in enumerate(attention.tokens)]
        token.value = 0
        shown["attention"] = attention
        draw()

    def draw(change=None):
        attention = shown.get("attention")
        if attention is None:
            return
        weights = attention.to_image(layer.value, head.value, token.value)  # [grid, grid]
        shown["map"] = weights
        row, column = np.unravel_index(int(weights.argmax()), weights.shape)
        numbers.value = (
            f"{float(weights.sum()):.0%} of this head's attention goes to the picture; "
            f"the strongest patch is row {row}, column {column} with {float(weights.max()):.0%}"
        )
        axes = show_attention_over_image(images[picture.value], weights)
        axes.set_title(f"“{attention.tokens[token.value].replace('▁', '')}”: layer {layer.value}, head {head.value}")
        figure.value = figure_to_png(axes.figure)
        plt.close(axes.figure)

    for control in (picture, prompt):
        control.observe(ask, names="value")
    for control in (token, layer, head):
        control.observe(draw, names="value")
    ask()
    controls = widgets.VBox([picture, prompt, answer, token, layer, head, numbers])
    viewer = widgets.HBox([controls, figure])
    viewer.state = lambda: (shown["attention"].text, token.value, layer.value, head.value, shown["map"])
    viewer.controls = {"picture": picture, "prompt": prompt, "token": token, "layer": layer, "head": head}
    return viewer
