"""Chapter 10: the projector, the merge, and the whole model."""

import re
from types import SimpleNamespace

import torch
from torch import nn

from ..modeling_gemma import PaliGemmaMultiModalProjector
from .tasks import Case, Finding, Found, Mistake, Task, faults_left, larger, numbers
from .watching import swap_task

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
    ],
)

# --- 10.2 --------------------------------------------------------------------------------------------------------


def config(D_v: int, D: int):
    """As much of a PaliGemmaConfig as a projector looks at."""
    return SimpleNamespace(
        vision_config=SimpleNamespace(hidden_size=D_v), text_config=SimpleNamespace(hidden_size=D), projection_dim=D
    )


def projector_cases(seed):
    k = larger(seed)
    yield Case(
        (numbers(seed, 2, 3 + k, 5 + k),), (config(5 + k, 7 + k),), {"B": 2, "N": 3 + k, "D_v": 5 + k, "D": 7 + k}
    )
    yield Case(
        (numbers(seed, 1, 4, 6, shift=2.0),), (config(6, 3),), {"N": 4, "D_v": 6, "D": 3}, note="about 2 on average"
    )


class Projecting(nn.Module):
    """The reference with a change, for the imitations."""

    def __init__(self, config):
        super().__init__()
        self.linear = nn.Linear(config.vision_config.hidden_size, config.projection_dim)

    def forward(self, image_features):
        return self.change(self.linear(image_features))

    def change(self, x):
        return x


class Shrunk(Projecting):
    def change(self, x):
        return x / x.shape[-1] ** 0.5


class Grown(Projecting):
    def change(self, x):
        return x * x.shape[-1] ** 0.5


class Bent(Projecting):
    def change(self, x):
        return torch.nn.functional.gelu(x, approximate="tanh")


class Rectified(Projecting):
    def change(self, x):
        return x.relu()


class Normed(Projecting):
    def change(self, x):
        return torch.nn.functional.layer_norm(x, x.shape[-1:])


class BiasUnused(Projecting):
    def forward(self, image_features):
        return image_features @ self.linear.weight.T


class Pooled(Projecting):
    def change(self, x):
        return x.mean(dim=1, keepdim=True)


def show_projector(thing):
    module = thing(config(1152, 2048))
    count = sum(parameter.numel() for parameter in module.parameters())
    print(f"  In Google's 3B model yours has {count:,} parameters: 1,152 x 2,048 + 2,048.")


PROJECTOR = Task(
    id="10.2",
    title="PaliGemmaMultiModalProjector",
    points=2,
    minutes=6,
    level="easy",
    reference=PaliGemmaMultiModalProjector,
    cases=projector_cases,
    see='chapter 10, "The projector"; the hints of this task',
    reward=show_projector,
    mistakes=[
        Mistake("divided by the root of D", "each number is the expected one divided by the square root of D: image "
                "features are left as the projector makes them", Shrunk),
        Mistake("multiplied by the root of D", "each number is the expected one times the square root of D: text is "
                "multiplied, pictures are not", Grown),
        Mistake("bent", "a GELU comes after the linear map: the projector is linear and nothing else", Bent),
        Mistake("bent", "negative numbers are cut off: the projector is linear and nothing else", Rectified),
        Mistake("normalised", "the result is normalised: there is no norm in the projector", Normed),
        Mistake("bias unused", "your numbers are those you get without the bias", BiasUnused),
        Mistake("patches averaged", "the patches are averaged into one: each keeps a vector of its own", Pooled),
    ],
)  # fmt: skip

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
            "there is a place for each feature, and every picture has several: count features, not pictures",
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
    sizes = {"B": 2, "L": 7 + k, "N": 3, "D": 4}
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


def show_forward(thing):
    print("  picture -> encode -> project -> merge -> decode -> last position -> head: every arrow in its place")


FORWARD = Task(
    id="10.4",
    title="find the three faults",
    points=3,
    minutes=12,
    level="medium",
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
    ],
)

TASKS = [
    MERGE,
    PROJECTOR,
    EMBED,
    FORWARD,
    swap_task("10.5", ("PaliGemmaMultiModalProjector",), see='chapter 10, "Break it"; the hints of this task'),
]
