"""Time and memory to load a checkpoint, ours and transformers', each in a fresh process.

    python -m paligemma.speed.loading ours FOLDER         # what such a process does: one line of JSON

The file lies in the system's cache. Peak memory is that beyond the imports.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ..checkpoint import config_to_dict, load_weights, read_json
from ..modeling_gemma import PaliGemmaConfig, PaliGemmaForConditionalGeneration


def time_loading(ours: PaliGemmaForConditionalGeneration, rounds: int) -> dict:
    """{"file bytes": size, "ours": [{"loaded": s, "ready": s, "peak": bytes}, ...], "transformers": [...]}

    loaded: the model is there; ready: every page of it was touched; peak: None where it is not known.
    """
    from safetensors.torch import save_file

    results = {"ours": [], "transformers": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(dict(ours.state_dict()), path, metadata={"format": "pt"})
        config = json.dumps(config_to_dict(replace(ours.config, eos_token_id=1), ours.dtype))
        (Path(folder) / "config.json").write_text(config, encoding="utf-8")
        size = path.stat().st_size
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        for _ in range(rounds):
            for who, values in results.items():
                command = [sys.executable, "-m", "paligemma.speed.loading", who, folder]
                child = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment)
                if child.returncode:
                    raise RuntimeError(f"loading by {who} failed: {child.stderr.strip()[-500:]}")
                values.append(json.loads(child.stdout.strip().splitlines()[-1]))
    return {"file bytes": size, **results}


def loader(who: str, folder: Path) -> Callable[[], torch.nn.Module]:
    """What loads the model, with everything imported that it needs."""
    if who == "ours":
        return lambda: load_weights(PaliGemmaConfig.from_dict(read_json(folder / "config.json")), folder)
    import transformers
    import transformers.models.gemma.modeling_gemma
    import transformers.models.siglip.modeling_siglip

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model_class = transformers.PaliGemmaForConditionalGeneration  # imported only now, when it is named
    return lambda: model_class.from_pretrained(folder, dtype="auto")


def peak_bytes() -> int | None:
    """The highest memory of this process so far. (getrusage would count the process that started it.)"""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status)[1])


def main(who: str, folder: str) -> None:
    load = loader(who, Path(folder))
    before, start = peak_bytes(), time.perf_counter()
    model = load()
    loaded = time.perf_counter() - start
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.flatten()[::512].float().sum()  # touches every page
    ready = time.perf_counter() - start
    print(json.dumps({"loaded": loaded, "ready": ready, "peak": None if before is None else peak_bytes() - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
