"""Chapter 10: the projector, the merge, and the whole model."""

import functools
import re

import torch
from torch import nn

from .. import swap as swap_module
from ..modeling_gemma import GemmaConfig, GemmaForCausalLM, PaliGemmaConfig, PaliGemmaMultiModalProjector
from ..modeling_siglip import SiglipVisionConfig, SiglipVisionModel
from .exposing import matching_task
from .tasks import Case, Finding, Found, Mistake, Prediction, Task, faults_left, larger, numbers
from .watching import PROMPT, captions_of, picture, show_captions, trained, words_kept

IMAGE = 9  # the id of <image> in the toy vocabularies below


def rows_of_ids(seed, *rows, vocabulary=8):
    """Token ids with IMAGE where a row has "i", padding (0) at "p" and other ids at "t"."""
    generator = torch.Generator().manual_seed(50 + seed)
    ids = torch.randint(1, vocabulary, (len(rows), len(rows[0])), generator=generator)
    for r, row in enumerate(rows):
        for c, kind in enumerate(row):
            ids[r, c] = {"i": IMAGE, "p": 0}.get(kind, int(ids[r, c]))
    return ids


# --- 10.1 --------------------------------------------------------------------------------------------------------


def merge(embeddings, image_features, is_image):
    merged = embeddings.clone()
    merged[is_image] = image_features.flatten(0, 1).to(embeddings.dtype)
    return merged


def merge_cases(seed):
    k = larger(seed)
    sizes = {"B": 2, "L": 7, "N": 3, "D": 5}
    ids = rows_of_ids(seed, "iiitttt", "ppiiitt")
    yield Case(
        (numbers(seed, 2, 7, 5), numbers(seed + 50, 2, 3, 5), ids == IMAGE), sizes=sizes, note="second row padded"
    )
    ids = rows_of_ids(seed, *(row + "t" * k for row in ("iiiitt", "iiiitt", "piiiit")))
    yield Case(
        (numbers(seed, 3, 6 + k, 2 + k), numbers(seed + 60, 3, 4, 2 + k), ids == IMAGE),
        sizes={"B": 3, "L": 6 + k, "N": 4, "D": 2 + k},
    )
    ids = rows_of_ids(seed, "iiiiiit")  # two pictures in one prompt
    yield Case((numbers(seed, 1, 7, 4), numbers(seed + 70, 2, 3, 4), ids == IMAGE), note="two pictures in one prompt")
    half = numbers(seed, 1, 5, 4).bfloat16(), numbers(seed + 80, 1, 2, 4), rows_of_ids(seed, "iittt") == IMAGE
    yield Case(half, sizes={"L": 5, "N": 2, "D": 4}, note="embeddings in bfloat16, features in float32")


def at_the_front(embeddings, image_features, is_image):
    merged = embeddings.clone()
    merged[:, : image_features.shape[1]] = image_features
    return merged


def added(embeddings, image_features, is_image):
    return embeddings + merge(torch.zeros_like(embeddings), image_features, is_image)


def upside_down(embeddings, image_features, is_image):
    return torch.where(is_image[..., None], embeddings, merge(embeddings, image_features, is_image))


def concatenated(embeddings, image_features, is_image):
    return torch.cat([image_features, embeddings], dim=1)


def first_only(embeddings, image_features, is_image):
    merged = embeddings.clone()
    for row in range(len(merged)):
        merged[row, is_image[row]] = image_features[0, : int(is_image[row].sum())].to(merged.dtype)
    return merged


def in_place(embeddings, image_features, is_image):
    embeddings[is_image] = image_features.flatten(0, 1).to(embeddings.dtype)
    return embeddings


def scaled(embeddings, image_features, is_image):
    return merge(embeddings, image_features / image_features.shape[-1] ** 0.5, is_image)


def multiplied(embeddings, image_features, is_image):
    return merge(embeddings, image_features * image_features.shape[-1] ** 0.5, is_image)


def reversed_order(embeddings, image_features, is_image):
    return merge(embeddings, image_features.flip(1), is_image)


def kept_in_float32(embeddings, image_features, is_image):
    return merge(embeddings.float(), image_features, is_image)


def one_for_each_row(embeddings, image_features, is_image):
    merged = embeddings.clone()
    for row in range(len(merged)):
        merged[row, is_image[row]] = image_features[row].to(merged.dtype)
    return merged


def columns_first(embeddings, image_features, is_image):
    merged = embeddings.transpose(0, 1).clone()
    merged[is_image.T] = image_features.flatten(0, 1).to(merged.dtype)
    return merged.transpose(0, 1)


def not_cast(embeddings, image_features, is_image):
    merged = embeddings.clone()
    merged[is_image] = image_features.flatten(0, 1)
    return merged


def inverted(embeddings, image_features, is_image):
    return merge(embeddings, image_features, ~is_image)


def on_zeros(embeddings, image_features, is_image):
    return merge(torch.zeros_like(embeddings), image_features, is_image)


def next_patch(embeddings, image_features, is_image):
    flat = image_features.flatten(0, 1).to(embeddings.dtype)
    number = is_image.flatten().cumsum(0).clamp(max=len(flat) - 1).view_as(is_image)
    return torch.where(is_image[..., None], flat[number], embeddings)


def next_patch_around(embeddings, image_features, is_image):
    return merge(embeddings, image_features.flatten(0, 1).roll(-1, 0)[None], is_image)


def show_merge(thing):
    ids = rows_of_ids(0, "iiitt", "piiit")
    merged = thing(torch.zeros(2, 5, 1), torch.arange(1.0, 7).view(2, 3, 1), ids == IMAGE)
    for row, places in zip(merged[..., 0].int().tolist(), (ids == IMAGE).tolist(), strict=True):
        print(
            "  " + "  ".join(f"patch {value}" if place else "  text " for value, place in zip(row, places, strict=True))
        )


MERGE = Task(
    id="10.1",
    title="patches into their places",
    points=2,
    minutes=8,
    level="easy",
    importance="core",
    reference=merge,
    cases=merge_cases,
    see='chapter 10, "By hand"; the hints of this task',
    reward=show_merge,
    mistakes=[
        Mistake(
            "always at the front",
            "your features stand in the first places of each row, whatever `is_image` says: a row that is padded on "
            "the left begins with padding",
            at_the_front,
        ),
        Mistake("added", "the features are added to what stood there, and are to take its place", added),
        Mistake("upside down", "the places that are no image were written: the mask is upside down", upside_down),
        Mistake(
            "concatenated",
            "the sequence has grown: the places for the picture are already in it, and are to be overwritten",
            concatenated,
        ),
        Mistake("first picture for all", "every row got the features of the first picture", first_only),
        Mistake("scaled", "the features are divided by the square root of D on the way: this task copies them", scaled),
        Mistake(
            "scaled", "the features are multiplied by the square root of D: only text is, and not here", multiplied
        ),
        Mistake("order reversed", "the features stand in the places from the last to the first", reversed_order),
        Mistake(
            "dtype of the features",
            "the result has the dtype of the features; the sequence keeps the dtype of the embeddings",
            kept_in_float32,
        ),
        Mistake(
            "one picture for each row",
            "row b gets the features of picture b: a prompt may have two pictures, so count features and not rows",
            one_for_each_row,
        ),
        Mistake(
            "column by column",
            "the places are filled column by column, across the rows of the batch: they are filled row by row",
            columns_first,
        ),
        Mistake("not cast", "the features have another dtype than the embeddings: they are to be cast first", not_cast),
        Mistake("upside down", "the features go to the places that are no image: the mask is upside down", inverted),
        Mistake("other places emptied", "all other places are 0: they are to stay as they are", on_zeros),
        Mistake(
            "one patch further",
            "each place has the patch after its own: the running number begins at 1",
            [next_patch, next_patch_around],
        ),
    ],
)

# --- 10.2 --------------------------------------------------------------------------------------------------------

# Each fault alone in the trained model, over 24 scenes (watching.words_kept).
DAMAGE = {
    "A": "features divided by the root of D",
    "B": "grid read column by column",
    "C": "bias of the projector left out",
    "D": "first picture for every row",
    "E": "no RoPE in the decoder",
}


class Divided(PaliGemmaMultiModalProjector):
    def forward(self, image_features):
        return super().forward(image_features) / image_features.shape[-1] ** 0.5


class ColumnByColumn(PaliGemmaMultiModalProjector):
    def forward(self, image_features):
        side = int(image_features.shape[1] ** 0.5)
        return super().forward(image_features.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2))


class WithoutBias(PaliGemmaMultiModalProjector):
    def forward(self, image_features):
        return image_features @ self.linear.weight.T


class FirstForAll(PaliGemmaMultiModalProjector):
    def forward(self, image_features):
        return super().forward(image_features[:1].expand_as(image_features))


BROKEN = {
    "A": {"PaliGemmaMultiModalProjector": Divided},
    "B": {"PaliGemmaMultiModalProjector": ColumnByColumn},
    "C": {"PaliGemmaMultiModalProjector": WithoutBias},
    "D": {"PaliGemmaMultiModalProjector": FirstForAll},
    "E": {"apply_rotary_pos_emb": lambda query, key, cos, sin: (query, key)},
}


@functools.cache
def bias_left_out():
    return words_kept(**BROKEN["C"])["captions"] if trained() is not None else "no trained model here"


def show_damage(answer=None) -> None:
    """A line for each broken model: how many captions and words it keeps, and what it says about one picture."""
    if trained() is None:
        print("The trained model is not in assets/tiny-paligemma, so it cannot speak.")
        return
    model, processor = trained()
    print(f"  whole: {captions_of(model, processor)[5]}")
    for name, parts in BROKEN.items():
        with swap_module.swap(model, **parts) as mine:
            captions = captions_of(mine, processor)
        kept = words_kept(captions=captions)
        shares = "  ".join(f"{kind} {share:.2f}" for kind, share in kept.items() if kind != "captions")
        print(
            f"  {name}  {kept['captions']:2} of 24 captions kept   {shares}"
            + (f"   {answer()[name]}" if answer else "")
        )
        if answer is None:
            print(f"     {captions[5]:.84}")


MATCH = matching_task(
    "10.2",
    parts="lines",
    truth=DAMAGE,
    confusions={
        frozenset(
            {"grid read column by column", "no RoPE in the decoder"}
        ): "patches in exchanged places are all there, "
        "so things keep their names; without positions of its own the decoder loses its thread as well",
        frozenset({"features divided by the root of D", "first picture for every row"}): "one of the two says fluent "
        "things about another picture; the other hardly sees any picture",
        frozenset({"features divided by the root of D", "bias of the projector left out"}): "in this model the bias is "
        "small beside what it is added to; a division by 11 is not",
        frozenset({"first picture for every row", "no RoPE in the decoder"}): "a model that sees another picture names "
        "things that are not in this one; one without positions names things that are, and loses count of them",
        frozenset({"features divided by the root of D", "no RoPE in the decoder"}): "one of the two hardly sees the "
        "picture and repeats a word; the other still names what is there",
        frozenset({"grid read column by column", "first picture for every row"}): "patches in exchanged places are all "
        "there, so the words for things stay and relations suffer; another picture has other things",
    },
    title="five faults, five kinds of damage",
    points=3,
    minutes=12,
    level="medium",
    importance="core",
    see='chapter 10, "The projector" and "Break it"; the hints of this task',
    reward=show_damage,
    prediction=Prediction(
        "Of 24 captions, how many stay as they are when the projector's bias is left out?",
        truth=bias_left_out,
        tempting=0,
        why="The bias is small beside the features, and this model can do without it. A right caption is weak "
        "evidence: the logits differ.",
    ),
)

# --- 10.3 --------------------------------------------------------------------------------------------------------


def embed_sequence(input_ids, table, image_features, image_token_index):
    is_image = input_ids == image_token_index
    places, features = int(is_image.sum()), image_features.shape[0] * image_features.shape[1]
    if places != features:
        raise ValueError(f"{places} places for {features} image features, expected as many")
    text = table[input_ids.masked_fill(is_image, 0)] * table.shape[1] ** 0.5
    return merge(text, image_features, is_image)


def embed_cases(seed):
    k = larger(seed)
    # Two rows of three places each are six: features are counted over the batch.
    sizes = {"B": 2, "L": 6, "N": 3, "D": 4}
    table = numbers(seed + 20, 9, 4)  # IMAGE = 9 lies outside
    yield Case((rows_of_ids(seed, "iiittt", "piiitt"), table, numbers(seed, 2, 3, 4), IMAGE), sizes=sizes,
               note="the id of <image> is outside the table")  # fmt: skip
    table = numbers(seed + 30, 12 + k, 9 + k)
    two = rows_of_ids(seed, "iiiiit" + "t" * k, "ttiiii" + "t" * k)  # three pictures of three in two rows, 5 and 4
    yield Case((two, table, numbers(seed + 7, 3, 3, 9 + k), IMAGE), note="three pictures in a batch of two rows")
    yield Case((rows_of_ids(seed, "iittttt" + "t" * k), table, numbers(seed, 1, 2, 9 + k), IMAGE),
               sizes={"L": 7 + k, "N": 2, "D": 9 + k},
               note="the id of <image> is in the table")  # fmt: skip


def embedding(text_factor=lambda D: D**0.5, image_factor=lambda D: 1.0, guard=True, look_up=True):
    """The reference with other factors, or without one of its guards."""

    def function(input_ids, table, image_features, image_token_index):
        is_image = input_ids == image_token_index
        D = table.shape[1]
        ids = input_ids.masked_fill(is_image, 0) if look_up else input_ids
        places, features = int(is_image.sum()), image_features.shape[0] * image_features.shape[1]
        if guard and places != features:
            raise ValueError(f"{places} places for {features} image features, expected as many")
        features = image_features.flatten(0, 1) * image_factor(D)
        merged = table[ids] * text_factor(D)
        return merged.masked_scatter(is_image[..., None], features)

    return function


def masked_afterwards(input_ids, table, image_features, image_token_index):
    """The places are sought in the ids in which 0 stands for <image> already."""
    safe = input_ids.masked_fill(input_ids == image_token_index, 0)
    text = table[safe] * table.shape[1] ** 0.5
    return text.masked_scatter((safe == 0)[..., None], image_features)


def use_embedding(function, input_ids, table, image_features, image_token_index):
    """Where the counts fit, an error is the mistake itself, whatever it says."""
    try:
        return function(input_ids, table, image_features, image_token_index)
    except ValueError as error:
        pictures, each = image_features.shape[:2]
        places = int((input_ids == image_token_index).sum())
        raise Found(
            "refused what fits",
            f"you raised ValueError ({error}) where the counts fit: {places} places, and {pictures} pictures of {each} "
            "features each",
            "there is a place for each feature: count all places and all features of the batch, not those of one row "
            "or "
            "of one picture, and not pictures",
        ) from error


def refuses_wrong_counts(thing):
    """One feature too few and one too many must be an error that a person can read."""
    table = numbers(3, 12, 4)
    ids = rows_of_ids(0, "iiitt", "iiitt")
    for features, text in ((numbers(4, 2, 2, 4), "4 features"), (numbers(4, 2, 4, 4), "8 features")):
        try:
            thing(ids, table, features, IMAGE)
        except ValueError as error:
            told = set(re.findall(r"\d+", str(error)))
            if {"6", text.split()[0]} <= told:
                continue
            return Finding(
                "numbers not told",
                f"6 places and {text} raised ValueError: {error}",
                "the message is to give both numbers, or whoever reads it cannot tell what is wrong",
            )
        except Exception as error:
            return Finding(
                "another error",
                f"6 places and {text} raised {type(error).__name__}: {error}",
                "the caller is to get a ValueError that says how many places and how many features there are, before "
                "anything is written",
            )
        return Finding(
            "counts not checked",
            f"6 places and {text} gave a result without an error",
            "with a wrong count every later row gets the wrong patches, and nobody notices",
        )
    return None


def show_embedding(thing):
    table = numbers(0, 12, 64, scale=0.1)
    x = thing(rows_of_ids(0, "iiittt"), table, numbers(1, 1, 3, 64), IMAGE)
    sizes = x.square().mean(-1).sqrt()[0]
    print("  root mean square along the sequence:  " + "  ".join(f"{size:.2f}" for size in sizes))


EMBED = Task(
    id="10.3",
    title="one sequence, two scales",
    points=4,
    minutes=12,
    level="medium",
    importance="core",
    reference=embed_sequence,
    cases=embed_cases,
    use=use_embedding,
    see='chapter 10, "Two scales"; the hints of this task',
    reward=show_embedding,
    extra=[refuses_wrong_counts],
    mistakes=[
        Mistake("scale forgotten", "the text is not multiplied by the square root of D", embedding(lambda D: 1.0)),
        Mistake("scale twice", "the text is multiplied by D: the square root is taken of it once too seldom, or the "
                "factor is there twice", embedding(lambda D: float(D))),
        Mistake("divided instead of multiplied", "the text is divided by the square root of D",
                embedding(lambda D: D**-0.5)),
        Mistake("picture scaled too", "the picture is multiplied by the square root of D as well: it is to stay as the "
                "projector made it", embedding(image_factor=lambda D: D**0.5)),
        Mistake("picture divided", "the picture is divided by the square root of D: published code does that only "
                "because it multiplies everything afterwards", embedding(image_factor=lambda D: D**-0.5)),
        Mistake("picture divided", "the picture is divided and the text is not multiplied: half of a pair of steps",
                embedding(lambda D: 1.0, lambda D: D**-0.5)),
        Mistake("scaled by the vocabulary", "the factor is the square root of V and not of D", lambda ids, table, f, i:
                embedding(lambda D: table.shape[0] ** 0.5)(ids, table, f, i)),
        Mistake("looked up outside the table", "the id of <image> may lie outside the table: look something else up "
                "in those places, it is overwritten anyway", embedding(look_up=False)),
        Mistake("mask made too late", "the places are sought where the replaced id stands: text and padding of that id "
                "count as picture, too", masked_afterwards),
    ],
)  # fmt: skip

# --- 10.4 --------------------------------------------------------------------------------------------------------


class Pieces:
    """A model in little pieces, so that the order of the calls can be checked: each does something simple.

    `encode` [B, N, D_v] "pictures" to [B, N, D_v]; `project` to [B, N, D]; `embed` ids to [B, L, D], scaled already;
    `decode` (embeddings, types) with a prefix-LM mask to [B, L, D]; `head` to [B, L, V].
    """

    def __init__(self, seed, D_v=3, D=4, V=11):
        self.image_token_index = IMAGE
        self.encoder, self.projector = numbers(seed + 1, D_v, D_v), numbers(seed + 2, D_v, D)
        self.table, self.mixer = numbers(seed + 3, V, D), numbers(seed + 4, D, D)

    def encode(self, pictures):
        return torch.tanh(pictures @ self.encoder)

    def project(self, features):
        return features @ self.projector

    def embed(self, ids):
        return self.table[ids] * self.table.shape[1] ** 0.5

    def decode(self, embeddings, token_type_ids):
        """Twice, each token becomes the mean of those that it may see, mixed: in the second round what the first tokens
        saw reaches the last one."""
        step = token_type_ids.cumsum(1)
        allowed = (step[:, None, :] <= step[:, :, None]).to(embeddings.dtype)  # [B, L, T]
        weights = allowed / allowed.sum(-1, keepdim=True)
        for _ in range(2):
            embeddings = torch.tanh(weights @ embeddings @ self.mixer) + embeddings
        return embeddings

    def head(self, states):
        return states @ self.table.T


FAULTS = {  # what can be observed of each, and its name
    "twice": ("the picture goes through the projector twice, or not at all", "projector missing"),
    "types": (
        "everything counts as the answer, so that nothing sees what comes after it: the mask is causal",
        "causal",
    ),
    "place": ("the logits are those of the first position, and the next token is chosen at the last", "first place"),
}


def next_token_logits(pieces, input_ids, pictures, token_type_ids, faults=()):
    features = pieces.encode(pictures)
    if "twice" not in faults:
        features = pieces.project(features)
    else:
        features = torch.cat([features, features[..., :1]], dim=-1)  # the listing pads the width instead
    is_image = input_ids == pieces.image_token_index
    merged = merge(pieces.embed(input_ids), features, is_image)
    types = torch.ones_like(token_type_ids) if "types" in faults else token_type_ids
    states = pieces.decode(merged, types)
    return pieces.head(states[:, 0] if "place" in faults else states[:, -1])


def forward_cases(seed):
    k = larger(seed)
    ids = rows_of_ids(seed, "iiitttt" + "t" * k, "iiitttt" + "t" * k)
    types = torch.tensor([[0] * (5 + k) + [1, 1], [0] * (6 + k) + [1]])
    sizes = {"B": 2, "L": 7 + k, "D": 4}
    yield Case((Pieces(seed), ids, numbers(seed, 2, 3, 3), types), sizes=sizes, note="an answer has begun")
    yield Case(
        (Pieces(seed + 5), ids, numbers(seed + 6, 2, 3, 3), torch.zeros_like(types)), sizes=sizes, note="prompt only"
    )


def mean_of_states(pieces, input_ids, pictures, token_type_ids):
    merged = merge(
        pieces.embed(input_ids), pieces.project(pieces.encode(pictures)), input_ids == pieces.image_token_index
    )
    return pieces.head(pieces.decode(merged, token_type_ids).mean(dim=1))


def all_positions(pieces, input_ids, pictures, token_type_ids):
    merged = merge(
        pieces.embed(input_ids), pieces.project(pieces.encode(pictures)), input_ids == pieces.image_token_index
    )
    return pieces.head(pieces.decode(merged, token_type_ids))


def types_zero(pieces, input_ids, pictures, token_type_ids):
    return next_token_logits(pieces, input_ids, pictures, torch.zeros_like(token_type_ids))


def encoder_skipped(pieces, input_ids, pictures, token_type_ids):
    merged = merge(pieces.embed(input_ids), pieces.project(pictures), input_ids == pieces.image_token_index)
    return pieces.head(pieces.decode(merged, token_type_ids)[:, -1])


def types_inverted(pieces, input_ids, pictures, token_type_ids):
    return next_token_logits(pieces, input_ids, pictures, 1 - token_type_ids)


def without_the_picture(pieces, input_ids, pictures, token_type_ids):
    return pieces.head(pieces.decode(pieces.embed(input_ids), token_type_ids)[:, -1])


def last_but_one(pieces, input_ids, pictures, token_type_ids):
    return all_positions(pieces, input_ids, pictures, token_type_ids)[:, -2]


def one_row(index):
    return lambda *inputs: all_positions(*inputs)[index]


def likeliest_token(pieces, input_ids, pictures, token_type_ids):
    return next_token_logits(pieces, input_ids, pictures, token_type_ids).argmax(-1)


def show_forward(thing):
    print("  picture -> encode -> project -> merge -> decode -> last position -> head: every arrow in its place")


FORWARD = Task(
    id="10.4",
    title="find the three faults",
    points=3,
    minutes=12,
    level="medium",
    importance="deepen",
    reference=next_token_logits,
    cases=forward_cases,
    gradients=False,
    see="the map at the head of chapter 10: follow it arrow by arrow",
    reward=show_forward,
    mistakes=[
        *faults_left(FAULTS, lambda some: lambda *inputs: next_token_logits(*inputs, faults=some)),
        Mistake("all see all", "everything counts as prompt: a token of the answer sees those after it", types_zero),
        Mistake(
            "all positions", "logits of all positions are returned; those of the last are asked for", all_positions
        ),
        Mistake(
            "mean of all positions", "the states are averaged; the next token is chosen at the last", mean_of_states
        ),
        Mistake("encoder skipped", "the pictures go into the projector without having been encoded", encoder_skipped),
        Mistake(
            "types inverted",
            "the types are read the other way round: 0 is picture and prompt, 1 the answer",
            types_inverted,
        ),
        Mistake(
            "picture left out",
            "the picture never gets into the sequence: your logits do not depend on it",
            without_the_picture,
        ),
        Mistake("last place but one", "the logits are those of the last position but one", last_but_one),
        Mistake(
            "row of the batch",
            "these are the logits of one row of the batch, at all of its positions: the first axis counts the rows. Of "
            "every row the last position is asked for",
            [one_row(-1), one_row(0)],
        ),
        Mistake(
            "token instead of logits",
            "the likeliest token is returned; its logits are asked for, before a choice",
            likeliest_token,
        ),
    ],
)

# --- 10.5 --------------------------------------------------------------------------------------------------------


class Whole(nn.Module):
    """The three parts of the package, and what joins them: logits of the token that comes next in each row."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.vision_tower = SiglipVisionModel(config.vision_config)
        self.multi_modal_projector = PaliGemmaMultiModalProjector(config)
        self.language_model = GemmaForCausalLM(config.text_config)

    def forward(self, input_ids, pixel_values, attention_mask, token_type_ids):
        is_image = input_ids == self.config.image_token_index
        text = self.words(input_ids.masked_fill(is_image, 0))
        merged = text.masked_scatter(is_image[..., None], self.picture(pixel_values))
        states = self.language_model.model(merged, self.seen(attention_mask), self.types(token_type_ids))
        return self.language_model.lm_head(self.choose(states, attention_mask))

    def words(self, ids):
        return self.language_model.model.embed(ids)

    def picture(self, pixel_values):
        return self.multi_modal_projector(self.vision_tower(pixel_values))

    def seen(self, attention_mask):
        return attention_mask

    def types(self, token_type_ids):
        return token_type_ids

    def choose(self, states, attention_mask):
        last = attention_mask.shape[1] - 1 - attention_mask.flip(1).argmax(1)
        return states[torch.arange(len(states)), last]


def whole(**methods):
    return type("Changed", (Whole,), methods)


def looked_up(self, input_ids, pixel_values, attention_mask, token_type_ids):
    """All ids are looked up, that of <image> as well."""
    text = self.words(input_ids)
    merged = text.masked_scatter((input_ids == IMAGE)[..., None], self.picture(pixel_values))
    states = self.language_model.model(merged, attention_mask, token_type_ids)
    return self.language_model.lm_head(self.choose(states, attention_mask))


def whole_config(D, D_v, side):
    vision = SiglipVisionConfig(
        hidden_size=D_v, intermediate_size=2 * D_v, num_hidden_layers=1, num_attention_heads=2, image_size=4 * side,
        patch_size=4,
    )  # fmt: skip
    text = GemmaConfig(
        vocab_size=IMAGE, hidden_size=D, intermediate_size=2 * D, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4,
    )  # fmt: skip
    return PaliGemmaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)


def whole_cases(seed):
    k = larger(seed)
    for D, D_v, rows, note in (
        (8 + 2 * k, 6, ("iiii" + "tttt" + "t" * k, "iiii" + "ttpp" + "p" * k), "second row padded on the right"),
        (10, 8, ("piiiittp", "iiiitttt", "ppiiiitt"), "padded on either side"),
    ):
        ids = rows_of_ids(seed, *rows)
        real = torch.tensor([[int(kind != "p") for kind in row] for row in rows])
        types = real * (torch.arange(len(rows[0])) > 5)  # an answer has begun
        yield Case((ids, numbers(seed, len(rows), 3, 8, 8), real, types), (whole_config(D, D_v, 2),),
                   {"B": 2} if len(rows) == 2 else {}, note=note)  # fmt: skip


@torch.no_grad()
def show_whole(kind):
    """The learner's model with the trained weights, writing without a cache."""
    if trained() is None:
        print("The trained model is not in assets/tiny-paligemma, so it cannot speak.")
        return
    model, processor = trained()
    mine = kind(model.config)
    problems = swap_module.take_over(mine, model)
    if problems:
        print("  the trained weights do not fit: " + "; ".join(problems[:2]))
        return
    images = [picture(seed) for seed in (0, 1, 2)]
    inputs = processor(text=[PROMPT] * 3, images=images)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    types, ended = torch.zeros_like(ids), torch.zeros(3, dtype=torch.bool)
    for _ in range(30):
        new = mine.eval()(ids, inputs["pixel_values"], mask, types).argmax(-1)
        new = new.masked_fill(ended, model.config.eos_token_id)
        ended |= new == model.config.eos_token_id
        ids, one = torch.cat([ids, new[:, None]], 1), torch.ones(3, 1, dtype=mask.dtype)
        mask, types = torch.cat([mask, one], 1), torch.cat([types, one], 1)
        if ended.all():
            break
    start, eos = inputs["input_ids"].shape[1], model.config.eos_token_id
    rows = [row[: row.index(eos)] if eos in row else row for row in ids[:, start:].tolist()]
    show_captions(images, [processor.decode(row) for row in rows], "Your model, with the trained weights, writes:")


ASSEMBLE = Task(
    id="10.5",
    title="assemble the whole model",
    points=4,
    minutes=18,
    level="hard",
    importance="core",
    reference=Whole,
    cases=whole_cases,
    gradients=False,
    tolerance=2e-4,
    see='chapter 10, "Build it"; the hints of this task',
    reward=show_whole,
    mistakes=[
        Mistake("last column", "the logits are those of the last column: in a row that is padded on the right nothing "
                "stands there", whole(choose=lambda self, states, mask: states[:, -1])),
        Mistake("number of tokens as place", "the place is the number of tokens less one: in a row that is padded on "
                "the left the last token lies further right",
                whole(choose=lambda self, states, mask: states[torch.arange(len(states)), mask.sum(1) - 1])),
        Mistake("all positions", "logits of all positions come back; those after each row's last token are asked for",
                whole(choose=lambda self, states, mask: states)),
        Mistake("first column", "the logits are those of the first column",
                whole(choose=lambda self, states, mask: states[:, 0])),
        Mistake("mask forgotten", "padding is looked at, and counts as a place: the attention mask does not reach the "
                "decoder", whole(seen=lambda self, mask: torch.ones_like(mask))),
        Mistake("text not scaled", "the text's embeddings are the rows of the table: `model.embed` multiplies by the "
                "square root of D, `embed_tokens` does not",
                whole(words=lambda self, ids: self.language_model.model.embed_tokens(ids))),
        Mistake("picture scaled too", "the image features are multiplied by the square root of D as well",
                whole(picture=lambda self, x: Whole.picture(self, x) * self.config.text_config.hidden_size**0.5)),
        Mistake("picture divided", "the image features are divided by the square root of D",
                whole(picture=lambda self, x: Whole.picture(self, x) / self.config.text_config.hidden_size**0.5)),
        Mistake("answer seen", "`token_type_ids` has no effect: the tokens of picture and prompt see the answer, and "
                "those of the answer see what comes after them", whole(types=lambda self, types: types * 0)),
        Mistake("causal", "the tokens of picture and prompt see only what came before: their type is 0, and 1 is the "
                "answer's", whole(types=lambda self, types: torch.ones_like(types))),
        Mistake("text scaled twice", "the text is multiplied by the square root of D twice: `model.embed` has done it",
                whole(words=lambda self, ids: Whole.words(self, ids) * self.config.text_config.hidden_size**0.5)),
        Mistake("one place too early", "the logits are those of the place before the last token",
                whole(choose=lambda self, states, mask: states[
                    torch.arange(len(states)), mask.shape[1] - 2 - mask.flip(1).argmax(1)])),
        Mistake("place of row 0 for all", "every row's logits are taken from the place where row 0 ends",
                whole(choose=lambda self, states, mask: states[:, mask.shape[1] - 1 - int(mask[0].flip(0).argmax())])),
        Mistake("first picture for all", "every row gets the features of the first picture",
                whole(picture=lambda self, x: Whole.picture(self, x[:1].expand_as(x)))),
        Mistake("looked up outside the table", "the id of <image> may lie outside the table: look something else up in "
                "those places, it is overwritten anyway", whole(forward=looked_up)),
    ],
)  # fmt: skip

TASKS = [MERGE, MATCH, EMBED, FORWARD, ASSEMBLE]
