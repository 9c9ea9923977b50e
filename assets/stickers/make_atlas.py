"""Draw the sticker atlases: one PNG for each artist, every thing of things.tsv in a cell of its own.

    npm pack @iconify-json/noto@1.2.9 ...          each package of artists.json, in a folder of your own
    python assets/stickers/make_atlas.py FOLDER    reads FOLDER/*.tgz, writes assets/stickers/ARTIST.png

Needs Chromium (any of the usual names, or its path in CHROMIUM) and playwright, which draw the packages' SVG. The
atlases are in the repository, so only somebody who wants other things or another size has to run this.

A cell is CELL x CELL pixels, the things stand in the order of things.tsv, row by row, COLUMNS to a row; the cell
of a thing that an artist never drew is empty. Each drawing keeps its proportions and is scaled until its longer side
fills the cell but for a margin of one pixel, whatever empty border the artist left around it.
"""

import argparse
import base64
import io
import json
import os
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CELL, COLUMNS, COLOURS = 96, 16, 256
LARGE = 256  # pixels at which the browser draws, before empty borders are cut off
FOLDER = Path(__file__).parent


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a tab-separated table as dicts."""
    lines = path.read_text(encoding="utf-8").splitlines()
    names = lines[0].split("\t")
    return [dict(zip(names, line.split("\t"), strict=True)) for line in lines[1:]]


def read_package(folder: Path, artist: dict[str, str]) -> dict:
    """The icons of an artist's npm package, after its licence file has been compared with artists.json.

    Raises FileNotFoundError for a package that was not fetched, ValueError for one with another licence.
    """
    name = f"{artist['package'].removeprefix('@').replace('/', '-')}-{artist['version']}.tgz"
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; fetch it there with `npm pack {artist['package']}@{artist['version']}`."
        )
    with tarfile.open(path) as archive:
        info = json.load(archive.extractfile("package/info.json"))
        icons = json.load(archive.extractfile("package/icons.json"))
    if info["license"]["spdx"] != artist["licence"]:
        raise ValueError(f"{name} is under {info['license']['spdx']}, expected {artist['licence']} as in artists.json.")
    return icons


def svg(icons: dict, name: str) -> str:
    """One icon of an Iconify package as an SVG document. Raises KeyError for a name that the package lacks."""
    alias = icons.get("aliases", {}).get(name, {})
    icon = {**icons, **icons["icons"][alias.get("parent", name)], **alias}
    left, top, width, height = (icon.get(key, default) for key, default in zip(
        ("left", "top", "width", "height"), (0, 0, 16, 16), strict=True))  # fmt: skip
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{LARGE}" '
        f'height="{LARGE}" viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )


def draw(page, document: str) -> Image.Image:
    """Draw an SVG document in the browser on a transparent ground: RGBA, LARGE x LARGE."""
    data = base64.b64encode(document.encode()).decode()
    page.set_content(f'<body style="margin:0"><img src="data:image/svg+xml;base64,{data}"></body>')
    page.wait_for_function("document.images[0].complete")
    return Image.open(io.BytesIO(page.screenshot(omit_background=True))).convert("RGBA")


def fit(drawing: Image.Image) -> Image.Image:
    """Cut off the empty border and scale to fill a cell but for its margin: RGBA, CELL x CELL."""
    box = drawing.getchannel("A").point(lambda alpha: 255 if alpha > 16 else 0).getbbox()
    drawing = drawing.crop(box)
    scale = (CELL - 2) / max(drawing.size)
    size = [max(1, round(side * scale)) for side in drawing.size]
    scaled = drawing.resize(size, Image.Resampling.LANCZOS)
    cell = Image.new("RGBA", (CELL, CELL))
    cell.paste(scaled, ((CELL - size[0]) // 2, (CELL - size[1]) // 2))
    return cell


def reduce_colours(atlas: Image.Image, rounds: int = 12) -> Image.Image:
    """The atlas with a palette of COLOURS colours with alpha (k-means on premultiplied colours): mode P."""
    pixels = np.asarray(atlas, dtype=np.float32).reshape(-1, 4)
    premultiplied = np.concatenate([pixels[:, :3] * pixels[:, 3:] / 255, pixels[:, 3:]], axis=1)
    rng = np.random.default_rng(0)
    drawn = premultiplied[pixels[:, 3] > 0]
    sample = drawn[rng.choice(len(drawn), 60_000)]
    centres = sample[rng.choice(len(sample), COLOURS - 1, replace=False)]

    def nearest(points: np.ndarray) -> np.ndarray:
        parts = np.array_split(points, max(1, len(points) // 20_000))
        return np.concatenate([((centres**2).sum(1) - 2 * p @ centres.T).argmin(1) for p in parts])

    for _ in range(rounds):
        chosen = nearest(sample)
        counts = np.bincount(chosen, minlength=len(centres))
        for channel in range(4):
            sums = np.bincount(chosen, weights=sample[:, channel], minlength=len(centres))
            centres[:, channel] = np.where(counts, sums / np.maximum(counts, 1), centres[:, channel])
        empty = np.flatnonzero(counts == 0)
        centres[empty] = sample[rng.choice(len(sample), len(empty))]
    index = np.zeros(len(pixels), dtype=np.uint8)  # 0 is "nothing here"
    index[pixels[:, 3] > 0] = 1 + nearest(drawn)
    alpha = np.clip(np.round(centres[:, 3]), 0, 255)
    rgb = np.clip(np.round(centres[:, :3] * 255 / np.maximum(centres[:, 3:], 1)), 0, 255)
    picture = Image.fromarray(index.reshape(atlas.height, atlas.width), mode="P")
    picture.putpalette(b"\0\0\0" + rgb.astype(np.uint8).tobytes(), "RGB")
    picture.info["transparency"] = b"\0" + alpha.astype(np.uint8).tobytes()
    return picture


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where `npm pack` put the packages")
    folder = parser.parse_args().folder
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    chromium = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    artists = json.loads((FOLDER / "artists.json").read_text(encoding="utf-8"))
    things = read_table(FOLDER / "things.tsv")
    try:
        packages = {name: read_package(folder, artist) for name, artist in artists.items()}
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": LARGE, "height": LARGE})
        for name, icons in packages.items():
            rows = -(-len(things) // COLUMNS)
            atlas = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
            for number, thing in enumerate(things):
                if thing[name]:
                    cell = fit(draw(page, svg(icons, thing[name])))
                    atlas.paste(cell, (number % COLUMNS * CELL, number // COLUMNS * CELL))
            path = FOLDER / f"{name}.png"
            reduce_colours(atlas).save(path, optimize=True)
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
