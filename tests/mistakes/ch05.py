"""Prompts, labels and batches, as learners write them."""

import torch
from torch.nn.utils.rnn import pad_sequence

from . import right, wrong

# --- 05.1 --------------------------------------------------------------------------------------------------------

PANELS = {
    "A": "loss on padding",
    "B": "moved twice",
    "C": "as it should be",
    "D": "no EOS",
    "E": "loss on the prompt",
}


def exchanged(one, other):
    return lambda: PANELS | {one: PANELS[other], other: PANELS[one]}


right("05.1")(lambda: PANELS)
right("05.1")(lambda: dict(zip("ECBDA", map(PANELS.get, "ECBDA"), strict=True)))
wrong("05.1", "taken for another")(exchanged("B", "C"))
wrong("05.1", "taken for another")(exchanged("C", "D"))
wrong("05.1", "taken for another")(exchanged("B", "D"))
wrong("05.1", "taken for another")(exchanged("A", "E"))
wrong("05.1", "a name twice")(lambda: PANELS | {"D": "as it should be"})
wrong("05.1", "unknown name")(lambda: PANELS | {"D": "EOS"})
wrong("05.1", "structure")(lambda: dict(enumerate(PANELS.values())))

# --- 05.2 --------------------------------------------------------------------------------------------------------


@right("05.2")
def _(input_ids, token_type_ids):
    labels = input_ids.clone()
    labels[token_type_ids == 0] = -100
    return labels


@right("05.2")
def _(input_ids, token_type_ids):
    return input_ids * token_type_ids - 100 * (1 - token_type_ids)


@wrong("05.2", "loss on the prompt")
def _(input_ids, token_type_ids):
    return input_ids + 0


@wrong("05.2", "loss on the prompt")
def _(input_ids, token_type_ids):
    labels = input_ids.clone()
    labels[labels == 0] = -100
    return labels


@wrong("05.2", "upside down")
def _(input_ids, token_type_ids):
    return input_ids.masked_fill(token_type_ids.bool(), -100)


@wrong("05.2", "labels shifted twice")
def _(input_ids, token_type_ids):
    labels = torch.full_like(input_ids, -100)
    labels[:, :-1] = input_ids[:, 1:].masked_fill(token_type_ids[:, 1:] == 0, -100)
    return labels


@wrong("05.2", "0 instead of -100")
def _(input_ids, token_type_ids):
    return torch.where(token_type_ids.bool(), input_ids, 0)


@wrong("05.2", "EOS not learned")
def _(input_ids, token_type_ids):
    labels = input_ids.masked_fill(token_type_ids == 0, -100)
    labels[input_ids == 1] = -100
    return labels


@wrong("05.2", "answer cut out")
def _(input_ids, token_type_ids):
    return torch.masked_select(input_ids, token_type_ids.bool())


@wrong("05.2", "input changed")
def _(input_ids, token_type_ids):
    input_ids[token_type_ids == 0] = -100
    return input_ids


@wrong("05.2", "dtype")
def _(input_ids, token_type_ids):
    return torch.where(token_type_ids.bool(), input_ids, torch.tensor(-100.0))


# --- 05.3 --------------------------------------------------------------------------------------------------------


@right("05.3")
def _(rows, pad_id, side):
    longest = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        gap = longest - len(row)
        if side == "left":
            ids.append([pad_id] * gap + row)
            mask.append([0] * gap + [1] * len(row))
        else:
            ids.append(row + [pad_id] * gap)
            mask.append([1] * len(row) + [0] * gap)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


@right("05.3")
def _(rows, pad_id, side):
    rows = [torch.tensor(row) for row in rows]
    ones = [torch.ones_like(row) for row in rows]
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=pad_id, padding_side=side),
        "attention_mask": pad_sequence(ones, batch_first=True, padding_side=side),
    }


def torch_pad(rows, pad_id, side, mask_value=0):
    rows = [torch.tensor(row) for row in rows]
    ones = [torch.ones_like(row) for row in rows]
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=pad_id, padding_side=side),
        "attention_mask": pad_sequence(ones, batch_first=True, padding_value=mask_value, padding_side=side),
    }


wrong("05.3", "padded on the right")(lambda rows, pad_id, side: torch_pad(rows, pad_id, "right"))
wrong("05.3", "padded on the left")(lambda rows, pad_id, side: torch_pad(rows, pad_id, "left"))
wrong("05.3", "sides exchanged")(
    lambda rows, pad_id, side: torch_pad(rows, pad_id, "left" if side == "right" else "right")
)
wrong("05.3", "padding attended")(lambda rows, pad_id, side: torch_pad(rows, pad_id, side, mask_value=1))
wrong("05.3", "mask from the ids")(
    lambda rows, pad_id, side: {
        "input_ids": (ids := torch_pad(rows, pad_id, side)["input_ids"]),
        "attention_mask": (ids != pad_id).long(),
    }
)
wrong("05.3", "mask upside down")(
    lambda rows, pad_id, side: {
        **(batch := torch_pad(rows, pad_id, side)),
        "attention_mask": 1 - batch["attention_mask"],
    }
)
wrong("05.3", "cut to the shortest")(
    lambda rows, pad_id, side: torch_pad([row[: min(map(len, rows))] for row in rows], pad_id, side)
)
wrong("05.3", "bool mask")(
    lambda rows, pad_id, side: {
        **(batch := torch_pad(rows, pad_id, side)),
        "attention_mask": batch["attention_mask"] == 1,
    }
)
wrong("05.3", "mask forgotten")(
    lambda rows, pad_id, side: {"input_ids": torch_pad(rows, pad_id, side)["input_ids"]}
)  # fmt: skip


@wrong("05.3", "type")
def _(rows, pad_id, side):
    batch = torch_pad(rows, pad_id, side)
    return batch["input_ids"], batch["attention_mask"]


@wrong("05.3", "raised")
def _(rows, pad_id, side):
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.ones(len(rows), len(rows[0]))}


@wrong("05.3", "input changed")
def _(rows, pad_id, side):
    longest = max(map(len, rows))
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    if side == "right":
        mask = [row[::-1] for row in mask]
    for row in rows:
        while len(row) < longest:
            row.insert(0 if side == "left" else len(row), pad_id)
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}


# --- 05.4 --------------------------------------------------------------------------------------------------------


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def row(prefix, suffix, labels=None, types=None):
    labels = [-100] * len(prefix) + suffix if labels is None else labels
    types = [0] * len(prefix) + [1] * len(suffix) if types is None else types
    return {
        "input_ids": torch.tensor([prefix + suffix]),
        "token_type_ids": torch.tensor([types]),
        "labels": torch.tensor([labels]),
    }


def prefix_text(tokenizer, prompt, n):
    return "<image>" * n + tokenizer.bos_token + prompt + "\n"


@right("05.4")
def _(tokenizer, prompt, suffix, num_image_tokens):
    prefix = ids(tokenizer, prefix_text(tokenizer, prompt, num_image_tokens))
    return row(prefix, ids(tokenizer, suffix + tokenizer.eos_token))


@right("05.4")
def _(tokenizer, prompt, suffix, num_image_tokens):
    image = tokenizer.convert_tokens_to_ids("<image>")
    prefix = [image] * num_image_tokens + [tokenizer.bos_token_id] + ids(tokenizer, prompt + "\n")
    answer = ids(tokenizer, suffix) + [tokenizer.eos_token_id]
    input_ids = torch.tensor([prefix + answer])
    kinds = (torch.arange(input_ids.shape[1]) >= len(prefix)).long()[None]
    return {"input_ids": input_ids, "token_type_ids": kinds, "labels": input_ids.masked_fill(kinds == 0, -100)}


@wrong("05.4", "EOS forgotten")
def _(tokenizer, prompt, suffix, num_image_tokens):
    return row(ids(tokenizer, prefix_text(tokenizer, prompt, num_image_tokens)), ids(tokenizer, suffix))


@wrong("05.4", "newline forgotten")
def _(tokenizer, prompt, suffix, num_image_tokens):
    prefix = ids(tokenizer, prefix_text(tokenizer, prompt, num_image_tokens).strip())
    return row(prefix, ids(tokenizer, suffix + tokenizer.eos_token))


@wrong("05.4", "BOS first")
def _(tokenizer, prompt, suffix, num_image_tokens):
    prefix = ids(tokenizer, tokenizer.bos_token + "<image>" * num_image_tokens + prompt + "\n")
    return row(prefix, ids(tokenizer, suffix + tokenizer.eos_token))


@wrong("05.4", "loss on the prompt")
def _(tokenizer, prompt, suffix, num_image_tokens):
    prefix = ids(tokenizer, prefix_text(tokenizer, prompt, num_image_tokens))
    answer = ids(tokenizer, suffix + tokenizer.eos_token)
    return row(prefix, answer, labels=prefix + answer)


@wrong("05.4", "kinds all alike")
def _(tokenizer, prompt, suffix, num_image_tokens):
    prefix = ids(tokenizer, prefix_text(tokenizer, prompt, num_image_tokens))
    answer = ids(tokenizer, suffix + tokenizer.eos_token)
    return row(prefix, answer, types=[0] * len(prefix + answer))


@wrong("05.4", "kinds upside down")
def _(tokenizer, prompt, suffix, num_image_tokens):
    prefix = ids(tokenizer, prefix_text(tokenizer, prompt, num_image_tokens))
    answer = ids(tokenizer, suffix + tokenizer.eos_token)
    return row(prefix, answer, types=[1] * len(prefix) + [0] * len(answer))


@wrong("05.4", "labels shifted twice")
def _(tokenizer, prompt, suffix, num_image_tokens):
    prefix = ids(tokenizer, prefix_text(tokenizer, prompt, num_image_tokens))
    answer = ids(tokenizer, suffix + tokenizer.eos_token)
    return row(prefix, answer, labels=[-100] * (len(prefix) - 1) + answer + [-100])


@wrong("05.4", "space before the answer")
def _(tokenizer, prompt, suffix, num_image_tokens):
    prefix = ids(tokenizer, prefix_text(tokenizer, prompt, num_image_tokens))
    return row(prefix, ids(tokenizer, " " + suffix + tokenizer.eos_token))


@wrong("05.4", "newline in the answer")
def _(tokenizer, prompt, suffix, num_image_tokens):
    prefix = ids(tokenizer, "<image>" * num_image_tokens + tokenizer.bos_token + prompt)
    return row(prefix, ids(tokenizer, "\n" + suffix + tokenizer.eos_token))


@wrong("05.4", "one axis")
def _(tokenizer, prompt, suffix, num_image_tokens):
    prefix = ids(tokenizer, prefix_text(tokenizer, prompt, num_image_tokens))
    batch = row(prefix, ids(tokenizer, suffix + tokenizer.eos_token))
    return {name: value.squeeze(0) for name, value in batch.items()}


# --- 05.5 --------------------------------------------------------------------------------------------------------


def collate(rows, pad_id, mask_pad=0, type_pad=0, shift=0, labels_too=False):
    L = max(len(p) + len(s) for p, s in rows)
    out = {"input_ids": [], "attention_mask": [], "token_type_ids": [], "labels": []}
    for p, s in rows:
        gap = L - len(p) - len(s)
        out["input_ids"].append(p + s + [pad_id] * gap)
        out["attention_mask"].append([1] * len(p + s) + [mask_pad] * gap)
        out["token_type_ids"].append([0] * len(p) + [1] * len(s) + [type_pad] * gap)
        first = p if labels_too else [-100] * len(p)
        out["labels"].append((first + s + [-100] * gap + [-100] * shift)[shift:])
    return {name: torch.tensor(value) for name, value in out.items()}


right("05.5")(collate)


@right("05.5")
def _(rows, pad_id):
    ids = pad_sequence([torch.tensor(p + s) for p, s in rows], batch_first=True, padding_value=pad_id)
    place = torch.arange(ids.shape[1])[None]
    start = torch.tensor([len(p) for p, _ in rows])[:, None]
    end = torch.tensor([len(p) + len(s) for p, s in rows])[:, None]
    answer = (place >= start) & (place < end)
    return {
        "input_ids": ids,
        "attention_mask": (place < end).long(),
        "token_type_ids": answer.long(),
        "labels": torch.where(answer, ids, -100),
    }


wrong("05.5", "3 left")(lambda rows, pad_id: collate(rows, pad_id, 1, 1, 1))
wrong("05.5", "2 left")(lambda rows, pad_id: collate(rows, pad_id, 0, 1, 1))
wrong("05.5", "2 left")(lambda rows, pad_id: collate(rows, pad_id, 1, 1, 0))
wrong("05.5", "left: padding attended")(lambda rows, pad_id: collate(rows, pad_id, 1))
wrong("05.5", "left: the kinds")(lambda rows, pad_id: collate(rows, pad_id, 0, 1))
wrong("05.5", "left: labels shifted twice")(lambda rows, pad_id: collate(rows, pad_id, shift=1))
wrong("05.5", "loss on the prompt")(lambda rows, pad_id: collate(rows, pad_id, labels_too=True))


@wrong("05.5", "loss on padding")
def _(rows, pad_id):
    batch = collate(rows, pad_id)
    labels = batch["input_ids"].clone()
    for i, (p, _) in enumerate(rows):
        labels[i, : len(p)] = -100
    return {**batch, "labels": labels}


# --- 05.6 --------------------------------------------------------------------------------------------------------


def prompts(**changes):
    """The four, written with lists; `changes` by the first word of the name."""
    four = {
        "newline left out": lambda p, b, n, i: "".join([i] * n + [b, p]),
        "BOS left out": lambda p, b, n, i: "".join([i] * n + [p, "\n"]),
        "space after BOS": lambda p, b, n, i: "".join([i] * n + [b, " ", p, "\n"]),
        "picture after the prompt": lambda p, b, n, i: "".join([b, p] + [i] * n + ["\n"]),
    }
    names = {name.split()[0].lower(): name for name in four}
    return lambda: four | {names[word]: change for word, change in changes.items()}


right("05.6")(prompts())


@right("05.6")
def _():
    def whole(prompt, bos, count, image):
        return image * count + bos + prompt + "\n"

    return {
        "BOS left out": lambda prompt, bos, count, image: whole(prompt, "", count, image),
        "newline left out": lambda *a: whole(*a)[:-1],
        "picture after the prompt": lambda prompt, bos, count, image: bos + prompt + count * image + "\n",
        "space after BOS": lambda prompt, bos, count, image: whole(" " + prompt, bos, count, image),
    }


wrong("05.6", "not broken")(prompts(newline=lambda p, b, n, i: i * n + b + p + "\n"))
wrong("05.6", "another fault")(prompts(newline=lambda p, b, n, i: i * n + b + p + " "))
wrong("05.6", "another fault")(prompts(space=lambda p, b, n, i: i * n + " " + b + p + "\n"))
wrong("05.6", "another fault")(prompts(picture=lambda p, b, n, i: b + p + "\n" + i * n))
wrong("05.6", "another fault")(prompts(bos=lambda p, b, n, i: b + i * n + p + "\n"))
wrong("05.6", "another fault")(prompts(bos=lambda p, b, n, i: i * 3 + p + "\n"))
wrong("05.6", "no return")(prompts(bos=lambda p, b, n, i: None))
wrong("05.6", "type")(prompts(bos="<image>caption en"))
wrong("05.6", "structure")(lambda: {"BOS left out": prompts()()["BOS left out"]})
wrong("05.6", "structure")(lambda: list(prompts()().values()))

# --- Wrong ones that once passed ---------------------------------------------------------------------------------


@wrong("05.2", "id 0 not learned")
def _(input_ids, token_type_ids):
    labels = input_ids.clone()
    labels[token_type_ids == 0] = -100
    labels[input_ids == 0] = -100
    return labels


@wrong("05.5", "mask from the ids")
def _(rows, pad_id):
    length = max(len(a) + len(b) for a, b in rows)
    ids, types, labels = [], [], []
    for a, b in rows:
        rest = length - len(a) - len(b)
        ids.append(a + b + [pad_id] * rest)
        types.append([0] * len(a) + [1] * len(b) + [0] * rest)
        labels.append([-100] * len(a) + b + [-100] * rest)
    ids = torch.tensor(ids)
    return {
        "input_ids": ids,
        "attention_mask": (ids != pad_id).long(),
        "token_type_ids": torch.tensor(types),
        "labels": torch.tensor(labels),
    }


@wrong("05.3", "ids reversed")
def _(rows, pad_id, side):
    length = max(map(len, rows))
    ids = torch.tensor([row + [pad_id] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return (
        {"input_ids": ids, "attention_mask": mask}
        if side == "right"
        else {"input_ids": ids.flip(1), "attention_mask": mask.flip(1)}
    )


@wrong("05.3", "mask of the other side")
def _(rows, pad_id, side):
    length = max(map(len, rows))
    fill = lambda row: [pad_id] * (length - len(row))  # noqa: E731
    ids = torch.tensor([fill(row) + row if side == "left" else row + fill(row) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


@right("05.4")
def _(tokenizer, prompt, suffix, num_image_tokens):
    """With an attention mask, which a learner may well put in."""
    start = "<image>" * num_image_tokens + tokenizer.bos_token + prompt + "\n"
    prefix = tokenizer(start, add_special_tokens=False).input_ids
    answer = tokenizer(suffix + tokenizer.eos_token, add_special_tokens=False).input_ids
    ids = torch.tensor([prefix + answer])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.tensor([[0] * len(prefix) + [1] * len(answer)]),
        "labels": torch.tensor([[-100] * len(prefix) + answer]),
    }
