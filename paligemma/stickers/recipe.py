"""How the sticker model is trained: three commands, each seeded, logged and resumable.

    python -m paligemma.stickers masks      the mask tokenizer, on the outlines of the drawings
    python -m paligemma.stickers encoder    the image encoder alone, from labels for each patch
    python -m paligemma.stickers model      all of it together, every task mixed
    python -m paligemma.stickers export     a folder in bfloat16 from wherever the last of them has come to

The loop, its optimisers and its loss are those of `paligemma.training`. A command writes into its folder under
runs/stickers/: log.jsonl, state.pt (everything needed to go on) and, at the end of each cycle of the learning rate, a
finished model. Run the same command again after an interruption and it goes on exactly where it stopped.

Only drawings of the artists for training are used. Choose between recipes on the artist of the split `choice`.
"""

import copy
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from ..checkpoint import save_pretrained
from ..modeling_gemma import PaliGemmaForConditionalGeneration, apply_rotary_pos_emb
from ..processing_paligemma import PaliGemmaProcessor
from ..segmentation import (
    MaskTokenizer,
    MaskTokenizerConfig,
    crop_mask,
    load_mask_tokenizer,
    mask_tokenizer_folder,
    save_mask_tokenizer,
    train_mask_tokenizer,
)
from ..training import (
    AnswerLoss,
    Metric,
    ModelWithPatchHeads,
    Schedule,
    autocast,
    questions_loss,
    read_log,
    train,
    write_log,
)
from ..world.pictures import draw_questions
from ..world.tiny_model import initialise
from .atlas import THINGS, artists, drawn_by
from .encoder import BOX_WEIGHT, EncoderStage, PatchHeads, freeze_patches, whiten_patches
from .pictures import Pictures
from .scenes import cutout, random_cut
from .sticker_model import IMAGE_SIZE, PATCH_SIZE, build_sticker_model, build_sticker_processor, vision_config
from .tasks import ask

# (steps, factor) of each cycle: the learning rates rise, fall to nothing, and start again. Each cycle ends with a
# model that can be used, and the next makes it better.
ENCODER_CYCLES = ((1500, 1.0), (3000, 1.0), (6000, 0.7))
MODEL_CYCLES = ((1000, 1.0), (2000, 0.8), (4000, 0.6), (8000, 0.5))
PER_PICTURE = 3  # questions about each picture, each of another task
EASY_STEPS = 300  # the first steps of a new model see pictures of one or two stickers only
HELD_OUT = 64  # pictures by the artist of `choice`, whose loss is logged
HEADS_WEIGHT = 0.3  # of the labels for each patch, beside the answers
WORDS_WEIGHT = 0.3  # of `word_loss`
GROUNDING_WEIGHT = 0.3  # of `grounding_loss`

# How often each task is asked. Naming is what this world is about; it happens in captions most.
TASK_WEIGHTS = {
    "caption": 1.6,
    "caption ko": 1.6,
    "name": 1.0,
    "beside": 0.8,
    "which": 0.6,
    "how many": 0.6,
    "is there": 0.8,
    "where": 0.4,
    "relation": 0.5,
    "detect": 1.4,
    "detect pair": 0.8,
    "segment": 1.6,
}


# ------------------------------------------------------------------------------------------- the mask tokenizer


def outlines(per_drawing: int, hands: tuple[str, ...], seed: int = 0) -> torch.Tensor:
    """Masks of every drawing of these artists at random angles, each filling its box: float32 [N, 64, 64], 0 to 1."""
    rng = np.random.default_rng(seed)
    found = []
    for hand in hands:
        for name in drawn_by(hand):
            for _ in range(per_drawing):
                alpha = np.asarray(cutout(random_cut(rng, name, hand, varied=True)).getchannel("A"))
                found.append(crop_mask(alpha > 127, (0, 0, 1, 1)))
    return torch.stack(found)


def train_masks(out: Path, seed: int = 0, steps: int = 2000) -> MaskTokenizer:
    """Train a mask tokenizer on the outlines of the drawings for training, and save it to `out`.

    The one of the shapes draws the outline of an anchor or a guitar with an IoU of about a third.
    """
    lines, began = [], time.monotonic()

    def log(figures: dict[str, float]) -> None:
        lines.append({**figures, "seconds": round(time.monotonic() - began, 1)})
        print(json.dumps(lines[-1]), flush=True)

    config = MaskTokenizerConfig(width=6)
    masks = outlines(8, artists("train"), seed)
    tokenizer = train_mask_tokenizer(masks, config, steps, corrupt=0.1, agree=1.0, seed=seed, log=log)
    save_mask_tokenizer(tokenizer, out)
    write_log(out / "training.jsonl", lines)
    return tokenizer


# ------------------------------------------------------------------------------------------------- the encoder


def encoder_loss(
    stage: EncoderStage,
    pictures: Pictures,
    per_step: int,
    seed: int,
    device: torch.device,
    box_weight: float = BOX_WEIGHT,
) -> Callable:
    """The function that `train` calls: what each patch of a batch says of its sticker."""

    def batch_loss(step: int):
        indices = np.random.default_rng([seed, step]).integers(pictures.count, size=per_step)
        labels = {name: tensor.to(device) for name, tensor in pictures.labels(indices).items()}
        with autocast(device):
            patches = stage.vision_tower(pictures.batch(indices).to(device))  # [B, N, D]
        return stage.heads.loss(patches.float(), labels, box_weight)

    return batch_loss


def held_out_encoder_loss(stage: EncoderStage, pictures: Pictures, device: torch.device) -> Callable[[], float]:
    """The function that `train` calls now and then: the same loss on all of `pictures`, by an artist not trained on."""
    labels = {name: tensor.to(device) for name, tensor in pictures.labels(range(pictures.count)).items()}
    pixel_values = pictures.batch(range(pictures.count)).to(device)

    def loss() -> float:
        with autocast(device):
            patches = stage.vision_tower(pixel_values)
        return stage.heads.loss(patches.float(), labels)[0].item()

    return loss


def read_weights(state: Path) -> dict[str, torch.Tensor]:
    """The weights in a run's state.pt, finished or not. Raises FileNotFoundError when it is missing."""
    if not state.is_file():
        raise FileNotFoundError(
            f"{state} is missing, expected the state.pt of a run: run the stage before this one first"
        )
    return torch.load(state, map_location="cpu", weights_only=True)["model"]


def train_encoder(
    out: Path,
    pictures: Pictures,
    schedule: Schedule,
    per_step: int,
    device: torch.device,
    start: Path | None = None,
    stop_at: int | None = None,
    box_weight: float = BOX_WEIGHT,
) -> None:
    """The first stage: the image encoder alone, from nothing or from the state.pt `start` of an earlier run.

    Once it knows the names, a larger `box_weight` teaches it to see more exactly where things end.
    """
    stage = EncoderStage(vision_config())
    initialise(stage, schedule.seed)
    whiten_patches(stage.vision_tower, pictures.batch(range(0, pictures.count, max(1, pictures.count // 400))))
    if start is not None:
        stage.load_state_dict(read_weights(start))
    stage.to(device)
    batch_loss = encoder_loss(stage, pictures, per_step, schedule.seed, device, box_weight)
    others = Pictures(HELD_OUT, pictures.size, pictures.patch, pictures.folder, split="choice")
    held_out = held_out_encoder_loss(stage, others, device)
    settings = options(pictures, per_step, start) | {"box weight": box_weight}
    train(stage, batch_loss, schedule, out, stop_at=stop_at, options=settings, held_out=held_out)


def options(pictures: Pictures, per_step: int, start: Path | None) -> dict:
    """What else decides a run's result: it goes on under the same only."""
    return {"per_step": per_step, "pictures": pictures.count, "start": start and start.as_posix()}


# --------------------------------------------------------------------------------------------- the whole model


def word_ids(tokenizer) -> torch.Tensor:
    """The token that each name begins with, inside a sentence, at the start of an answer, and in Korean: [3, names]."""
    forms = ([f" {t.name}" for t in THINGS], [t.name for t in THINGS], [f" {t.korean}" for t in THINGS])
    return torch.tensor(
        [[ids[0] for ids in tokenizer(names, add_special_tokens=False)["input_ids"]] for names in forms]
    )


def word_loss(features: torch.Tensor, words: torch.Tensor, names: torch.Tensor) -> tuple[torch.Tensor, Metric]:
    """Cross-entropy of each patch's name, read with the word embeddings as the classifier.

    SigLIP's features arrive aligned with text, from billions of captions. Here the alignment is a loss of its own: the
    features [P, N, D] of a patch on a sticker are to have their largest product with the embedding of its name, among
    the embeddings `words` [forms, W, D] of all names. `names` [P, N] counts from 1; 0 is no sticker.
    """
    inside = names > 0
    logits = torch.einsum("td,fnd->ftn", features[inside].float(), words.float())  # [forms, patches, W]
    targets = (names[inside] - 1).expand(len(words), -1)  # [forms, patches]
    right = (logits[0].argmax(-1) == targets[0]).sum().item()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten()), Metric(right, targets.shape[1])


def grounding_loss(
    model: PaliGemmaForConditionalGeneration, features: torch.Tensor, word_ids: torch.Tensor, names: torch.Tensor, rng
) -> tuple[torch.Tensor, Metric]:
    """Where the first head of the first layer looks from a name in the prompt: at its sticker, or at itself.

    The contrastive alignment of words and regions of MDETR (Kamath et al. 2021, section 3.2), with the query and key
    of a head in place of a projection of their own. No prompt is needed, since the first layer sees each token before
    anything has been mixed into it: features [P, N, D] of the pictures, the tokens `word_ids` [W] of all names, and
    labels `names` [P, N] (0 is no sticker). Every name that any of these pictures holds is asked of each; where it is
    absent, the head is to stay at the name's own key, so that "nothing here" can be told.
    """
    decoder = model.language_model.model
    layer = decoder.layers[0]
    attention, d = layer.self_attn, layer.self_attn.head_dim
    N = features.shape[1]
    asked = names.unique()
    asked = asked[asked > 0]  # [A]
    text = layer.input_layernorm(decoder.embed(word_ids[asked - 1]))  # [A, D]
    place = N + 3 + int(rng.integers(8))  # of the name: after <bos> and a few words
    positions = torch.cat([torch.arange(1, N + 1), torch.tensor([place])])[None].to(features.device)
    cos, sin = decoder.rotary_emb(features.float(), positions)  # [1, N + 1, d]
    picture, text_place = (cos[:, :N], sin[:, :N]), (cos[:, N:], sin[:, N:])

    keys = F.linear(layer.input_layernorm(features.float()), attention.k_proj.weight[:d])[:, None]  # [P, 1, N, d]
    keys, _ = apply_rotary_pos_emb(keys, keys, *picture)
    query, own = (
        F.linear(text, weight[:d])[None, :, None] for weight in (attention.q_proj.weight, attention.k_proj.weight)
    )
    query, own = apply_rotary_pos_emb(query, own, *text_place)  # [1, A, 1, d] each
    scores = torch.einsum("xayd,pzmd->pam", query, keys)  # [P, A, N]
    itself = (query * own).sum(-1).expand(len(features), -1, 1)  # [P, A, 1]
    log_share = (torch.cat([scores, itself], dim=-1) * d**-0.5).log_softmax(dim=-1)  # [P, A, N + 1]

    patches = names[:, None, :] == asked[:, None]  # [P, A, N]: those of the sticker asked for
    there = patches.any(dim=-1)  # [P, A]
    target = torch.cat([patches, ~there[..., None]], dim=-1)
    losses = -log_share.masked_fill(~target, float("-inf")).logsumexp(dim=-1)  # [P, A]
    found = losses[there].neg().exp()  # the share of attention that falls on the sticker
    # Most names asked for are absent; present and absent ones weigh the same.
    loss = 0.5 * losses[there].mean() + 0.5 * losses[~there].mean()
    return loss, Metric(found.sum().item(), found.numel())


def mixture_loss(
    stage: ModelWithPatchHeads,
    tokenizer,
    pictures: Pictures,
    mask_tokenizer: MaskTokenizer,
    per_step: int,
    seed: int,
    device: torch.device,
    easy_steps: int = 0,
    heads_weight: float = HEADS_WEIGHT,
    task_weights: dict[str, float] = TASK_WEIGHTS,
    per_picture: int = PER_PICTURE,
) -> Callable:
    """The function that `train` calls: all tasks mixed, `per_picture` questions about each of `per_step` pictures.

    Beside the answers, the patches are aligned with the words (`word_loss`) and a head with the stickers
    (`grounding_loss`). The first `easy_steps` see pictures of one or two stickers only: which word belongs to which
    sticker is learned sooner where there is little to confuse.
    """
    answer_loss = AnswerLoss(tokenizer).to(device)
    model = stage.model
    its_words = word_ids(tokenizer).to(device)

    def batch_loss(step: int):
        rng = np.random.default_rng([seed, 1, step])
        scenes, indices = [], []
        while len(scenes) < per_step:
            index = int(rng.integers(pictures.count))
            if len((scene := pictures.scene(index)).things) <= (2 if step < easy_steps else 4):
                scenes.append(scene)
                indices.append(index)
        codes = {}  # of the one sticker of each picture whose codes are known
        known = mask_tokenizer.encode(pictures.mask(indices)).tolist()
        for scene, number, its_codes in zip(scenes, pictures.truth["segmented"][indices], known, strict=True):
            codes[scene.things[number]] = its_codes
        rows = draw_questions(scenes, task_weights, per_picture, rng, codes.get, ask)
        labels = {name: tensor.to(device) for name, tensor in pictures.labels(indices).items()}
        with autocast(device):
            patches = model.vision_tower(pictures.batch(indices).to(device))  # [P, N, D_image]
            features = model.multi_modal_projector(patches)  # [P, N, D]
            loss, metrics = questions_loss(model, tokenizer, answer_loss, features, rows)
        words = model.language_model.model.embed_tokens.weight[its_words]  # [forms, W, D]
        aligned, metrics["patch word"] = word_loss(features, words, labels["name"])
        grounded, metrics["patch found"] = grounding_loss(model, features, its_words[0], labels["name"], rng)
        loss = loss + WORDS_WEIGHT * aligned + GROUNDING_WEIGHT * grounded
        if not heads_weight:
            return loss, metrics
        dense, patch_metrics = stage.heads.loss(patches.float(), labels)
        return loss + heads_weight * dense, metrics | patch_metrics

    return batch_loss


def new_stage(seed: int = 0) -> tuple[ModelWithPatchHeads, PaliGemmaProcessor]:
    """The untrained model with its heads, and its processor."""
    processor = build_sticker_processor()
    return ModelWithPatchHeads(build_sticker_model(processor, seed), PatchHeads(vision_config().hidden_size)), processor


def start_from_encoder(stage: ModelWithPatchHeads, weights: dict[str, torch.Tensor]) -> None:
    """Put the first stage's encoder and heads into the model stage."""
    for part, module in (("vision_tower.", stage.model.vision_tower), ("heads.", stage.heads)):
        module.load_state_dict({k.removeprefix(part): v for k, v in weights.items() if k.startswith(part)})


def train_model(
    out: Path,
    encoder: Path | None,
    pictures: Pictures,
    mask_tokenizer: MaskTokenizer,
    schedule: Schedule,
    per_step: int,
    device: torch.device,
    start: Path | None = None,
    stop_at: int | None = None,
    freeze_encoder: bool = False,
    weights: dict[str, float] | None = None,
    per_picture: int = PER_PICTURE,
) -> None:
    """The second stage: the whole model on all tasks.

    It begins with the image encoder in the state.pt `encoder` and a new decoder, or with the model in the state.pt
    `start` of an earlier run, whose image encoder that in `encoder` replaces if both are given.

    With `freeze_encoder` the image encoder stays as it is and the decoder learns to read it, which is quicker and does
    not spoil it: the first gradients of an untrained decoder mean little. `weights` of tasks replace those of
    TASK_WEIGHTS. The `per_picture` questions about a picture are of different tasks, so with three of them no task gets
    more than a third of all, whatever its weight. Writes cycle1, cycle2 ... as folders in bfloat16.
    """
    weights = weights or {}
    stage, processor = new_stage(schedule.seed)
    if start is not None:
        stage.load_state_dict(read_weights(start))
    if encoder is not None:
        start_from_encoder(stage, read_weights(encoder))
    freeze_patches(stage.model.vision_tower)
    if freeze_encoder:
        stage.model.vision_tower.requires_grad_(False)
        stage.heads.requires_grad_(False)
    stage.to(device)
    batch_loss = mixture_loss(
        stage,
        processor.tokenizer,
        pictures,
        mask_tokenizer,
        per_step,
        schedule.seed,
        device,
        easy_steps=EASY_STEPS if start is None else 0,
        heads_weight=0 if freeze_encoder else HEADS_WEIGHT,
        task_weights=TASK_WEIGHTS | weights,
        per_picture=per_picture,
    )

    def finish(cycle: int) -> None:
        save_half(stage.model, processor, out / f"cycle{cycle}")

    settings = options(pictures, per_step, start) | {
        "encoder": encoder and encoder.as_posix(),
        "freeze encoder": freeze_encoder,
        "weights": weights,
        "per picture": per_picture,
    }
    train(stage, batch_loss, schedule, out, finish, stop_at, settings)


def save_half(model: PaliGemmaForConditionalGeneration, processor, folder: Path) -> None:
    """Write the model in bfloat16, half the size; the one that is being trained stays as it is."""
    save_pretrained(copy.deepcopy(model).to(torch.bfloat16), processor, folder)


def average_weights(runs: Sequence[Path]) -> dict[str, torch.Tensor]:
    """The mean of each weight over the state.pt of these runs.

    Runs of which one began where another ended are close enough for their mean to be a good model, often a better one
    than each of them (Wortsman et al. 2022, "Model soups", arXiv:2203.05482). Raises FileNotFoundError when a state is
    missing, and ValueError when it is of another kind of run.
    """
    states = [read_weights(run / "state.pt") for run in runs]
    for run, state in zip(runs, states, strict=True):
        if state.keys() != states[0].keys():
            raise ValueError(f"{run} has other weights than {runs[0]}, expected runs of `model` only")
    return {name: torch.stack([state[name] for state in states]).mean(dim=0) for name in states[0]}


def export(
    run: Path,
    masks: Path,
    folder: Path,
    earlier_runs: tuple[Path, ...] = (),
    encoder_runs: tuple[Path, ...] = (),
    average: tuple[Path, ...] = (),
) -> int:
    """Write the model of a run's state.pt, finished or not, in bfloat16, its weights averaged with those of the runs
    `average`; returns the steps that it has had, those of `earlier_runs` included.

    With it go the mask tokenizer, as `mask-tokenizer/`, and in short the logs of the runs that led to it:
    `training.jsonl` from the model's `earlier_runs` and this one, `encoder-training.jsonl` from the encoder's. Raises
    FileNotFoundError when a run has no state or log yet or `masks` holds no mask tokenizer, and ValueError when a run
    in `average` is of another kind.
    """
    mask_tokenizer = load_mask_tokenizer(masks)
    logs = [read_run(each) for each in (*earlier_runs, run)]
    encoder_logs = [read_run(each) for each in encoder_runs]
    stage, processor = new_stage()
    stage.load_state_dict(average_weights((run, *average)))
    save_half(stage.model, processor, folder)
    save_mask_tokenizer(mask_tokenizer, mask_tokenizer_folder(folder))
    if encoder_logs:
        write_log(folder / "encoder-training.jsonl", [line for log in encoder_logs for line in shorten(log)])
    write_log(folder / "training.jsonl", [line for log in logs for line in shorten(log)])
    return sum(log[-1]["step"] for log in logs)


def read_run(run: Path) -> list[dict]:
    """The lines of a run's log. Raises FileNotFoundError when there is none."""
    if not (path := run / "log.jsonl").is_file():
        raise FileNotFoundError(f"{path} is missing, expected the log of a run: is {run} its folder?")
    return read_log(path)


def shorten(log: list[dict], lines: int = 10) -> list[dict]:
    """One line for every `lines` of a log: the last one's step and seconds, the mean of everything else."""
    short = []
    for first in range(0, len(log), lines):
        part = log[first : first + lines]
        means = {}
        for name in dict.fromkeys(name for line in part for name in line):
            values = [line[name] for line in part if name in line]
            means[name] = round(sum(values) / len(values), 5)
        short.append({**means, "step": part[-1]["step"], "seconds": part[-1]["seconds"]})
    return short


def open_pictures(count: int, cache: Path, workers: int = 1) -> Pictures:
    """The training pictures, drawn the first time by `workers` processes."""
    return Pictures(count, IMAGE_SIZE, PATCH_SIZE, cache, workers)
