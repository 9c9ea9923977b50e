"""The learner's whole model with the small trained weights: what is loaded, where it parts from ours, what it says."""

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from ... import ASSETS, generate, load_pretrained
from ...kv_cache import KVCache
from ...locations import box_iou, parse_detections
from ...segmentation import load_mask_tokenizer, mask_iou
from ...world import scenes
from . import calls, locate, standins
from .compare import Comparison, Result, in_this_courses_form, quiet
from .files import explain

FOLDER = ASSETS / "tiny-paligemma"
SEED, OTHER_SEED = 2000006, 2000008  # scenes that the small model was not trained on
QUESTIONS = ((SEED, "caption", 0), (OTHER_SEED, "caption", 0), (OTHER_SEED, "detect", 3), (SEED, "segment", 1))
TOLERANCE = 1e-4  # of a module's output, relative to 1 + its size
MOST_TOKENS = 40
# What is run, the largest that there is, and where it lies in the whole model.
SCOPES = {
    "PaliGemmaForConditionalGeneration": "",
    "SiglipVisionModel": "vision_tower",
    "SiglipVisionTransformer": "vision_tower.vision_model",
}


@dataclass
class Difference:
    """The first module whose output differs, in the order of execution."""

    path: str  # "language_model.model.layers.0.self_attn"
    saw: str
    before: str = ""  # the last module before it that is right
    same: int = 0  # how many modules before it are the same
    kind: type | None = None  # the class of the module


@dataclass
class Answer:
    """What the learner's model says to a prompt, beside what it is to say."""

    prompt: str
    mine: str
    ours: str
    truth: str
    remark: str = ""


@dataclass
class Trained:
    """Everything that was found out about the whole model."""

    built: bool = False
    trouble: Result | None = None  # why it could not be built or run
    parameters: int = 0
    lacking: list[tuple[str, str | None]] = field(
        default_factory=list
    )  # (the learner's parameter, nearest in the file)
    unused: list[str] = field(default_factory=list)  # weights of the file that have no place
    misshapen: list[str] = field(default_factory=list)
    modules: int = 0
    largest: float = 0.0
    first: Difference | None = None
    logits: float | None = None
    cached: Difference | None = None
    steps: int = 0
    answers: list[Answer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def differs(self) -> bool:
        """Is there anything about the whole model that is not as it should be?"""
        return bool(self.trouble or self.first or self.cached or self.lacking or self.misshapen)


class Whole:
    """Builds and runs the learner's model, processor and cache; the package's stand in for what isn't written yet."""

    def __init__(self, comparison: Comparison):
        self.comparison, self.found = comparison, comparison.found
        with quiet():
            self.ours, self.processor = load_pretrained(FOLDER)
        self.values = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
        self.pictures = {seed: scenes.draw(scenes.make_scene(seed), 256) for seed in (SEED, OTHER_SEED)}
        self.model: nn.Module | None = None
        self.scope = ""  # where the learner's model lies in the whole
        self.own_processor = None
        self.trained = Trained()

    def thing(self, name: str):
        return self.found[name].thing if name in self.found else None

    def trouble(self, error: Exception, name: str) -> Result:
        """An error while the model is made or run, at the innermost line of the learner's."""
        own = self.comparison.filenames()
        saw, means = explain(error)
        found = self.found.get(name)
        filename, line = locate.place_of_error(error, None, [], own) or (
            (found.filename, found.first) if found else ("", 0)
        )
        text = locate.line_text(filename, line) if line else ""
        return Result(name, "wrong", "raised", self.comparison.shown(filename), line, text, saw, means)

    # Building and loading

    def config(self):
        """The learner's configuration of the small model, made as the video's loader makes it."""
        kind = self.thing("PaliGemmaConfig")
        if kind is None:
            return self.plain_config()
        try:
            made = kind.from_dict(self.values) if hasattr(kind, "from_dict") else kind(**self.values)
        except TypeError as error:
            made = kind(**calls.accepted(kind, self.values))
            self.trained.notes.append(
                f"your PaliGemmaConfig does not take a config.json as it is ({error}): published files have more keys, "
                "which **kwargs would swallow"
            )
        return calls.completed(made, self.sizes())

    def sizes(self) -> calls.Sizes:
        return calls.Sizes(
            {
                **self.values,
                "vision_config": calls.Sizes({**calls.VISION, **self.values["vision_config"]}),
                "text_config": calls.Sizes({**calls.TEXT, **self.values["text_config"]}),
            }
        )

    def plain_config(self):
        return calls.configuration(self.sizes())

    def build(self) -> bool:
        """The learner's model, or only its image encoder, with the trained weights. False if it cannot be made."""
        from safetensors.torch import load_file

        name = next((name for name in SCOPES if name in self.found), None)
        if name is None:
            return False
        kind, self.scope = self.thing(name), SCOPES[name]
        prefix = f"{self.scope}." if self.scope else ""
        try:
            with quiet():
                config = self.config()
                config = config.vision_config if prefix else config
                model = kind(**calls.arguments(kind, {"config": config}))
                if hasattr(model, "tie_weights"):
                    model.tie_weights()
        except Exception as error:
            self.trained.trouble = self.trouble(error, name)
            return False
        file = {key[len(prefix) :]: value for key, value in load_file(FOLDER / "model.safetensors").items()
                if key.startswith(prefix)}  # fmt: skip
        self.load(model, file)
        self.model, self.trained.built = model.eval(), True
        return True

    def load(self, model: nn.Module, file: dict[str, torch.Tensor]) -> None:
        """Copy what fits by name and shape, and note what does not."""
        trained = self.trained
        own = dict(model.named_parameters(remove_duplicate=False))
        loaded = {id(own[key]) for key in own if key in file}
        trained.parameters = len({id(value) for value in own.values()})
        trained.unused = [key for key in file if key not in own]
        for key, value in own.items():
            if key in file and value.shape != file[key].shape:
                trained.misshapen.append(f"{key} has the shape {list(value.shape)}, the file's {list(file[key].shape)}")
            elif key in file:
                value.data.copy_(file[key])
            elif id(value) not in loaded:
                close = difflib.get_close_matches(key, trained.unused, n=1, cutoff=0.6)
                trained.lacking.append((key, close[0] if close else None))

    # Side by side

    def inputs(self) -> dict[str, torch.Tensor]:
        return self.processor(text=["caption en"], images=[self.pictures[SEED]])

    def walk(self) -> None:
        """Both models on one prompt, module by module; then three more tokens with the cache."""
        inputs, trained = self.inputs(), self.trained
        try:
            with quiet(), torch.no_grad():
                if self.scope:
                    pixels = inputs["pixel_values"]
                    mine = record(self.model, lambda: calls.call(self.model, {"hidden_states": pixels}))
                    tower = self.ours.get_submodule(self.scope)
                    self.compare(mine, record(tower, lambda: tower(pixels)), "first")
                    return
                cache, given = self.new_cache(), {key: inputs[key] for key in ("input_ids", "pixel_values")}
                given["attention_mask"] = inputs["attention_mask"]
                ours_cache = KVCache(self.ours.config.text_config, 1, inputs["input_ids"].shape[1] + 3)
                mine = record(self.model, lambda: calls.call(self.model, {**given, "kv_cache": cache}))
                right = record(self.ours, lambda: self.ours(**inputs, kv_cache=ours_cache))
                self.compare(mine, right, "first")
                logits = calls.first_tensor(mine[2])
                if trained.first is None and isinstance(logits, torch.Tensor) and logits.shape == right[2].logits.shape:
                    trained.logits = float((logits - right[2].logits).abs().max())
                if trained.first is None:
                    self.walk_on(given, inputs, cache, ours_cache)
        except Exception as error:
            trained.trouble = self.trouble(error, "PaliGemmaForConditionalGeneration")

    def walk_on(self, given, inputs, cache, ours_cache) -> None:
        trained, types = self.trained, inputs["token_type_ids"]
        mask = inputs["attention_mask"]
        for step, token in enumerate((20, 30, 40)):
            new = torch.tensor([[token]])
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=-1)
            types = torch.cat([types, torch.ones_like(types[:, :1])], dim=-1)
            given = {**self.later(given), "input_ids": new, "attention_mask": mask, "kv_cache": cache}
            mine = record(self.model, lambda given=given: calls.call(self.model, given))
            right = record(
                self.ours,
                lambda new=new, mask=mask, types=types: self.ours(new, None, mask, types, kv_cache=ours_cache),
            )
            self.compare(mine, right, "cached")
            if trained.cached is not None:
                return
            trained.steps = step + 1

    def compare(self, mine, right, where: str) -> None:
        """Set `trained.first` or `.cached` to the first module whose output differs."""
        (seen, order, _), (want, _, _) = mine, right
        kinds = {name: type(module) for name, module in self.model.named_modules()}
        before, same = "", 0
        for path in order:
            if path not in want or path.endswith("embed_tokens") or not path:
                continue
            a, b = seen[path], want[path]
            if a.shape != b.shape:
                saw = f"its output has the shape {list(a.shape)}, expected {list(b.shape)}"
            else:
                gap, size = float((a.float() - b.float()).abs().max()), float(b.abs().max())
                if gap <= TOLERANCE * (1 + size):
                    before, same = path, same + 1
                    if where == "first":
                        self.trained.modules, self.trained.largest = same, max(self.trained.largest, gap)
                    continue
                saw = f"its output differs by up to {gap:.2g}, in numbers up to {size:.2g}"
            setattr(self.trained, where, Difference(path, saw, before, same, kinds.get(path)))
            return

    def later(self, given: dict) -> dict:
        """The arguments of the steps after the prompt: in the video's form the picture comes again, in ours not."""
        if not in_this_courses_form(type(self.model)):
            return given
        return {key: value for key, value in given.items() if key != "pixel_values"}

    def new_cache(self):
        kind = self.thing("KVCache")
        if kind is None:
            return standins.KVCache()
        config = self.plain_config().text_config
        return kind(**calls.arguments(kind, {"config": config, "batch_size": 1, "max_length": 200}))

    # The processor

    def check_processor(self) -> Result:
        """The learner's processor against ours: the same ids and pixels for two prompts and pictures?"""
        found = self.found.get("PaliGemmaProcessor")
        if found is None:
            return Result("PaliGemmaProcessor", "missing")
        text = locate.line_text(found.filename, found.first)
        base = {"file": found.file, "line": found.first, "text": text, "chapter": "05"}
        prompts = (("caption en", SEED), ("detect red circle", OTHER_SEED))
        try:
            with quiet():
                self.own_processor = self.make_processor(found.thing)
                for prompt, seed in prompts:
                    picture = self.pictures[seed]
                    mine = calls.call(self.own_processor, {"text": [prompt], "images": [picture]})
                    result = self.compare_inputs(mine, self.processor(text=[prompt], images=[picture]), prompt)
                    if result is not None:
                        saw, means, name = result
                        return Result("PaliGemmaProcessor", "wrong", name, saw=saw, means=means, **base)
        except Exception as error:
            self.own_processor = None
            return self.trouble(error, "PaliGemmaProcessor")
        return Result("PaliGemmaProcessor", "right", file=found.file)

    def make_processor(self, kind):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(FOLDER, padding_side="right", local_files_only=True)
        vision = self.values["vision_config"]
        return kind(tokenizer, vision["num_image_tokens"], vision["image_size"])

    def compare_inputs(self, mine, right, prompt: str) -> tuple[str, str, str] | None:
        """(what was seen, what it means, name), or None. The mask may have any dtype: the video's is int64."""
        if not hasattr(mine, "keys"):
            return f"the result is a {type(mine).__name__}, expected a dict of tensors", "", "type"
        for key in ("input_ids", "pixel_values", "attention_mask"):
            if key not in mine:
                return f"the result has no {key}: it has {', '.join(map(str, mine.keys()))}", "", "structure"
            a, b = torch.as_tensor(mine[key]), right[key]
            if a.shape != b.shape:
                means = ""
                if key == "input_ids" and a.ndim == 2:
                    a, b = a[0].tolist(), b[0].tolist()
                    means = self.ids_in_words(a, b)
                    return f"{len(a)} input_ids for {prompt!r}, expected {len(b)}", means, "ids"
                return f"{key} has the shape {list(a.shape)}, expected {list(b.shape)}", means, "shape"
            if key == "pixel_values":
                gap = float((a.float() - b).abs().max())
                if gap > 1e-5:
                    means = "the functions before it are judged by themselves: look at what is passed to them"
                    return f"pixel_values differ by up to {gap:.3g}", means, "pixels"
            elif not torch.equal(a.long(), b.long()):
                if key == "input_ids":
                    return f"input_ids differ for {prompt!r}", self.ids_in_words(a[0].tolist(), b[0].tolist()), "ids"
                return f"{key} differs", "", "mask"
        return None

    def ids_in_words(self, mine: list[int], right: list[int]) -> str:
        tokenizer = self.processor.tokenizer

        def shown(ids):
            words, image = tokenizer.convert_ids_to_tokens(ids), tokenizer.convert_ids_to_tokens([1705])[0]
            count = words.count(image)
            rest = [word for word in words if word != image]
            first = f"{image} x {count}" if words[:count] == [image] * count else f"({image} x {count}, not in front)"
            return " ".join([first, *map(repr, rest)])

        return f"yours: {shown(mine)}; right: {shown(right)}"

    # Speaking

    def ask(self) -> None:
        """Caption two scenes, detect and segment: the learner's answers beside the right ones."""
        for seed, task, index in QUESTIONS:
            scene = scenes.make_scene(seed)
            one = scene.things[index]
            prompt = "caption en" if task == "caption" else f"{task} {one.name}"
            ours = generate(self.ours, self.processor, [self.pictures[seed]], [prompt], max_new_tokens=MOST_TOKENS)[0]
            try:
                with quiet(), torch.no_grad():
                    mine = self.say(prompt, self.pictures[seed])
            except Exception as error:
                self.trained.trouble = self.trained.trouble or self.trouble(error, "PaliGemmaForConditionalGeneration")
                return
            self.trained.answers.append(self.judge(task, scene, one, prompt, mine, ours))

    def say(self, prompt: str, picture) -> str:
        """Greedy writing with the learner's parts, as the video's inference.py does it."""
        inputs = calls.call(self.own_processor or self.processor, {"text": [prompt], "images": [picture]})
        if self.scope:  # only the image encoder: ours does the rest
            features = calls.first_tensor(calls.call(self.model, {"hidden_states": inputs["pixel_values"]}))
            features = self.ours.multi_modal_projector(features)
            ids, written = inputs["input_ids"], []
            for _ in range(MOST_TOKENS):
                types = torch.zeros_like(ids)
                types[:, inputs["input_ids"].shape[1] :] = 1
                logits = self.ours(ids, token_type_ids=types, image_features=features, logits_to_keep=1).logits
                written.append(int(logits[0, -1].argmax()))
                if written[-1] == self.ours.config.eos_token_id:
                    break
                ids = torch.cat([ids, torch.tensor([[written[-1]]])], dim=1)
            return self.processor.decode(written)
        ids, mask, cache, written = inputs["input_ids"], inputs["attention_mask"], self.new_cache(), []
        pictures = {"pixel_values": inputs["pixel_values"]}
        for _ in range(MOST_TOKENS):
            given = {"input_ids": ids, **pictures, "attention_mask": mask}
            result = calls.call(self.model, {**given, "kv_cache": cache})
            written.append(int(calls.first_tensor(result)[0, -1].argmax()))
            if written[-1] == self.ours.config.eos_token_id:
                break
            ids, pictures = torch.tensor([[written[-1]]]), self.later(pictures)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=-1)
        return self.processor.decode(written)

    def judge(self, task: str, scene, one, prompt: str, mine: str, ours: str) -> Answer:
        if task == "caption":
            truth = scenes.caption(scene)
            remark = "" if scenes.caption_is_true(scene, mine) else "not true of this picture"
            return Answer(prompt, mine, ours, truth, remark)
        truth = in_words(one.box)
        detections, _ = parse_detections(mine)
        if not detections:
            return Answer(prompt, mine, ours, truth, "there is no box in yours")
        found = detections[0]
        box = in_words(found.box)
        remark = f"IoU of the boxes {box_iou(found.box, one.box):.2f}"
        if task == "segment":
            if found.codes is None:
                return Answer(prompt, box, ours, truth, f"{remark}; there is no mask in yours")
            tokenizer = load_mask_tokenizer(ASSETS / "mask-tokenizer")
            drawn = tokenizer.codes_to_mask(found.codes, found.box, 64, 64)
            index = scene.things.index(one)
            remark += f", of the masks {mask_iou(drawn, scenes.mask(scene, index, 64)):.2f}"
        return Answer(prompt, box, ours, truth, remark)

    # What the design does and does not do

    def properties(self) -> Iterator[tuple[str, str]]:
        """(what was tried and what came of it, where the course shows how): properties, not mistakes."""
        if self.model is None or self.scope or in_this_courses_form(type(self.model)):
            return
        inputs = self.inputs()
        if not self.takes_padding(inputs):
            yield "rows of unequal length in one batch, with padding", "chapters 05, 08 and 11"
        if self.answer_seen(inputs):
            text = "training: a token of the answer sees the tokens after it, and would learn to copy them"
            yield text, "chapters 08 and 13"
        if self.towers(inputs) > 1:
            yield "the image encoder once for a picture: here it runs again for every new token", "chapter 11"
        if hasattr(self.new_cache(), "key_cache"):
            yield "a cache that is written in place: here all of it is copied for every new token", "chapter 11"
        if self.rounds_angles():
            yield (
                "bfloat16: there the frequencies of RoPE are a buffer, which is rounded with the weights",
                "chapter 07",
            )
        if not self.takes_grey():
            yield "grey pictures, and others that are not RGB: image.convert('RGB') helps", "chapter 01"
        if not hasattr(self.plain(self.model), "final_logit_softcapping"):
            yield "PaliGemma 2, whose layers have four norms, soft caps and windows", "chapter 15"

    def plain(self, model):
        return getattr(getattr(model, "config", None), "text_config", None)

    def takes_padding(self, inputs) -> bool:
        ids = torch.cat([inputs["input_ids"], torch.zeros(1, 2, dtype=torch.int64)], dim=1)
        mask = torch.cat([inputs["attention_mask"], torch.zeros(1, 2, dtype=torch.int64)], dim=1)
        try:
            with quiet(), torch.no_grad():
                given = {"input_ids": ids, "pixel_values": inputs["pixel_values"], "attention_mask": mask}
                logits = calls.first_tensor(calls.call(self.model, {**given, "kv_cache": self.new_cache()}))
                right = self.ours(**inputs).logits[0, -1]
            return bool((logits[0, -3] - right).abs().max() < 1e-3)
        except Exception:
            return False

    def answer_seen(self, inputs) -> bool:
        """Does the last token of what goes in change the logits before it?"""
        results = []
        try:
            for last in (20, 30):
                ids = torch.cat([inputs["input_ids"], torch.tensor([[last]])], dim=1)
                given = {"input_ids": ids, "pixel_values": inputs["pixel_values"]}
                with quiet(), torch.no_grad():
                    given["attention_mask"] = torch.ones_like(ids)
                    logits = calls.call(self.model, {**given, "kv_cache": self.new_cache()})
                results.append(calls.first_tensor(logits)[0, -2])
            return bool((results[0] - results[1]).abs().max() > 1e-4)
        except Exception:
            return False

    def towers(self, inputs) -> int:
        """How often the image encoder runs for a prompt and one more token."""
        count, cache = 0, self.new_cache()

        def hook(*_):
            nonlocal count
            count += 1

        handle = self.model.vision_tower.register_forward_hook(hook)
        try:
            with quiet(), torch.no_grad():
                mask = inputs["attention_mask"]
                given = {"pixel_values": inputs["pixel_values"], "kv_cache": cache}
                calls.call(self.model, {"input_ids": inputs["input_ids"], **given, "attention_mask": mask})
                given = self.later(given)
                mask = torch.ones(1, mask.shape[1] + 1, dtype=torch.int64)
                calls.call(self.model, {"input_ids": torch.tensor([[20]]), **given, "attention_mask": mask})
        except Exception:
            return 0
        finally:
            handle.remove()
        return count

    def rounds_angles(self) -> bool:
        """Does `to(torch.bfloat16)` change the cosines of positions in the hundreds?"""
        kind = self.thing("GemmaRotaryEmbedding")
        if kind is None:
            return False
        try:
            made = self.comparison.maker.make("GemmaRotaryEmbedding", kind, calls.text())
            given = {"hidden_states": torch.zeros(1, 2, 2, 6), "position_ids": torch.tensor([[300, 599]])}
            before = calls.call(made, given)[0]
            after = calls.call(made.to(torch.bfloat16), given)[0]
            return bool((before - after).abs().max() > 0.05)
        except Exception:
            return False

    def takes_grey(self) -> bool:
        if self.own_processor is None:
            return True
        try:
            with quiet():
                pixels = calls.call(
                    self.own_processor, {"text": ["caption en"], "images": [self.pictures[SEED].convert("L")]}
                )
            return tuple(pixels["pixel_values"].shape[1:]) == (3, 64, 64)
        except Exception:
            return False


def in_words(box) -> str:
    y1, x1, y2, x2 = (f"{side * 256:.0f}" for side in box)
    return f"rows {y1} to {y2}, columns {x1} to {x2}"


def record(module: nn.Module, run):
    """({path: the first output}, paths in the order in which modules finish, the result)."""
    seen, order, handles = {}, [], []

    def hook_for(path):
        def hook(module, inputs, keywords, output):
            value = output[0] if isinstance(output, tuple | list) and output else output
            if isinstance(value, torch.Tensor) and path not in seen:
                seen[path] = value.detach().clone()
                order.append(path)

        return hook

    for path, child in module.named_modules():
        handles.append(child.register_forward_hook(hook_for(path), with_kwargs=True))
    try:
        result = run()
    finally:
        for handle in handles:
            handle.remove()
    return seen, order, result
