"""Held-out solutions of chapter 10."""

# ruff: noqa: E501
# fmt: off

from . import answer, change, exchange, right, wrong

# --- 10.1 -------------------------------------------------------------------------------------------------------------

wrong("10.1", "in place", """
def merge(embeddings, image_features, is_image):
    embeddings[is_image] = image_features.flatten(0, 1).to(embeddings.dtype)
    return embeddings
""", truth="changes the embeddings that were given", says="writes into the caller's data")
wrong("10.1", "first places", """
def merge(embeddings, image_features, is_image):
    out = embeddings.clone()
    out[:, : image_features.shape[1]] = image_features.to(out.dtype)
    return out
""", truth="writes to the first N places of each row instead of where is_image is True")
wrong("10.1", "one picture a row", """
def merge(embeddings, image_features, is_image):
    out = embeddings.clone()
    for b in range(len(out)):
        out[b, is_image[b]] = image_features[b].to(out.dtype)
    return out
""", truth="assumes one picture for each row: a prompt with two fails")
wrong("10.1", "first picture for all", """
def merge(embeddings, image_features, is_image):
    out = embeddings.clone()
    for b in range(len(out)):
        n = int(is_image[b].sum())
        out[b, is_image[b]] = image_features[0, :n].to(out.dtype) if n <= image_features.shape[1] else image_features.flatten(0, 1)[:n].to(out.dtype)
    return out
""", truth="every row gets the first picture's features")
wrong("10.1", "column by column", """
def merge(embeddings, image_features, is_image):
    out = embeddings.clone().transpose(0, 1).contiguous()
    out[is_image.T] = image_features.flatten(0, 1).to(out.dtype)
    return out.transpose(0, 1)
""", truth="fills the places column by column, not row by row")
wrong("10.1", "dtype of the features", """
def merge(embeddings, image_features, is_image):
    out = embeddings.to(image_features.dtype, copy=True)
    out[is_image] = image_features.flatten(0, 1)
    return out
""", truth="the result has the features' dtype instead of the embeddings'")
wrong("10.1", "no cast", """
def merge(embeddings, image_features, is_image):
    out = embeddings.clone()
    out[is_image] = image_features.flatten(0, 1)
    return out
""", truth="the features are not cast to the embeddings' dtype, so assigning fails")
wrong("10.1", "added", """
def merge(embeddings, image_features, is_image):
    out = embeddings.clone()
    out[is_image] += image_features.flatten(0, 1).to(out.dtype)
    return out
""", truth="adds the features to what stands there instead of replacing it")
wrong("10.1", "mask inverted", """
def merge(embeddings, image_features, is_image):
    out = embeddings.clone()
    out[~is_image] = image_features.flatten(0, 1).to(out.dtype)
    return out
""", truth="writes where is_image is False", says="mask is upside down")
wrong("10.1", "other places set to 0", """
def merge(embeddings, image_features, is_image):
    out = torch.zeros_like(embeddings)
    out[is_image] = image_features.flatten(0, 1).to(out.dtype)
    return out
""", truth="all other places become 0")
wrong("10.1", "off by one", """
def merge(embeddings, image_features, is_image):
    flat = image_features.flatten(0, 1).to(embeddings.dtype)
    number = is_image.flatten().cumsum(0).clamp(max=len(flat) - 1).view_as(is_image)
    return torch.where(is_image[..., None], flat[number], embeddings)
""", truth="the running number begins at 1: each place gets the next patch")
wrong("10.1", "patches and width mixed", """
def merge(embeddings, image_features, is_image):
    out = embeddings.clone()
    D = out.shape[-1]
    out[is_image] = image_features.transpose(1, 2).reshape(-1, D).to(out.dtype)
    return out
""", truth="reshape deals out the transposed features: patches and width are mixed up")
right("10.1", "running number and where", """
def merge(embeddings, image_features, is_image):
    flat = image_features.reshape(-1, image_features.shape[-1]).to(embeddings.dtype)
    number = (is_image.flatten().long().cumsum(0) - 1).clamp(min=0).view(is_image.shape)
    return torch.where(is_image.unsqueeze(-1), flat[number], embeddings)
""")
right("10.1", "two loops and an iterator", """
def merge(embeddings, image_features, is_image):
    patches = iter(vector for picture in image_features for vector in picture)
    rows = []
    for b in range(embeddings.shape[0]):
        row = [next(patches).to(embeddings.dtype) if is_image[b, t] else embeddings[b, t] for t in range(embeddings.shape[1])]
        rows.append(torch.stack(row))
    return torch.stack(rows)
""")

# --- 10.2 -------------------------------------------------------------------------------------------------------------

NAMES_102 = {"A": "features divided by the root of D", "B": "grid read column by column", "C": "bias of the projector left out", "D": "first picture for every row", "E": "no RoPE in the decoder"}
wrong("10.2", "first picture and RoPE exchanged", answer("faults", exchange(NAMES_102, "D", "E")), truth="D is the first picture for every row and E is the missing RoPE")
wrong("10.2", "features and RoPE exchanged", answer("faults", exchange(NAMES_102, "A", "E")), truth="A is the divided features and E the missing RoPE")
wrong("10.2", "grid and first picture exchanged", answer("faults", exchange(NAMES_102, "B", "D")), truth="B is the grid by columns and D the first picture")
wrong("10.2", "one line forgotten", answer("faults", {k: v for k, v in NAMES_102.items() if k != "E"}), truth="there is no answer for E", says="the lines are ['A', 'B', 'C', 'D'], expected ['A', 'B', 'C', 'D', 'E']")
wrong("10.2", "one name twice", answer("faults", NAMES_102 | {"E": NAMES_102["D"]}), truth="the same name is given to D and E")
right("10.2", "zip", """
def faults():
    names = ["features divided by the root of D", "grid read column by column", "bias of the projector left out",
             "first picture for every row", "no RoPE in the decoder"]
    return dict(zip("ABCDE", names))
""")

# --- 10.3 -------------------------------------------------------------------------------------------------------------

SEQ = """
def embed_sequence(input_ids, table, image_features, image_token_index):
    mask = input_ids == image_token_index
    features = image_features.flatten(0, 1)
    if int(mask.sum()) != len(features):
        raise ValueError(f"{int(mask.sum())} places for {len(features)} features")
    x = table[input_ids.masked_fill(mask, 0)] * table.shape[1] ** 0.5
    x[mask] = features
    return x
"""
change("10.3", "everything scaled", SEQ, (" * table.shape[1] ** 0.5", ""), ("return x", "return x * table.shape[1] ** 0.5"), truth="the image features are scaled by the root of D as well")
change("10.3", "nothing scaled", SEQ, (" * table.shape[1] ** 0.5", ""), truth="the text is not multiplied by the root of D")
change("10.3", "features divided", SEQ, ("x[mask] = features", "x[mask] = features / table.shape[1] ** 0.5"), truth="the features are divided by the root of D")
change("10.3", "root of V", SEQ, ("table.shape[1] ** 0.5", "table.shape[0] ** 0.5"), truth="the factor is the root of V, the table's rows, not of D")
change("10.3", "looks up the image token", SEQ, ("input_ids.masked_fill(mask, 0)", "input_ids"), truth="looks the image token up, which may lie outside the table")
change("10.3", "raises only for too few places", SEQ, ("!=", "<"), truth="does not raise when there are more places than features")
change("10.3", "counts one row", SEQ, ("if int(mask.sum()) != len(features)", "if int(mask[0].sum()) != image_features.shape[1]"), truth="compares places with N of one picture, not with all features")
change("10.3", "no numbers in the message", SEQ, ('f"{int(mask.sum())} places for {len(features)} features"', '"the number of image tokens does not fit the number of features"'), truth="the ValueError does not give both numbers")
change("10.3", "assert instead of ValueError", SEQ, ('    if int(mask.sum()) != len(features):\n        raise ValueError(f"{int(mask.sum())} places for {len(features)} features")\n', '    assert int(mask.sum()) == len(features), f"{int(mask.sum())} places for {len(features)} features"\n'), truth="raises AssertionError instead of ValueError")
change("10.3", "ids changed", SEQ, ("    x = table[input_ids.masked_fill(mask, 0)]", "    input_ids[mask] = 0\n    x = table[input_ids]"), truth="input_ids is changed in place")
change("10.3", "no comparison", SEQ, ('    if int(mask.sum()) != len(features):\n        raise ValueError(f"{int(mask.sum())} places for {len(features)} features")\n', ""), ("x[mask] = features", "x = x.masked_scatter(mask[..., None], features)"), truth="does not compare places and features at all")
change("10.3", "mask from the safe ids", SEQ, ("x[mask] = features", "x = x.masked_scatter((input_ids.masked_fill(mask, 0) == 0)[..., None], features)"), truth="the mask is made from the replaced ids: places of id 0 become pictures' places")
right("10.3", "embedding and masked_scatter", """
def embed_sequence(input_ids, table, image_features, image_token_index):
    is_image = input_ids.eq(image_token_index)
    wanted, given = is_image.sum().item(), image_features.shape[0] * image_features.shape[1]
    if wanted != given:
        raise ValueError("the prompt keeps {} places but there are {} image features".format(wanted, given))
    ids = torch.where(is_image, torch.zeros_like(input_ids), input_ids)
    text = nn.functional.embedding(ids, table).mul(table.size(-1) ** 0.5)
    return text.masked_scatter(is_image.unsqueeze(-1), image_features.to(text.dtype))
""")
right("10.3", "only text is looked up", """
def embed_sequence(input_ids, table, image_features, image_token_index):
    B, L = input_ids.shape
    ids = input_ids.reshape(-1)
    pictures = (ids == image_token_index).nonzero()[:, 0]
    text = (ids != image_token_index).nonzero()[:, 0]
    features = image_features.reshape(-1, table.shape[1])
    if pictures.numel() != features.shape[0]:
        raise ValueError(f"{features.shape[0]} features for {pictures.numel()} places")
    out = table.new_empty(B * L, table.shape[1])
    out[pictures] = features
    out[text] = table[ids[text]] * table.shape[1] ** 0.5
    return out.view(B, L, -1)
""")

# --- 10.4 -------------------------------------------------------------------------------------------------------------

NEXT = """
def next_token_logits(model, input_ids, pictures, token_type_ids):
    features = model.project(model.encode(pictures))
    is_image = input_ids == model.image_token_index
    merged = model.embed(input_ids).masked_scatter(is_image[..., None], features)
    states = model.decode(merged, token_type_ids)
    return model.head(states[:, -1])
"""
change("10.4", "widths still made to fit", NEXT, ("features = model.project(model.encode(pictures))", "features = model.encode(pictures)\n    features = torch.cat([features, features[..., :1]], dim=-1)"), truth="project is not called; the width is filled up with a copied number")
change("10.4", "types still all ones", NEXT, ("model.decode(merged, token_type_ids)", "model.decode(merged, torch.ones_like(token_type_ids))"), truth="token_type_ids is not used: the mask is causal everywhere")
change("10.4", "types all zero", NEXT, ("model.decode(merged, token_type_ids)", "model.decode(merged, torch.zeros_like(token_type_ids))"), truth="token_type_ids is replaced by zeros: the answer sees what comes after it")
change("10.4", "types inverted", NEXT, ("model.decode(merged, token_type_ids)", "model.decode(merged, 1 - token_type_ids)"), truth="token_type_ids is inverted", says="types are read the other way round")
change("10.4", "first state", NEXT, ("states[:, -1]", "states[:, 0]"), truth="the next token is chosen from the first position's state instead of the last's")
change("10.4", "last but one", NEXT, ("states[:, -1]", "states[:, -2]"), truth="the state of the last but one position is used")
change("10.4", "last row of the batch", NEXT, ("states[:, -1]", "states[-1]"), truth="states[-1] is the last row of the batch, not the last position", says="logits of one row of the batch")
change("10.4", "first row of the batch", NEXT, ("states[:, -1]", "states[0]"), truth="states[0] is the first row of the batch, not the last position", says="logits of one row of the batch")
change("10.4", "mean over positions", NEXT, ("states[:, -1]", "states.mean(dim=1)"), truth="the states are averaged over all positions")
change("10.4", "logits of all positions", NEXT, ("states[:, -1]", "states"), truth="returns logits of every position")
change("10.4", "no merge", NEXT, ("    merged = model.embed(input_ids).masked_scatter(is_image[..., None], features)", "    merged = model.embed(input_ids)"), truth="the image features never get into the sequence")
change("10.4", "token instead of logits", NEXT, ("model.head(states[:, -1])", "model.head(states[:, -1]).argmax(dim=-1)"), truth="returns the chosen id instead of the logits")
right("10.4", "mask assignment on a clone, head before choosing", """
def next_token_logits(model, input_ids, pictures, token_type_ids):
    x = model.embed(input_ids).clone()
    where = input_ids.eq(model.image_token_index)
    x[where] = model.project(model.encode(pictures)).reshape(-1, x.shape[-1]).to(x.dtype)
    return model.head(model.decode(x, token_type_ids))[:, -1, :]
""")

# --- 10.5 -------------------------------------------------------------------------------------------------------------

WHOLE = """
class MyPaliGemma(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.vision_tower = SiglipVisionModel(config.vision_config)
        self.multi_modal_projector = PaliGemmaMultiModalProjector(config)
        self.language_model = GemmaForCausalLM(config.text_config)

    def forward(self, input_ids, pixel_values, attention_mask, token_type_ids):
        features = self.multi_modal_projector(self.vision_tower(pixel_values))
        is_image = input_ids == self.config.image_token_index
        x = self.language_model.model.embed(input_ids.masked_fill(is_image, 0))
        x = x.masked_scatter(is_image[..., None], features)
        states = self.language_model.model(x, attention_mask, token_type_ids)
        B, L = input_ids.shape
        last = (torch.arange(L) * attention_mask).amax(dim=1)
        return self.language_model.lm_head(states[torch.arange(B), last])
"""
change("10.5", "last column", WHOLE, ("states[torch.arange(B), last]", "states[:, -1]"), truth="takes the last column, which is padding in rows padded on the right")
change("10.5", "count of tokens", WHOLE, ("(torch.arange(L) * attention_mask).amax(dim=1)", "attention_mask.sum(dim=1) - 1"), truth="the number of tokens minus 1 is not the last place in a row padded on the left")
change("10.5", "ids not made safe", WHOLE, ("input_ids.masked_fill(is_image, 0)", "input_ids"), truth="the image token is looked up although it may lie outside the table")
change("10.5", "scaled twice", WHOLE, ("x = x.masked_scatter", "x = x * x.shape[-1] ** 0.5\n        x = x.masked_scatter"), truth="the embeddings are multiplied by the root of D a second time")
change("10.5", "features scaled", WHOLE, ("is_image[..., None], features)", "is_image[..., None], features / self.config.text_config.hidden_size ** 0.5)"), truth="the image features are divided by the root of D")
change("10.5", "no mask", WHOLE, ("self.language_model.model(x, attention_mask,", "self.language_model.model(x, torch.ones_like(attention_mask),"), truth="the attention mask is not used: padding is seen")
change("10.5", "types zero", WHOLE, ("attention_mask, token_type_ids)\n        B", "attention_mask, torch.zeros_like(token_type_ids))\n        B"), truth="token_type_ids is not used")
change("10.5", "first picture for every row", WHOLE, ("self.vision_tower(pixel_values)", "self.vision_tower(pixel_values[:1].expand_as(pixel_values))"), truth="every row gets the first picture")
change("10.5", "logits of all places", WHOLE, ("states[torch.arange(B), last]", "states"), truth="returns logits for all places instead of each row's last")
change("10.5", "other names", WHOLE, ("self.vision_tower", "self.vision"), ("self.multi_modal_projector", "self.projector"), ("self.language_model", "self.decoder"), truth="the parts have other names, so the trained weights do not fit")
change("10.5", "one place too early", WHOLE, ("states[torch.arange(B), last]", "states[torch.arange(B), last - 1]"), truth="takes the state one place before the last token")
change("10.5", "last place of row 0 for all", WHOLE, ("last = (torch.arange(L) * attention_mask).amax(dim=1)", "last = (torch.arange(L) * attention_mask).amax(dim=1)[0]"), truth="uses the first row's last place for every row")
right("10.5", "flip and argmax, gather, head first", """
class MyPaliGemma(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.language_model = GemmaForCausalLM(config.text_config)
        self.vision_tower = SiglipVisionModel(config.vision_config)
        self.multi_modal_projector = PaliGemmaMultiModalProjector(config)

    def forward(self, input_ids, pixel_values, attention_mask, token_type_ids):
        patches = self.multi_modal_projector(self.vision_tower(pixel_values)).flatten(0, 1)
        here = input_ids == self.config.image_token_index
        stream = self.language_model.model.embed(torch.where(here, 0, input_ids)).clone()
        stream[here] = patches
        logits = self.language_model.lm_head(self.language_model.model(stream, attention_mask, token_type_ids))
        from_end = attention_mask.flip(1).argmax(dim=1)
        place = attention_mask.shape[1] - 1 - from_end
        return logits.gather(1, place[:, None, None].expand(-1, 1, logits.shape[-1])).squeeze(1)
""")
