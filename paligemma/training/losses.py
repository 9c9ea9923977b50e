"""What each stage learns from: the loss of a batch as a function of the step alone, and its metrics for the log.

Stage 0: SigLIP's sigmoid loss of pictures and captions, and labels for each patch. Stages 1 to 3: cross-entropy of the
answers' tokens, with soft targets for locations.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..modeling_gemma import GemmaDecoderLayer, PaliGemmaForConditionalGeneration, apply_rotary_pos_emb
from ..world.contrastive import TinySiglip, patch_labels, sigmoid_loss, text_ids
from ..world.pictures import Pictures, collate, draw_questions, render
from ..world.scenes import COLOURS, GRID, SHAPES, SIZES, Scene, caption, make_scene
from ..world.tiny_model import initialise, soft_location_targets
from .loop import Metric
from .parallel import process_share

BatchLoss = Callable[[int], tuple[torch.Tensor, dict[str, Metric]]]  # what `train` calls: step -> loss, metrics
Row = tuple[int, str, str, str]  # index of the picture, task, prompt, answer


def autocast(device: torch.device) -> AbstractContextManager:
    """bfloat16 arithmetic on a GPU; on a CPU it gains nothing, so float32 stays."""
    return torch.autocast("cuda", dtype=torch.bfloat16) if device.type == "cuda" else nullcontext()


# ----------------------------------------------------------------------------------- per-patch labels, and stage 0


class PatchHeads(nn.Module):
    """Auxiliary per-patch heads: shape, colour, size and box of the object under each patch. In training only.

    Some ten thousand small pictures are too few to learn places from captions alone, where SigLIP had billions.
    """

    def __init__(self, width: int):
        super().__init__()
        self.shape = nn.Linear(width, len(SHAPES) + 1)  # 0 is "no object here"
        self.colour = nn.Linear(width, len(COLOURS) + 1)
        self.size = nn.Linear(width, len(SIZES) + 1)
        self.box = nn.Linear(width, 4)  # y1, x1, y2, x2 in 0..1

    def loss(
        self, patches: torch.Tensor, labels: torch.Tensor, global_labels: torch.Tensor | None = None, beta: float = 1.0
    ) -> tuple[torch.Tensor, dict[str, Metric]]:
        """Patches [B, N, D] and the labels of `patch_labels` [B, N, 7] -> loss and metrics.

        `global_labels` are those of the whole batch where these patches are one process's share of it; the shares'
        losses add up to that of the whole. Errors of the box below `beta` grid cells count squared.
        """
        global_labels = labels if global_labels is None else global_labels
        total_inside = (global_labels[..., 0] > 0).sum().clamp(min=1)
        total_outside = (global_labels[..., 0] == 0).sum().clamp(min=1)
        named = labels[..., :3].long()
        inside = named[..., 0] > 0  # [B, N]
        loss, metrics = 0.0, {}
        for i, name in enumerate(("shape", "colour", "size")):
            predicted = getattr(self, name)(patches)
            # Objects and background weigh the same, though three patches in four are background.
            for part, total in ((inside, total_inside), (~inside, total_outside)):
                loss = loss + 0.5 * F.cross_entropy(predicted[part], named[..., i][part], reduction="sum") / total
            right = (predicted.argmax(-1) == named[..., i])[inside]
            metrics[f"patch {name}"] = Metric(right.sum().item(), right.numel())
        error = (self.box(patches)[inside] - labels[..., 3:][inside]) * GRID  # [patches, 4], in grid cells
        box_loss = F.smooth_l1_loss(error, torch.zeros_like(error), reduction="sum", beta=beta) / (4 * total_inside)
        return loss + 0.2 * box_loss, metrics | {"patch box": Metric(error.abs().sum().item(), error.numel())}


class Stage0(nn.Module):
    """What stage 0 trains: the two towers, and the heads that are thrown away afterwards.

    With `with_heads` False there are no labels, only pictures and captions. With `random_positions` the picture's
    position embeddings start as SigLIP's do, normal with standard deviation 1 / sqrt(width), in place of waves.
    """

    def __init__(
        self, vision_config, vocab_size: int, seed: int, with_heads: bool = True, random_positions: bool = False
    ):
        super().__init__()
        self.towers = TinySiglip(vision_config, vocab_size)
        self.heads = PatchHeads(vision_config.hidden_size) if with_heads else None
        initialise(self, seed)
        if random_positions:
            table = self.towers.vision_tower.vision_model.embeddings.position_embedding.weight  # [N, D]
            nn.init.normal_(table, std=table.shape[1] ** -0.5, generator=torch.Generator().manual_seed(seed + 1))


def stage0_loss(
    stage: Stage0, tokenizer, pictures: Pictures, per_step: int, seed: int, device, labels_weight: float = 1.0
) -> BatchLoss:
    """Contrastive loss of `per_step` pictures and their captions, and the labels of their patches."""
    patches_per_side = pictures.size // stage.towers.vision_tower.config.patch_size

    def batch_loss(step: int) -> tuple[torch.Tensor, dict[str, Metric]]:
        rng = np.random.default_rng([seed, step])
        indices = rng.integers(pictures.count, size=per_step)
        scenes = [pictures.scene(int(index)) for index in indices]
        mine = process_share(per_step)
        texts = text_ids(tokenizer, [caption(scene) for scene in scenes]).to(device)  # of all processes
        pixel_values = pictures.batch(indices[mine]).to(device)
        with autocast(device):
            patches = stage.towers.vision_tower(pixel_values)  # [B, N, D]
            logits = stage.towers.similarity(stage.towers.pool_image(patches), stage.towers.text_embeddings(texts))
            share = len(pixel_values) / per_step
            pairs = sigmoid_loss(logits.float(), first=mine.start) * share
            loss, metrics = 0.3 * pairs, {}
            if stage.heads is not None:
                labels = torch.stack([patch_labels(scene, patches_per_side) for scene in scenes]).to(device)
                dense, metrics = stage.heads.loss(patches.float(), labels[mine], labels)
                loss = loss + labels_weight * dense
        retrieved = (logits.argmax(dim=1).cpu() == torch.arange(per_step)[mine]).sum().item()
        metrics |= {"pairs": Metric(pairs.item(), share), "retrieved": Metric(retrieved, len(pixel_values))}
        return loss, metrics

    return batch_loss


# ------------------------------------------------------------------ stages 1 to 3: pictures, prompts and answers


class AnswerLoss:
    """Cross-entropy of the answers' tokens; location tokens have soft targets.

    A box that is one pixel off is nearly right, so the target of a location token is a bell over the neighbouring
    ones. Its entropy is a floor under the loss: a model that knows every box to the pixel does not reach 0. The bells
    fit the 65 edges of the little world's grid; with `soft=False` a location is a token like any other.
    """

    def __init__(self, tokenizer, soft: bool = True):
        self.location_ids, self.soft_targets = soft_location_targets(tokenizer)  # [65], [65, 65]
        self.cell_of_token = torch.full((len(tokenizer),), -1)
        if soft:
            self.cell_of_token[self.location_ids] = torch.arange(len(self.location_ids))

    def to(self, device: torch.device) -> "AnswerLoss":
        self.location_ids, self.soft_targets = self.location_ids.to(device), self.soft_targets.to(device)
        self.cell_of_token = self.cell_of_token.to(device)
        return self

    def token_losses(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """logits [T, V], targets [T] -> loss of each token [T]."""
        log_probabilities = logits.float().log_softmax(dim=-1)
        losses = -log_probabilities.gather(1, targets[:, None]).squeeze(1)
        cells = self.cell_of_token[targets]
        is_location = cells >= 0
        if is_location.any():
            soft = self.soft_targets[cells[is_location]]  # [locations, 65]
            soft_losses = -(soft * log_probabilities[is_location][:, self.location_ids]).sum(dim=-1)
            losses = losses.masked_scatter(is_location, soft_losses)
        return losses


def answer_states(
    model: PaliGemmaForConditionalGeneration,
    features: torch.Tensor,
    image_index: torch.Tensor,
    batch: dict[str, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The decoder's states that predict a token of the answer, and nothing that these do not need.

    `features` [P, N, D] of P pictures, encoded once however many questions are asked; `image_index` [R]: the picture
    of each row; `batch` from `collate`. Returns states [T, D], their targets [T] and rows [T].

    The same numbers as `model(**batch)` has in these places. Only the answer is trained on, and nothing looks at
    the last layer's other states, so the last layer computes keys and values for all tokens and the rest for the
    answer alone: a sixth less work. That is written out below for Gemma's own layer; any other class, such as Gemma
    2's or yours, runs whole.
    """
    decoder = model.language_model.model
    N = features.shape[1]
    text = decoder.embed(batch["input_ids"][:, N:])  # [R, L - N, D]
    hidden = torch.cat([features[image_index].to(text.dtype), text], dim=1)  # image tokens come first
    R, L, _ = hidden.shape
    position_ids = batch["attention_mask"].cumsum(dim=-1).clamp(min=1)  # [R, L]
    positions = decoder.rotary_emb(hidden, position_ids)  # cos, sin [R, L, d]
    masks = decoder.layer_masks(batch["attention_mask"], batch["token_type_ids"], L, hidden.dtype)
    for layer, mask in zip(decoder.layers[:-1], masks, strict=False):
        hidden = layer(hidden, positions, mask)

    # The token before the answer predicts its first, and so on: S places for each row, from there on.
    is_answer = batch["labels"] != -100  # [R, L]
    S = int(is_answer.sum(dim=1).max())
    places = is_answer.int().argmax(dim=1)[:, None] - 1 + torch.arange(S, device=hidden.device)
    places = places.clamp(max=L - 1)  # [R, S]
    row = torch.arange(R, device=hidden.device)[:, None]

    layer, mask = decoder.layers[-1], masks[-1]
    if type(layer) is GemmaDecoderLayer:
        hidden = last_layer_at(layer, hidden, positions, mask, row, places)  # [R, S, D]
    else:
        hidden = layer(hidden, positions, mask)[row, places]
    hidden = decoder.norm(hidden)

    targets = batch["labels"][row, (places + 1).clamp(max=L - 1)]  # [R, S]
    real = torch.arange(S, device=hidden.device) < is_answer.sum(dim=1, keepdim=True)
    return hidden[real], targets[real], row.expand(R, S)[real]


def last_layer_at(layer: GemmaDecoderLayer, hidden, positions, mask, row, places) -> torch.Tensor:
    """One layer's output at `places` [R, S] only, from the states of all tokens [R, L, D]. -> [R, S, D]"""
    attention = layer.self_attn
    (R, L, _), S = hidden.shape, places.shape[1]
    normed = layer.input_layernorm(hidden)
    key = attention.k_proj(normed).view(R, L, -1, attention.head_dim).transpose(1, 2)  # [R, H_kv, L, d]
    value = attention.v_proj(normed).view(R, L, -1, attention.head_dim).transpose(1, 2)
    query = attention.q_proj(normed[row, places]).view(R, S, -1, attention.head_dim).transpose(1, 2)
    key, _ = apply_rotary_pos_emb(key, key, *positions)
    query, _ = apply_rotary_pos_emb(query, query, *(p[row, places] for p in positions))  # [R, H, S, d]
    attended, _ = attention.attend(query, key, value, mask[row, 0, places].unsqueeze(1))  # mask [R, 1, S, L]
    hidden = hidden[row, places] + attention.o_proj(attended.transpose(1, 2).flatten(2))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def questions_loss(
    model: PaliGemmaForConditionalGeneration,
    tokenizer,
    answer_loss: AnswerLoss,
    features: torch.Tensor,
    rows: list[Row],
    chunks: int = 8,
    total_weight: float | None = None,
) -> tuple[torch.Tensor, dict[str, Metric]]:
    """Loss of questions about pictures, whose features are [P, N, D]; and for each task the rows that are right.

    A token of an answer with n tokens counts 1 / sqrt(n): one-word answers would drown among captions and masks if
    all tokens counted the same, and captions would be learned slowly if all answers did. The loss is the weighted
    mean over `total_weight`, by default the weight of these rows. A row is right when its every token is the model's
    first choice, given the right tokens before it. Rows of like length are worked on together, in `chunks` groups, so
    that little is padding.
    """
    device = features.device
    lengths = answer_lengths(tokenizer, [row[3] for row in rows])
    prompt_lengths = answer_lengths(tokenizer, [row[2] for row in rows])
    if total_weight is None:
        total_weight = sum(length**0.5 for length in lengths)
    order = sorted(range(len(rows)), key=lambda i: lengths[i] + prompt_lengths[i])
    total, metrics = 0.0, {}
    for chunk in range(chunks):
        part = [rows[i] for i in order[chunk * len(rows) // chunks : (chunk + 1) * len(rows) // chunks]]
        if not part:
            continue
        batch = collate(tokenizer, [row[2] for row in part], [row[3] for row in part], features.shape[1])
        batch = {key: value.to(device) for key, value in batch.items()}
        image_index = torch.tensor([row[0] for row in part], device=device)
        states, targets, row_of = answer_states(model, features, image_index, batch)
        logits = model.language_model.lm_head(states)  # [T, V]
        per_row = torch.bincount(row_of, minlength=len(part)).float()
        losses = answer_loss.token_losses(logits, targets)
        total = total + (losses * per_row[row_of] ** -0.5).sum() / total_weight
        wrong = torch.bincount(row_of, weights=(logits.argmax(-1) != targets).float(), minlength=len(part))
        for (_, task, _, _), mistakes in zip(part, wrong.tolist(), strict=True):
            metrics[task] = metrics.get(task, Metric(0, 0)) + Metric(mistakes == 0)
    return total, metrics


def empty_loss(model: nn.Module) -> torch.Tensor:
    """A loss of 0 with gradients of 0: the share of a process that has none of a step's examples."""
    return sum(0 * parameter.sum() for parameter in model.parameters() if parameter.requires_grad)


def answer_lengths(tokenizer, answers: list[str]) -> list[int]:
    """How many tokens each answer has, <eos> included."""
    return [len(ids) + 1 for ids in tokenizer(answers, add_special_tokens=False)["input_ids"]]


class ModelWithPatchHeads(nn.Module):
    """The model, and optionally the per-patch heads as an auxiliary loss: what stages 1 and 2 train."""

    def __init__(self, model: PaliGemmaForConditionalGeneration, heads: PatchHeads | None):
        super().__init__()
        self.model, self.heads = model, heads


def mixture_loss(
    stage: ModelWithPatchHeads,
    tokenizer,
    pictures: Pictures,
    per_step: int,
    per_picture: int,
    seed: int,
    codes: Callable | None,
    weights: dict[str, float],
    device: torch.device,
    easy_steps: int = 0,
    heads_weight: float = 0.0,
) -> BatchLoss:
    """All tasks mixed, in proportion to `weights`: `per_picture` questions about each of `per_step` pictures.

    With heads, each patch goes on telling what it shows, as in stage 0, at the weight `heads_weight`: the answers
    alone teach the encoder slowly where an object's edges are, and boxes are to be right to half a pixel. The first
    `easy_steps` see pictures of one or two objects only: which word belongs to which object is learned sooner where
    there is little to confuse.
    """
    answer_loss = AnswerLoss(tokenizer).to(device)
    model, heads = stage.model, stage.heads
    if easy_steps and not any(len(pictures.scene(index).things) <= 2 for index in range(pictures.count)):
        raise ValueError(
            f"none of the {pictures.count} training pictures shows one or two objects, as the first {easy_steps} steps "
            "need: draw more pictures"
        )

    def choose_scenes(rng, most: int) -> tuple[list[Scene], np.ndarray]:
        scenes, indices = [], []
        while len(scenes) < per_step:
            index = int(rng.integers(pictures.count))
            if len((scene := pictures.scene(index)).things) <= most:
                scenes.append(scene)
                indices.append(index)
        return scenes, np.array(indices)

    def batch_loss(step: int) -> tuple[torch.Tensor, dict[str, Metric]]:
        rng = np.random.default_rng([seed, step])
        scenes, indices = choose_scenes(rng, most=2 if step < easy_steps else pictures.max_things)
        rows = draw_questions(scenes, weights, per_picture, rng, codes)  # of all processes
        total_weight = sum(length**0.5 for length in answer_lengths(tokenizer, [row[3] for row in rows]))
        mine = process_share(per_step)
        rows = [(row[0] - mine.start, *row[1:]) for row in rows if mine.start <= row[0] < mine.stop]
        with autocast(device):
            patches = model.vision_tower(pictures.batch(indices[mine]).to(device))  # [P, N, D_image]
            features = model.multi_modal_projector(patches)  # [P, N, D]
            loss, metrics = questions_loss(model, tokenizer, answer_loss, features, rows, total_weight=total_weight)
            if heads is not None:
                side = round(patches.shape[1] ** 0.5)
                labels = torch.stack([patch_labels(scene, side) for scene in scenes]).to(device)
                dense, patch_metrics = heads.loss(patches.float(), labels[mine], labels, beta=0.25)
                loss, metrics = loss + heads_weight * dense, metrics | patch_metrics
        return loss, metrics

    return batch_loss


def held_out_loss(
    model: PaliGemmaForConditionalGeneration,
    tokenizer,
    size: int,
    codes: Callable | None,
    weights: dict[str, float],
    device: torch.device,
    count: int = 48,
) -> Callable[[], float]:
    """The function that `train` calls now and then: the loss of questions about `count` scenes of held-out seeds."""
    answer_loss = AnswerLoss(tokenizer).to(device)
    scenes = [make_scene(seed) for seed in range(count)]
    pixels = np.stack([render(scene, size, np.random.default_rng([1, scene.seed])) for scene in scenes])
    pixel_values = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1).to(device)  # [B, 3, S, S]
    rows = draw_questions(scenes, weights, 3, np.random.default_rng(0), codes)

    def loss() -> float:
        with autocast(device):
            features = model.get_image_features(pixel_values)
            return questions_loss(model, tokenizer, answer_loss, features, rows)[0].item()

    return loss
