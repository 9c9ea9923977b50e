"""The live page: a small PaliGemma that runs in a browser, written as a folder that needs nothing else.

    python -m paligemma explore                     the course's small model, into site/explorer/
    python -m paligemma explore my-model            a model of your own
    python -m paligemma explore my-model --output shown --open
    python -m paligemma explore --single-file       one index.html with everything in it, to send to somebody

The page's own files lie in `explorer/` of the repository. Two are made here: `world.js` (shapes, colours and scenes of
the little world) and `data.js` (the weights, as text: a page opened from a file may not read other files).
"""

import base64
import json
import re
from dataclasses import asdict
from pathlib import Path

import safetensors.torch

from .. import ASSETS
from ..checkpoint import config_to_dict, load_pretrained
from ..files import write_files_atomically
from ..segmentation import load_mask_tokenizer, mask_tokenizer_folder
from ..world.scenes import COLOURS, KOREAN, SHAPES, make_scene

SOURCE = ASSETS.parent / "explorer"  # the page's own files, in the repository
FILES = ("index.html", "style.css", "model.js", "faults.js", "scene.js", "texts.js", "app.js")
SCENES = 64  # scenes 0 to 63 of the little world, none of which the small model was trained on
FIRST_SCENE = 5
LARGEST = 200_000_000  # bytes of weights: a browser keeps them as one text


def write_explorer(
    folder: str | Path, model: str | Path = ASSETS / "tiny-paligemma", single_file: bool = False
) -> Path:
    """Write the page for `model`, a checkpoint folder, into `folder`; returns the path of its index.html.

    The weights keep the dtype of the file (float32, bfloat16 or float16). What lay in `folder` under the same names is
    replaced as a whole or not at all. With `single_file` everything is in index.html: JupyterLab shows a local page in
    a frame without its cookies, so that the page could load no other file from there.

    Raises FileNotFoundError without the repository's `explorer/` or the model, and ValueError for a PaliGemma 2 or a
    model over 200 MB.
    """
    if not SOURCE.is_dir():
        raise FileNotFoundError(
            f"the page's files are not at {SOURCE}: they come with the repository, so install from a clone of it "
            "(pip install -e .)"
        )
    paligemma, processor = load_pretrained(model)
    text_config = paligemma.config.text_config
    if text_config.model_type != "gemma":
        raise ValueError(f"{model} is a PaliGemma 2 ({text_config.model_type}), expected PaliGemma 1: the page has no "
                         "Gemma 2")  # fmt: skip
    state = {name: tensor.contiguous() for name, tensor in paligemma.state_dict().items()}
    size = sum(tensor.nbytes for tensor in state.values())
    if size > LARGEST:
        raise ValueError(
            f"the weights of {model} are {size / 1e6:.0f} MB, expected {LARGEST / 1e6:.0f} at most: a browser cannot "
            "hold more; paligemma.visualize.save_attention_html shows the attention of large models"
        )
    own = mask_tokenizer_folder(model)
    data = {
        "name": Path(model).resolve().name,
        "config": config_to_dict(paligemma.config, paligemma.dtype),
        "tokenizer": json.loads(processor.tokenizer.backend_tokenizer.to_str()),
        "weights": as_text(state),
        "mask_tokenizer": mask_tokenizer(own if own.is_dir() else ASSETS / "mask-tokenizer"),
    }
    files = {name: (SOURCE / name).read_text(encoding="utf-8") for name in FILES}
    files["world.js"] = f"const WORLD = {as_json(world())};\n"
    files["data.js"] = f"explorer_data({as_json(data)});\n"
    if single_file:
        files = {"index.html": in_one_file(files)}
    with write_files_atomically(folder, outdated=[*FILES, "world.js", "data.js"]) as fresh:
        for name, text in files.items():
            (fresh / name).write_text(text, encoding="utf-8", newline="\n")
    return Path(folder) / "index.html"


def in_one_file(files: dict[str, str]) -> str:
    """index.html with style sheet and scripts inside; the scripts go to the end, where all elements exist."""
    page = files["index.html"]
    page = page.replace('<link rel="stylesheet" href="style.css">', f"<style>\n{files['style.css']}</style>")
    scripts = re.findall(r'<script src="(.*?)" defer></script>\n', page)
    page = re.sub(r'<script src=".*?" defer></script>\n', "", page)
    return page.replace("</body>", "".join(f"<script>\n{files[name]}</script>\n" for name in scripts) + "</body>")


def world() -> dict:
    """Shapes, colours, their Korean names, and the first scenes: (shape, colour, rgb, box, angle) of each thing."""
    scenes = []
    for seed in range(SCENES):
        scene = make_scene(seed)
        things = [(thing.shape, thing.colour, thing.rgb, thing.box, thing.angle) for thing in scene.things]
        scenes.append({"background": scene.background, "things": things})
    return {"shapes": SHAPES, "colours": COLOURS, "korean": KOREAN, "scenes": scenes, "first_scene": FIRST_SCENE}


def mask_tokenizer(folder: Path) -> dict | None:
    """The half of the mask tokenizer that draws, or None where the repository's assets are not at hand."""
    if not folder.is_dir():
        return None
    tokenizer = load_mask_tokenizer(folder)
    state = {name: t.contiguous() for name, t in tokenizer.state_dict().items() if not name.startswith("encoder.")}
    return {"config": asdict(tokenizer.config), "weights": as_text(state)}


def as_text(state: dict) -> str:
    """Tensors as a safetensors file in base64."""
    return base64.b64encode(safetensors.torch.save(state)).decode("ascii")


def as_json(values) -> str:
    """JSON for a script inside a page: no `<`, so that no text in it can end the script."""
    return json.dumps(values, separators=(",", ":")).replace("<", "\\u003c")
