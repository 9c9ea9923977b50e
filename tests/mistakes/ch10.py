"""The projector, the merge and the whole, as learners write them."""

import torch
from torch import nn
from torch.nn import functional as F

from paligemma import modeling_gemma as gemma
from paligemma import modeling_siglip as siglip

from . import right, wrong

# --- 10.1 --------------------------------------------------------------------------------------------------------


@right("10.1")
def _(embeddings, image_features, is_image):
    return embeddings.masked_scatter(is_image.unsqueeze(-1), image_features.to(embeddings.dtype))


@right("10.1")
def _(embeddings, image_features, is_image):
    patches = iter(image_features.reshape(-1, image_features.shape[-1]))
    rows = []
    for b in range(embeddings.shape[0]):
        row = [
            next(patches).to(embeddings.dtype) if is_image[b, t] else embeddings[b, t]
            for t in range(embeddings.shape[1])
        ]
        rows.append(torch.stack(row))
    return torch.stack(rows)


@right("10.1")
def _(embeddings, image_features, is_image):
    flat = image_features.reshape(-1, image_features.shape[-1]).type_as(embeddings)
    index = (is_image.flatten().cumsum(0) - 1).clamp(min=0).view(is_image.shape)
    return torch.where(is_image[..., None], flat[index], embeddings)


@wrong("10.1", "always at the front")
def _(embeddings, image_features, is_image):
    out = embeddings.clone()
    N = image_features.shape[1]
    out[:, :N, :] = image_features
    return out


@wrong("10.1", "added")
def _(embeddings, image_features, is_image):
    out = torch.zeros_like(embeddings).masked_scatter(is_image[..., None], image_features.to(embeddings.dtype))
    return out + embeddings


@wrong("10.1", "upside down")
def _(embeddings, image_features, is_image):
    # Writes where it should not: text keeps its place only under the picture.
    merged = embeddings.masked_scatter(is_image[..., None], image_features.to(embeddings.dtype))
    return torch.where(is_image[..., None], embeddings, merged)


@wrong("10.1", "concatenated")
def _(embeddings, image_features, is_image):
    return torch.cat((image_features, embeddings), 1)


@wrong("10.1", "first picture for all")
def _(embeddings, image_features, is_image):
    out = embeddings.clone()
    for b in range(len(out)):
        n = is_image[b].sum()
        out[b][is_image[b]] = image_features[0][:n].to(out.dtype)
    return out


@wrong("10.1", "input changed")
def _(embeddings, image_features, is_image):
    embeddings[is_image] = image_features.reshape(-1, image_features.shape[-1]).to(embeddings.dtype)
    return embeddings


@wrong("10.1", "scaled")
def _(embeddings, image_features, is_image):
    scaled = image_features * image_features.size(-1) ** -0.5
    return embeddings.masked_scatter(is_image[..., None], scaled.to(embeddings.dtype))


@wrong("10.1", "raised")
def _(embeddings, image_features, is_image):
    return torch.where(is_image, image_features, embeddings)


@wrong("10.1", "no gradient")
def _(embeddings, image_features, is_image):
    out = embeddings.detach().clone()
    out[is_image] = image_features.detach().reshape(-1, image_features.shape[-1]).to(out.dtype)
    return out


# --- 10.2 --------------------------------------------------------------------------------------------------------


def damage(**changed):
    names = {
        "A": "features divided by the root of D",
        "B": "grid read column by column",
        "C": "bias of the projector left out",
        "D": "first picture for every row",
        "E": "no RoPE in the decoder",
    }
    return lambda: {**names, **changed}


right("10.2")(damage())
right("10.2")(lambda: dict(reversed(damage()().items())))
wrong("10.2", "taken for another")(damage(B="no RoPE in the decoder", E="grid read column by column"))
wrong("10.2", "taken for another")(damage(A="first picture for every row", D="features divided by the root of D"))
wrong("10.2", "taken for another")(damage(A="bias of the projector left out", C="features divided by the root of D"))
wrong("10.2", "a name twice")(damage(A="no RoPE in the decoder"))
wrong("10.2", "unknown name")(damage(A="no RoPE"))
wrong("10.2", "structure")(lambda: {"A": "no RoPE in the decoder"})


# --- 10.3 --------------------------------------------------------------------------------------------------------


def check_counts(places, features):
    if places != features:
        raise ValueError(f"{places} places for {features} features")


@right("10.3")
def _(input_ids, table, image_features, image_token_index):
    mask = input_ids == image_token_index
    check_counts(mask.sum().item(), image_features.shape[:2].numel())
    ids = torch.where(mask, torch.zeros_like(input_ids), input_ids)
    x = F.embedding(ids, table) * (table.size(1) ** 0.5)
    return x.masked_scatter(mask.unsqueeze(-1), image_features)


@right("10.3")
def _(input_ids, table, image_features, image_token_index):
    B, L = input_ids.shape
    D = table.shape[-1]
    patches = image_features.reshape(-1, D)
    mask = input_ids == image_token_index
    if len(patches) != mask.sum():
        raise ValueError(f"{int(mask.sum())} places, {len(patches)} features")
    rows, used = [], 0
    for b in range(B):
        for t in range(L):
            if mask[b, t]:
                rows.append(patches[used])
                used += 1
            else:
                rows.append(table[input_ids[b, t]] * D**0.5)
    return torch.stack(rows).view(B, L, D)


def embedding(text=1.0, image=1.0, checked=True):
    def function(input_ids, table, image_features, image_token_index):
        mask = input_ids == image_token_index
        if checked:
            check_counts(int(mask.sum()), image_features.shape[0] * image_features.shape[1])
        D = table.shape[1]
        out = F.embedding(input_ids * ~mask, table) * D**text
        return out.masked_scatter(mask[..., None], image_features * D**image)

    return function


wrong("10.3", "scale forgotten")(embedding(0, 0))
wrong("10.3", "scale twice")(embedding(1, 0))
wrong("10.3", "divided instead of multiplied")(embedding(-0.5, 0))
wrong("10.3", "picture scaled too")(embedding(0.5, 0.5))
wrong("10.3", "picture divided")(embedding(0.5, -0.5))
wrong("10.3", "picture divided")(embedding(0, -0.5))
wrong("10.3", "counts not checked")(
    lambda ids, table, features, i: (
        lambda mask, flat: torch.where(
            mask[..., None], flat[(mask.flatten().cumsum(0) - 1).clamp(0, len(flat) - 1).view(mask.shape)],
            table[ids * ~mask] * table.shape[1] ** 0.5,
        )
    )(ids == i, features.flatten(0, 1))
)  # fmt: skip


@wrong("10.3", "looked up outside the table")
def _(input_ids, table, image_features, image_token_index):
    mask = input_ids == image_token_index
    check_counts(int(mask.sum()), image_features.shape[0] * image_features.shape[1])
    x = table[input_ids] * table.shape[1] ** 0.5
    return x.masked_scatter(mask[..., None], image_features)


@wrong("10.3", "another error")
def _(input_ids, table, image_features, image_token_index):
    mask = input_ids == image_token_index
    assert int(mask.sum()) == image_features.shape[0] * image_features.shape[1]
    x = table[input_ids.masked_fill(mask, 0)] * table.shape[1] ** 0.5
    return x.masked_scatter(mask[..., None], image_features)


# --- 10.4 --------------------------------------------------------------------------------------------------------


@right("10.4")
def _(model, input_ids, pictures, token_type_ids):
    features = model.project(model.encode(pictures))
    is_image = input_ids == model.image_token_index
    x = model.embed(input_ids).masked_scatter(is_image[..., None], features)
    return model.head(model.decode(x, token_type_ids)[:, -1])


@right("10.4")
def _(model, input_ids, pictures, token_type_ids):
    x = model.embed(input_ids).clone()
    x[input_ids == model.image_token_index] = model.project(model.encode(pictures)).reshape(-1, x.shape[-1])
    logits = model.head(model.decode(x, token_type_ids))
    return logits[:, -1, :]


def listing(project=False, types=False, last=False):
    """The code in the notebook, with some of its faults mended."""

    def next_token_logits(model, input_ids, pictures, token_type_ids):
        features = model.encode(pictures)
        if project:
            features = model.project(features)
        else:
            features = torch.cat([features, features[..., :1]], dim=-1)
        is_image = input_ids == model.image_token_index
        merged = model.embed(input_ids).masked_scatter(is_image[..., None], features)
        states = model.decode(merged, token_type_ids if types else torch.ones_like(token_type_ids))
        return model.head(states[:, -1] if last else states[:, 0])

    return next_token_logits


wrong("10.4", "3 left")(listing())
wrong("10.4", "2 left")(listing(project=True))
wrong("10.4", "2 left")(listing(types=True))
wrong("10.4", "2 left")(listing(last=True))
wrong("10.4", "projector missing")(listing(types=True, last=True))
wrong("10.4", "causal")(listing(project=True, last=True))
wrong("10.4", "first place")(listing(project=True, types=True))


@wrong("10.4", "all positions")
def _(model, input_ids, pictures, token_type_ids):
    x = model.embed(input_ids)
    x = x.masked_scatter((input_ids == model.image_token_index)[..., None], model.project(model.encode(pictures)))
    return model.head(model.decode(x, token_type_ids))


@wrong("10.4", "encoder skipped")
def _(model, input_ids, pictures, token_type_ids):
    x = model.embed(input_ids)
    x = x.masked_scatter((input_ids == model.image_token_index)[..., None], model.project(pictures))
    return model.head(model.decode(x, token_type_ids))[:, -1]


# --- 10.5 --------------------------------------------------------------------------------------------------------


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.vision_tower = siglip.SiglipVisionModel(config.vision_config)
        self.multi_modal_projector = gemma.PaliGemmaMultiModalProjector(config)
        self.language_model = gemma.GemmaForCausalLM(config.text_config)

    def embedded(self, ids, pixels):
        image = ids == self.config.image_token_index
        x = self.language_model.model.embed(torch.where(image, 0, ids)).clone()
        x[image] = self.features(pixels).flatten(0, 1)
        return x

    def features(self, pixels):
        return self.multi_modal_projector(self.vision_tower(pixels))

    def forward(self, input_ids, pixel_values, attention_mask, token_type_ids):
        x = self.embedded(input_ids, pixel_values)
        states = self.language_model.model(x, attention_mask, token_type_ids)
        return self.end(states, attention_mask)

    def end(self, states, mask):
        places = torch.arange(mask.shape[1]) * mask
        return self.language_model.lm_head(states[torch.arange(len(mask)), places.max(dim=1).values])


right("10.5")(Model)


@right("10.5")
class _(Model):
    """All logits first, and a loop over the rows."""

    def end(self, states, mask):
        logits = self.language_model.lm_head(states)
        return torch.stack([row[real.nonzero().max()] for row, real in zip(logits, mask)])


@wrong("10.5", "last column")
class _(Model):
    def end(self, states, mask):
        return self.language_model.lm_head(states)[:, -1]


@wrong("10.5", "number of tokens as place")
class _(Model):
    def end(self, states, mask):
        return self.language_model.lm_head(states)[range(len(mask)), mask.sum(-1) - 1]


@wrong("10.5", "all positions")
class _(Model):
    def end(self, states, mask):
        return self.language_model.lm_head(states)


@wrong("10.5", "mask forgotten")
class _(Model):
    def forward(self, input_ids, pixel_values, attention_mask, token_type_ids):
        ones = torch.ones_like(input_ids)
        states = self.language_model.model(self.embedded(input_ids, pixel_values), ones, token_type_ids)
        return self.end(states, attention_mask)


@wrong("10.5", "answer seen")
class _(Model):
    def forward(self, input_ids, pixel_values, attention_mask, token_type_ids):
        x = self.embedded(input_ids, pixel_values)
        return self.end(self.language_model.model(x, attention_mask, torch.zeros_like(input_ids)), attention_mask)


@wrong("10.5", "causal")
class _(Model):
    def forward(self, input_ids, pixel_values, attention_mask, token_type_ids):
        x = self.embedded(input_ids, pixel_values)
        return self.end(self.language_model.model(x, attention_mask, attention_mask | 1), attention_mask)


@wrong("10.5", "text not scaled")
class _(Model):
    def embedded(self, ids, pixels):
        image = ids == self.config.image_token_index
        x = self.language_model.model.embed_tokens(torch.where(image, 0, ids)).clone()
        x[image] = self.features(pixels).flatten(0, 1)
        return x


@wrong("10.5", "picture scaled too")
class _(Model):
    def features(self, pixels):
        x = super().features(pixels)
        return x * x.shape[-1] ** 0.5


@wrong("10.5", "picture divided")
class _(Model):
    def features(self, pixels):
        x = super().features(pixels)
        return x / x.shape[-1] ** 0.5


@wrong("10.5", "looked up outside the table")
class _(Model):
    """The id of <image> is looked up, and lies outside of the table."""

    def embedded(self, ids, pixels):
        x = self.language_model.model.embed(ids).clone()
        x[ids == self.config.image_token_index] = self.features(pixels).flatten(0, 1)
        return x


# --- Wrong ones that once passed ---------------------------------------------------------------------------------


@wrong("10.3", "numbers not told")
def _(input_ids, table, image_features, image_token_index):
    image = input_ids == image_token_index
    if image.sum() != image_features[..., 0].numel():
        raise ValueError("the counts differ")
    x = table[input_ids.masked_fill(image, 0)] * table.shape[1] ** 0.5
    x[image] = image_features.flatten(0, 1)
    return x


@wrong("10.3", "refused what fits")
def _(input_ids, table, image_features, image_token_index):
    image = input_ids == image_token_index
    if image.sum() != image_features.shape[0]:
        raise ValueError(f"{int(image.sum())} places, {len(image_features)} features")
    x = table[input_ids.masked_fill(image, 0)] * table.shape[1] ** 0.5
    x[image] = image_features.flatten(0, 1)
    return x
