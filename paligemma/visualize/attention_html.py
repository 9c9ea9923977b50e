"""Attention over a picture as one HTML file: choose a word of the answer, a layer and a head; no kernel, no network.

    attention = answer_attention(model, processor, image, "caption en")
    save_attention_html("attention.html", attention, image, "caption en")

In a notebook, `AttentionFrame(attention, image, "caption en")` as the last line of a cell shows the same page inside
the output; it is saved with the notebook and works on the static site. For a 3B model at 224 pixels and an answer of 20
tokens the file has about a megabyte: each map is kept in 8 bits a patch, on its own scale, and compressed.
"""

import base64
import html
import io
import json
import os
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from ..attention_maps import AnswerAttention
from ..files import write_atomically
from ..processing_paligemma import to_rgb

LONGEST_SIDE = 448  # of the picture in the file, in pixels
FRAME_HEIGHT = 560  # of the page inside a notebook, in pixels


def save_attention_html(
    path: str | os.PathLike, attention: AnswerAttention, image: Image.Image, prompt: str = ""
) -> Path:
    """Write the page of `attention_page` to `path`; returns it. What was there before is replaced as a whole.

    Raises ValueError for a name that does not end in .html, OSError when the file cannot be written, and what
    `attention_page` raises.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"path is {str(path)!r}, expected a name that ends in .html: a browser goes by that")
    page = attention_page(attention, image, prompt)
    with write_atomically(path) as partial:
        partial.write_text(page, encoding="utf-8", newline="\n")
    return path


class AttentionFrame:
    """The page of `attention_page` inside a notebook's output, as a frame with a document of its own."""

    def __init__(self, attention: AnswerAttention, image: Image.Image, prompt: str = "", height: int = FRAME_HEIGHT):
        self.page = attention_page(attention, image, prompt)
        self.height = height

    def __repr__(self) -> str:  # without a browser, and the same on every run
        return "AttentionFrame: a page to choose a word, a layer and a head; run this cell to see it"

    def _repr_html_(self) -> str:
        return (
            f'<iframe title="Attention over the picture" srcdoc="{html.escape(self.page)}" width="100%" '
            f'height="{self.height}" style="border: 0" sandbox="allow-scripts"></iframe>'
        )


def attention_page(attention: AnswerAttention, image: Image.Image, prompt: str = "") -> str:
    """The page as HTML, whole: the decoder's attention to the picture for every token of the answer.

    `attention` is `answer_attention`'s for this image and prompt. The weights of each map are stored as whole numbers
    from 0 to 255, 255 being the map's largest; so a weight is off by at most 1/510 of that. Raises ValueError when
    the answer has no token or the attention holds values that are not finite.
    """
    queries, N = attention.queries, attention.grid**2
    maps = attention.decoder[:, :, queries, :N].float().numpy()  # [layers, H, A, N]
    if not maps.size or not np.isfinite(maps).all():
        raise ValueError(
            f"the attention has shape {list(maps.shape)} or values that are not finite, expected weights from 0 to 1 "
            "of an answer with one token at least: take them from answer_attention"
        )
    top = maps.max(axis=-1)  # [layers, H, A]
    whole_numbers = np.rint(maps / np.maximum(top, 1e-12)[..., None] * 255).astype(np.uint8)
    layers, heads, tokens, _ = maps.shape
    data = {
        "prompt": prompt,
        "tokens": [token.replace("▁", " ").replace("\n", "\\n").strip() or "▁" for token in attention.tokens],
        "layers": layers,
        "heads": heads,
        "grid": attention.grid,
        "first": first_choice(maps),
        "top": as_text(top.astype("<f4").tobytes()),
        "maps": as_text(whole_numbers.tobytes()),
        "picture": picture_as_url(image),
    }
    # "<" is escaped: a token such as </script> must not end the script.
    return TEMPLATE.replace("DATA", json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"))


def first_choice(maps: np.ndarray) -> list[int]:
    """(layer, head, token) that is shown first: the most concentrated map among the half that look at the picture most.

    maps [layers, H, A, N].
    """
    to_picture = maps.sum(axis=-1)  # [layers, H, A]
    sharpness = maps.max(axis=-1) / np.maximum(to_picture, 1e-12)
    sharpness[to_picture < np.median(to_picture)] = 0
    return [int(index) for index in np.unravel_index(sharpness.argmax(), sharpness.shape)]


def as_text(values: bytes) -> str:
    """Bytes, compressed, in base64; the page undoes both."""
    return base64.b64encode(zlib.compress(values, 9)).decode("ascii")


def picture_as_url(image: Image.Image) -> str:
    """The picture, small, as a data: address."""
    image = to_rgb(image)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Attention over a picture</title>
<style>
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2024; --soft: #565d66; --tint: 26%; }
@media (prefers-color-scheme: dark) { :root { --paper: #1d2127; --ink: #e9ebee; --soft: #aeb6c0; --tint: 32%; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 14px; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { display: flex; flex-wrap: wrap; gap: 20px; }
canvas { width: min(400px, 100%); height: auto; border-radius: 8px; display: block; }
.side { flex: 1 1 280px; min-width: 0; }
h1 { font-size: 1rem; font-weight: 600; margin: 0 0 8px; }
.words { display: flex; flex-wrap: wrap; gap: 5px; margin-bottom: 16px; }
.words button { --kind: #009e73; font: 0.9rem ui-monospace, Menlo, Consolas, monospace; color: var(--ink); border: 0;
  border-bottom: 3px solid var(--kind); border-radius: 6px; padding: 4px 8px; min-height: 32px; cursor: pointer;
  background: color-mix(in srgb, var(--kind) var(--tint), var(--paper)); }
.words .loc { --kind: #d55e00; } .words .seg { --kind: #0072b2; } .words .eos { --kind: #cc79a7; }
.words [aria-checked="true"] { box-shadow: 0 0 0 2px var(--ink); }
label { display: grid; grid-template-columns: 4.5em 1fr 4em; gap: 10px; align-items: center; max-width: 380px; }
input { width: 100%; accent-color: #0072b2; min-height: 28px; }
:focus-visible { outline: 3px solid #0072b2; outline-offset: 2px; }
p { margin: 12px 0 0; } .soft { color: var(--soft); font-size: 0.86rem; }
</style>
<main>
<canvas id="map" role="img" aria-label="The picture under a map of attention"></canvas>
<div class="side">
<h1 id="prompt"></h1>
<div class="words" id="words" role="radiogroup" aria-label="Tokens of the answer"></div>
<label><span>Layer</span><input id="layer" type="range" min="0"><output id="layer-number" for="layer"></output></label>
<label><span>Head</span><input id="head" type="range" min="0"><output id="head-number" for="head"></output></label>
<p id="told" aria-live="polite"></p>
<p class="soft">Point at a token, tap it, or move with the arrow keys. Yellow is where the head looks most; each map has
its own scale. The last step of the head's slider is the mean over all heads.</p>
</div>
</main>
<script>
"use strict";
const data = DATA;
const $ = (id) => document.getElementById(id), N = data.grid ** 2, picture = new Image();
let [layer, head, token] = data.first, maps = null, top_of_map = null;

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

/** Weights of one map [N]; head number `heads` means the mean over them. */
function weights(l, h, a) {
  const one = (i) => {
    const map = (l * data.heads + i) * data.tokens.length + a;
    return Float32Array.from(maps.subarray(map * N, map * N + N), (value) => (value / 255) * top_of_map[map]);
  };
  if (h < data.heads) return one(h);
  const mean = new Float32Array(N);
  for (let i = 0; i < data.heads; i++) one(i).forEach((value, n) => (mean[n] += value / data.heads));
  return mean;
}

const HEAT = [[0, 32, 76], [49, 68, 107], [102, 105, 112], [149, 143, 120], [200, 184, 101], [255, 233, 69]];
function heat(share) {
  const x = share * (HEAT.length - 1), i = Math.min(Math.floor(x), HEAT.length - 2);
  return `rgb(${HEAT[i].map((low, k) => Math.round(low + (x - i) * (HEAT[i + 1][k] - low))).join(",")})`;
}

function show() {
  const w = weights(layer, head, token), largest = Math.max(...w), canvas = $("map"), pen = canvas.getContext("2d");
  const { width, height } = canvas, edge = (k, side) => Math.round((k * side) / data.grid);
  pen.drawImage(picture, 0, 0, width, height);
  w.forEach((value, n) => {
    const row = Math.floor(n / data.grid), column = n % data.grid, x = edge(column, width), y = edge(row, height);
    const share = largest > 0 ? value / largest : 0;
    pen.fillStyle = heat(share);
    pen.globalAlpha = 0.74 - 0.34 * share; // the veil is thinner where the head looks
    pen.fillRect(x, y, edge(column + 1, width) - x, edge(row + 1, height) - y);
  });
  pen.globalAlpha = 1;
  const best = w.indexOf(largest), percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
  const where = `row ${Math.floor(best / data.grid) + 1}, column ${(best % data.grid) + 1}`;
  const who = head < data.heads ? `head ${head}` : "mean of all heads";
  const whole = percent(w.reduce((a, b) => a + b, 0));
  $("told").textContent = `“${data.tokens[token]}”, layer ${layer}, ${who}: ${whole} of the attention goes to the ` +
    `picture; strongest patch ${where} with ${percent(largest)}.`;
  canvas.setAttribute("aria-label", $("told").textContent);
  $("layer").value = layer;
  $("head").value = head;
  $("layer-number").textContent = layer;
  $("head-number").textContent = head < data.heads ? head : "mean";
  $("head").setAttribute("aria-valuetext", $("head-number").textContent);
  [...$("words").children].forEach((button, a) => {
    button.setAttribute("aria-checked", a === token);
    button.tabIndex = a === token ? 0 : -1;
  });
}

async function start() {
  $("prompt").textContent = data.prompt || "The answer";
  data.tokens.forEach((text, a) => {
    const button = document.createElement("button");
    const className = /^<(loc|seg|eos)/.exec(text)?.[1] ?? "";
    Object.assign(button, { type: "button", textContent: text, className });
    button.setAttribute("role", "radio");
    button.onclick = () => ((token = a), show());
    button.onpointerenter = (event) => event.pointerType === "mouse" && button.onclick();
    $("words").append(button);
  });
  $("words").onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key], last = data.tokens.length - 1;
    const to = event.key === "Home" ? 0 : event.key === "End" ? last : token + (step ?? NaN);
    if (!(to >= 0 && to <= last)) return;
    event.preventDefault();
    token = to;
    show();
    $("words").children[token].focus();
  };
  $("layer").max = data.layers - 1;
  $("head").max = data.heads;
  $("layer").oninput = () => ((layer = Number($("layer").value)), show());
  $("head").oninput = () => ((head = Number($("head").value)), show());
  picture.src = data.picture;
  await picture.decode();
  const scale = 480 / Math.max(picture.width, picture.height);
  Object.assign($("map"), { width: Math.round(picture.width * scale), height: Math.round(picture.height * scale) });
  maps = new Uint8Array(await unpack(data.maps));
  top_of_map = new Float32Array(await unpack(data.top));
  show();
}
start();
</script>
</html>
"""
