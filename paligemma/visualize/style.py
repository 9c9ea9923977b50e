"""The one style of all figures: colours, sizes, fonts, how text is written, how a figure becomes a file."""

import io
import logging
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib import font_manager
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ..files import write_atomically

WIDTH = 7.0  # inches: the width of a text column on a notebook page

# Okabe and Ito's palette: eight colours that stay apart for every common kind of colour blindness.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, RED, PINK = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY, PALE = "#6B6B6B", "#E4E4E4"
CYCLE = [BLUE, ORANGE, GREEN, PINK, RED, SKY, BLACK]  # neighbours differ in lightness too
LINE_STYLES = ["-", "--", ":", "-."]  # beside colour, so that a figure survives a black and white printer
SMALL = 8  # points: nothing in a figure is written smaller
SIGNED = "RdBu_r"  # for values on both sides of zero, which is white: negative blue, positive red
PNG_DPI = 200  # of a file; on the page a figure is shown at 100 pixels an inch, so that sharp screens have two for each

# Fonts with the letters that matplotlib's own lacks (Korean, Chinese, Japanese), as far as the computer has them.
OTHER_FONTS = ("Noto Sans CJK KR", "Noto Sans KR", "NanumGothic", "Malgun Gothic", "Apple SD Gothic Neo")

# One colour for each kind of token, the same in every chapter: (fill, text).
TOKEN_COLOURS = {
    "image": (SKY, BLACK),
    "bos": (PINK, BLACK),
    "prompt": (ORANGE, BLACK),
    "newline": ("#F6D58B", BLACK),
    "suffix": (GREEN, "white"),
    "eos": (PINK, BLACK),
    "loc": (RED, "white"),
    "seg": (BLUE, "white"),
    "pad": (PALE, GREY),
}


def set_style(png_dpi: int = PNG_DPI) -> None:
    """Sets matplotlib's defaults to the course's one style. Call it once, at the head of a notebook.

    It starts from matplotlib's own defaults, so that neither a matplotlibrc nor a style chosen before (a dark one,
    say) can make text and ground the same colour. `png_dpi`: dots per inch of the figures in the notebook's file.
    """
    matplotlib.rcdefaults()
    known = set(font_manager.get_font_names())
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it tells of each weight that a font lacks
    matplotlib.rcParams.update(
        {
            "figure.figsize": (WIDTH, 3.0),
            "figure.dpi": 100,  # on the page: a figure is at most 700 pixels wide
            "figure.constrained_layout.use": True,
            "savefig.dpi": png_dpi,
            "font.family": ["DejaVu Sans", *(font for font in OTHER_FONTS if font in known)],  # the first comes along
            "font.size": 9,
            "axes.titlesize": 9.5,
            "axes.titleweight": "bold",
            "axes.labelsize": 8.5,
            "xtick.labelsize": SMALL,
            "ytick.labelsize": SMALL,
            "legend.fontsize": SMALL,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": GREY,
            "axes.grid": False,
            "grid.color": PALE,
            "lines.linewidth": 1.6,
            "image.cmap": "cividis",
            "image.interpolation": "nearest",  # a pixel looks like a pixel
            "axes.prop_cycle": matplotlib.cycler(color=CYCLE),
        }
    )
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:  # in a notebook
        plt.switch_backend(matplotlib.get_backend())  # load it now, so that it can't overrule the next line later
        shell.display_formatter.formatters["image/png"].for_type(Figure, png_for_notebook)


# ------------------------------------------------------------------------------------------------------------- files


def small_png(figure: Figure) -> bytes:
    """A figure as PNG in 256 colours: a third of the size, which counts where photographs are shown."""
    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", bbox_inches="tight")
    picture = Image.open(full).convert("RGB")
    # Maximum coverage keeps rare colours, such as the ends of a colour bar, where the default would dull them.
    picture = picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    picture.save(small, "PNG", optimize=True)
    return small.getvalue()


def png_for_notebook(figure: Figure) -> tuple[bytes, dict[str, int]]:
    """`small_png`, and the size in which a page is to show it: that of the figure, however many dots the file has."""
    data = small_png(figure)
    with Image.open(io.BytesIO(data)) as picture:
        width, height = picture.size
    scale = figure.dpi / matplotlib.rcParams["savefig.dpi"]
    return data, {"width": round(width * scale), "height": round(height * scale)}


def figure_to_png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file of the figure's own size, for a widget."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=figure.dpi)
    return buffer.getvalue()


def save_figure(figure: Figure | Axes | np.ndarray, path: str | Path) -> Path:
    """Writes `figure` (a Figure or any of its Axes) to `path`; the ending of the name chooses the format.

    The file is written under a temporary name and renamed, so nobody ever sees half a picture.
    Returns the path. Raises ValueError for a name without an ending, OSError when it cannot be written.
    """
    figure = figure if hasattr(figure, "savefig") else np.ravel(figure)[0].figure
    path = Path(path)
    if not path.suffix:
        raise ValueError(
            f"the figure's file is {path}, expected a name with an ending that names a format, such as .png"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as partial:
        figure.savefig(partial, bbox_inches="tight")
    return path


# -------------------------------------------------------------------------------------------------------------- text


@lru_cache
def _letters(families: tuple[str, ...]) -> frozenset[int]:
    """The code points that these fonts can draw."""
    files = {font_manager.findfont(font_manager.FontProperties(family=[family])) for family in families}
    return frozenset().union(*(font_manager.get_font(file).get_charmap() for file in files))


def plain(text: str, longest: int = 160, lines: int = 2) -> str:
    """Text as matplotlib can draw it, whatever it holds: for everything that a model, a user or a file may have said.

    `$` is a dollar and no formula; halves of letters and letters that no font here has are drawn as a box, in silence;
    text of more letters or lines than that ends in an ellipsis.
    """
    text = str(text)
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    text = "\n".join(text.split("\n")[:lines]) + "…" * (text.count("\n") >= lines)
    if not (text.isascii() and text.isprintable()):
        known = _letters(tuple(matplotlib.rcParams["font.family"]))
        text = "".join(_drawable(letter, known) for letter in text)
    return text.replace("$", r"\$")


def name_of(text: str) -> str:
    """`plain`, short enough for a tick or a legend: one line."""
    return plain(text, longest=40, lines=1)


def _drawable(letter: str, known: frozenset[int]) -> str:
    if letter == "\n" or (ord(letter) in known and ord(letter) >= 32):
        return letter
    if letter == "\t":
        return " "
    return "" if unicodedata.category(letter) in ("Cf", "Mn") else "□"  # joiners and accents have no width of their own


def readable_token(token: str, longest: int = 60) -> str:
    """A token as it is written in a figure: a space for `▁`, `\\n` for a newline, `␣` for nothing but spaces.

    Only a token of nothing but newlines is spelled so; a label of two lines stays one.
    """
    text = token.replace("▁", " ")
    return plain((text if text.strip() else text.replace("\n", "\\n")).strip(), longest) or "␣"


# -------------------------------------------------------------------------------------------------- arrays and axes


def to_array(values: object) -> np.ndarray:
    """Tensor, PIL image, list or array -> NumPy array on the CPU; half precision becomes float32."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        if values.is_floating_point():
            values = values.float()
    return np.asarray(values)


def new_axes(ax: Axes | None, width: float = WIDTH, height: float = 3.0) -> Axes:
    """The axes given, or the only axes of a new figure of that size in inches."""
    if ax is not None:
        return ax
    _, ax = plt.subplots(figsize=(width, height))
    return ax


def row_of_axes(n: int, height: float, columns: int | None = None, width: float = WIDTH) -> np.ndarray:
    """A row (or several) of n axes in a new figure: array of n Axes. Places left over are taken away.

    Raises ValueError for less than one panel.
    """
    if n < 1:
        raise ValueError("there is nothing to draw, expected one panel or more: give something to show")
    columns = columns or n
    rows = -(-n // columns)
    _, axes = plt.subplots(rows, columns, figsize=(width, height * rows), squeeze=False)
    for ax in axes.flat[n:]:
        ax.remove()
    return axes.flat[:n]


def frame(ax: Axes) -> None:
    """A thin frame all around, for pictures and matrices."""
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_linewidth(0.6)


def text_colour(rgba: Sequence[float]) -> str:
    """Black on light ground, white on dark ground (relative luminance)."""
    red, green, blue = rgba[:3]
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def colour_scale(
    arrays: Mapping[str, np.ndarray] | Sequence[np.ndarray],
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str | None = None,
) -> dict:
    """One scale for several arrays that are compared: {"vmin", "vmax", "cmap"} for imshow.

    Values on both sides of zero get a diverging map with zero in its middle, unless a map or lopsided limits are given.
    """
    arrays = list(arrays.values()) if isinstance(arrays, Mapping) else list(arrays)
    finite = np.concatenate([np.ravel(array[np.isfinite(array)]).astype(float) for array in arrays] or [np.zeros(1)])
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    signed = low < 0 < high and cmap is None
    if signed and vmin is None and vmax is None:
        high = max(-low, high)
        low = -high
    low, high = low if vmin is None else vmin, high if vmax is None else vmax
    return {"vmin": low, "vmax": high, "cmap": SIGNED if signed and low == -high else cmap}
