"""The drawings of the sticker world: 128 everyday things by several artists, with names in English and Korean.

`assets/stickers/` holds one picture for each artist, with every thing in a cell of its own, the table `things.tsv`
and the file `artists.json`, which says whose drawings a model may learn from:

    train    the artists whose drawings a model is trained on
    choice   an artist held out from training, on whose drawings recipes are compared
    unseen   an artist whose drawings serve for nothing but the final figure
"""

import json
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from .. import ASSETS
from ..world.scenes import with_article

FOLDER = ASSETS / "stickers"
CELL = 96  # pixels a side of a cell of an atlas
WITHOUT_ARTICLE = ("bread", "cheese", "corn", "sushi")  # one does not say "a bread"
SPLITS = ("train", "choice", "unseen")


@dataclass(frozen=True)
class Thing:
    """An everyday thing: what it is called in English and in Korean, and its category, such as `animal`."""

    name: str
    korean: str
    category: str

    @property
    def phrase(self) -> str:
        """The name as a caption has it: `a dog`, `an apple`, `bread`."""
        return self.name if self.name in WITHOUT_ARTICLE else with_article(self.name)


def _things() -> tuple[Thing, ...]:
    lines = (FOLDER / "things.tsv").read_text(encoding="utf-8").splitlines()
    columns = lines[0].split("\t")
    rows = [dict(zip(columns, line.split("\t"), strict=True)) for line in lines[1:]]
    return tuple(Thing(row["english"], row["korean"], row["category"]) for row in rows)


THINGS = _things()
NAMES = tuple(thing.name for thing in THINGS)
CATEGORIES = tuple(dict.fromkeys(thing.category for thing in THINGS))
BY_NAME = {thing.name: thing for thing in THINGS}


@cache
def artists(split: str | None = None) -> tuple[str, ...]:
    """Names of the artists of a split (train, choice, unseen), or of all. Raises ValueError for another split."""
    if split is not None and split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
    table = json.loads((FOLDER / "artists.json").read_text(encoding="utf-8"))
    return tuple(name for name, artist in table.items() if split in (None, artist["split"]))


@cache
def _atlas(artist: str) -> Image.Image:
    if artist not in artists():
        raise ValueError(f"artist is {artist!r}, expected one of {', '.join(artists())}")
    path = Path(FOLDER / f"{artist}.png")
    with Image.open(path) as picture:
        return picture.convert("RGBA")


@cache
def drawing(name: str, artist: str) -> Image.Image | None:
    """An artist's drawing of a thing: RGBA, CELL x CELL pixels, transparent around it; None if there is none.

    Its longer side fills the cell but for a margin of one pixel. Raises ValueError for an unknown name or artist.
    """
    if name not in BY_NAME:
        raise ValueError(f"name is {name!r}, expected one of the {len(NAMES)} names in {FOLDER / 'things.tsv'}")
    atlas = _atlas(artist)
    columns = atlas.width // CELL
    row, column = divmod(NAMES.index(name), columns)
    cell = atlas.crop((column * CELL, row * CELL, (column + 1) * CELL, (row + 1) * CELL))
    return cell if cell.getchannel("A").getextrema()[1] > 0 else None


@cache
def drawn_by(artist: str) -> tuple[str, ...]:
    """Names of the things that this artist drew, in the order of the table."""
    return tuple(name for name in NAMES if drawing(name, artist) is not None)


def checksum() -> str:
    """Eight hexadecimal digits that change with the drawings and their table, for the names of files made from them."""
    total = 0
    for path in sorted(FOLDER.glob("*.png")) + [FOLDER / "things.tsv", FOLDER / "artists.json"]:
        total = zlib.crc32(path.read_bytes(), total)
    return f"{total:08x}"
