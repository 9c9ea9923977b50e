"""Held-out solutions of chapter 05."""

# ruff: noqa: E501
# fmt: off

from . import change, right, wrong

# --- 05.1 -------------------------------------------------------------------------------------------------------------

right("05.1", "plain", """
def read_rows():
    return {
        "A": "loss on padding",
        "B": "moved twice",
        "C": "as it should be",
        "D": "no EOS",
        "E": "loss on the prompt",
    }
""")
wrong("05.1", "A and E exchanged", """
def read_rows():
    return {
        "A": "loss on the prompt",
        "B": "moved twice",
        "C": "as it should be",
        "D": "no EOS",
        "E": "loss on padding",
    }
""", says="'loss on the prompt' and another are exchanged:")
wrong("05.1", "B and C exchanged", """
def read_rows():
    return {
        "A": "loss on padding",
        "B": "as it should be",
        "C": "moved twice",
        "D": "no EOS",
        "E": "loss on the prompt",
    }
""", says="'as it should be' and another are exchanged: labels")
wrong("05.1", "D left out", """
def read_rows():
    return {
        "A": "loss on padding",
        "B": "moved twice",
        "C": "as it should be",
        "E": "loss on the prompt",
    }
""", says="the rows are ['A', 'B', 'C', 'E'], expected ['A',")

# --- 05.2 -------------------------------------------------------------------------------------------------------------

right("05.2", "arithmetic", """
def make_labels(input_ids, token_type_ids):
    return input_ids * token_type_ids - 100 * (1 - token_type_ids)
""")
right("05.2", "clone and boolean index", """
def make_labels(input_ids, token_type_ids):
    labels = input_ids.clone()
    labels[token_type_ids != 1] = -100
    return labels
""")
right("05.2", "list comprehension", """
def make_labels(ids, kinds):
    return torch.tensor([[i if k else -100 for i, k in zip(a, b)] for a, b in zip(ids.tolist(), kinds.tolist())])
""")
L52 = right("05.2", "as most write it", """
def make_labels(input_ids, token_type_ids):
    return torch.where(token_type_ids == 1, input_ids, -100)
""")
change("05.2", "turned round", L52, ("== 1", "== 0"), says="the prompt has labels and the answer has none")
wrong("05.2", "in place", """
def make_labels(input_ids, token_type_ids):
    input_ids[token_type_ids == 0] = -100
    return input_ids
""", says="an in-place operation (+=, *=, a method ending in")
wrong("05.2", "moved to the left", """
def make_labels(input_ids, token_type_ids):
    labels = input_ids.masked_fill(token_type_ids == 0, -100)
    shifted = torch.full_like(labels, -100)
    shifted[:, :-1] = labels[:, 1:]
    return shifted
""", says="your labels are moved one place to the left: the")
wrong("05.2", "moved to the right", """
def make_labels(input_ids, token_type_ids):
    labels = torch.where(token_type_ids == 1, input_ids, -100)
    return torch.roll(labels, 1, dims=1)
""", says="your labels are moved one place to the right")
change("05.2", "0 for nothing", L52, ("-100", "0"), says="where there is nothing to learn stands 0, which is")
change("05.2", "-1 for nothing", L52, ("-100", "-1"), says="where there is nothing to learn stands -1: the loss")
change("05.2", "kinds as labels", L52, ("input_ids, -100", "token_type_ids, -100"), says="your labels are the kinds: where the answer is, its")
wrong("05.2", "EOS dropped", """
def make_labels(input_ids, token_type_ids):
    labels = torch.full_like(input_ids, -100)
    for b in range(len(input_ids)):
        places = token_type_ids[b].nonzero().flatten()
        for t in places[:-1]:
            labels[b, t] = input_ids[b, t]
    return labels
""", says="the answer's last token has no label: the model")
wrong("05.2", "first row's kinds for all", """
def make_labels(input_ids, token_type_ids):
    answer = token_type_ids[0].bool()
    labels = torch.full_like(input_ids, -100)
    labels[:, answer] = input_ids[:, answer]
    return labels
""", says="what sets row 0 apart? Either something is read")
wrong("05.2", "one flat row", """
def make_labels(input_ids, token_type_ids):
    return input_ids[token_type_ids == 1]
""", says="the answer is cut out: labels are as long as the")
wrong("05.2", "floats", """
def make_labels(input_ids, token_type_ids):
    labels = torch.full(input_ids.shape, -100.0)
    mask = token_type_ids.bool()
    labels[mask] = input_ids[mask].float()
    return labels
""", says="the result is float32, expected int64")
wrong("05.2", "everything is learned", """
def make_labels(input_ids, token_type_ids):
    labels = input_ids.clone()
    labels[input_ids == -100] = -100
    return labels
""", says="the prompt has labels, too: the model would learn")
wrong("05.2", "everything from the first answer token on", """
def make_labels(input_ids, token_type_ids):
    started = token_type_ids.cumsum(dim=1) > 0
    return input_ids.masked_fill(~started, -100)
""", says="padding behind the answer has labels, too: the")

# --- 05.3 -------------------------------------------------------------------------------------------------------------

right("05.3", "with lists", """
def pad(rows, pad_id, side):
    longest = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        missing = longest - len(row)
        if side == "left":
            ids.append([pad_id] * missing + row)
            mask.append([0] * missing + [1] * len(row))
        else:
            ids.append(row + [pad_id] * missing)
            mask.append([1] * len(row) + [0] * missing)
    return dict(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))
""")
right("05.3", "pad_sequence", """
from torch.nn.utils.rnn import pad_sequence
def pad(rows, pad_id, side):
    tensors = [torch.tensor(r, dtype=torch.long) for r in rows]
    ones = [torch.ones_like(t) for t in tensors]
    return {
        "input_ids": pad_sequence(tensors, batch_first=True, padding_value=pad_id, padding_side=side),
        "attention_mask": pad_sequence(ones, batch_first=True, padding_side=side),
    }
""")
right("05.3", "F.pad, mask from lengths", """
import torch.nn.functional as F
def pad(rows, pad_id, side):
    n = torch.tensor([len(r) for r in rows])
    L = int(n.max())
    place = torch.arange(L)
    mask = place < n[:, None] if side == "right" else place >= L - n[:, None]
    ids = torch.stack([F.pad(torch.tensor(r), (0, L - len(r)) if side == "right" else (L - len(r), 0), value=pad_id) for r in rows])
    return {"attention_mask": mask.long(), "input_ids": ids}
""")
P53 = right("05.3", "as most write it", """
def pad(rows, pad_id, side):
    L = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), L), pad_id)
    attention_mask = torch.zeros(len(rows), L, dtype=torch.int64)
    for i, row in enumerate(rows):
        start = 0 if side == "right" else L - len(row)
        input_ids[i, start : start + len(row)] = torch.tensor(row)
        attention_mask[i, start : start + len(row)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}
""")
change("05.3", "mask from the ids", P53, ('    return {"input_ids"', '''    attention_mask = (input_ids != pad_id).long()
    return {"input_ids"'''), says="your mask is 0 wherever the padding token's number")
change("05.3", "side ignored", P53, ('0 if side == "right" else L - len(row)', "0"), says="your rows are padded on the right, whatever `side`")
change("05.3", "sides exchanged", P53, ('side == "right"', 'side == "left"'), says="left and right are exchanged: the side is where the")
change("05.3", "shortest", P53, ("max(len", "min(len"), says="your table is as long as the shortest row: the")
change("05.3", "zeros for padding", P53, ("torch.full((len(rows), L), pad_id)", "torch.zeros(len(rows), L, dtype=torch.int64)"), says="your padding is 0: the number of the padding token")
change("05.3", "mask always on the left", P53, ("attention_mask[i, start : start + len(row)] = 1", "attention_mask[i, : len(row)] = 1"), says="the ids stand at the right places, and the mask is")
change("05.3", "bool mask", P53, ("dtype=torch.int64", "dtype=torch.bool"), says="your mask holds True and False: whole numbers, 1")
wrong("05.3", "rows grow", """
def pad(rows, pad_id, side):
    L = max(len(row) for row in rows)
    mask = []
    for row in rows:
        n = len(row)
        while len(row) < L:
            if side == "left":
                row.insert(0, pad_id)
            else:
                row.append(pad_id)
        mask.append([0] * (L - n) + [1] * n if side == "left" else [1] * n + [0] * (L - n))
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}
""", says="an in-place operation (+=, *=, a method ending in")
wrong("05.3", "mask turned round", """
def pad(rows, pad_id, side):
    L = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), L), pad_id)
    attention_mask = torch.ones(len(rows), L, dtype=torch.int64)
    for i, row in enumerate(rows):
        start = 0 if side == "right" else L - len(row)
        input_ids[i, start : start + len(row)] = torch.tensor(row)
        attention_mask[i, start : start + len(row)] = 0
    return {"input_ids": input_ids, "attention_mask": attention_mask}
""", says="your mask is 1 for padding: it is 1 for what may be")
change("05.3", "reversed on the left", P53, ("torch.tensor(row)", 'torch.tensor(row if side == "right" else row[::-1])'), says="each row holds the right ids in reverse: turning")
change("05.3", "one too long", P53, ("L = max(len(row) for row in rows)", "L = max(len(row) for row in rows) + 1"), says="your rows are one place longer than the longest")
change("05.3", "sixteen", P53, ("L = max(len(row) for row in rows)", "L = 16"), says="the length of your rows is fixed: it is that of the")
change("05.3", "a pair", P53, ('return {"input_ids": input_ids, "attention_mask": attention_mask}', "return input_ids, attention_mask"), says="the result is a tuple, expected a dict")
change("05.3", "called mask", P53, ('"attention_mask": attention_mask', '"mask": attention_mask'), says="keys ['input_ids', 'mask'], expected")
change("05.3", "ones everywhere", P53, ("start : start + len(row)] = 1", ":] = 1"), says="your mask is 1 everywhere: the model would look at")

# --- 05.4 -------------------------------------------------------------------------------------------------------------

right("05.4", "tensors joined", """
def encode(tokenizer, prompt, suffix, num_image_tokens):
    def ids(text):
        return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)
    p = ids(f"{'<image>' * num_image_tokens}{tokenizer.bos_token}{prompt}\\n")
    a = ids(f"{suffix}{tokenizer.eos_token}")
    kinds = torch.cat([torch.zeros_like(p), torch.ones_like(a)])
    row = torch.cat([p, a])
    return {k: v.unsqueeze(0) for k, v in dict(input_ids=row, token_type_ids=kinds, labels=row.where(kinds.bool(), torch.tensor(-100))).items()}
""")
right("05.4", "append token by token", """
def encode(tokenizer, prompt, suffix, num_image_tokens):
    out = {"input_ids": [], "token_type_ids": [], "labels": []}
    texts = ["".join(["<image>"] * num_image_tokens + [tokenizer.bos_token, prompt, "\\n"]), suffix + tokenizer.eos_token]
    for kind, text in enumerate(texts):
        for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
            out["input_ids"].append(token)
            out["token_type_ids"].append(kind)
            out["labels"].append(token if kind == 1 else -100)
    return {name: torch.tensor(values).reshape(1, -1) for name, values in out.items()}
""")
N54 = right("05.4", "as most write it", """
def encode(tokenizer, prompt, suffix, num_image_tokens):
    prefix = "<image>" * num_image_tokens + tokenizer.bos_token + prompt + "\\n"
    answer = suffix + tokenizer.eos_token
    prefix_ids = tokenizer(prefix, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return {
        "input_ids": torch.tensor([prefix_ids + answer_ids]),
        "token_type_ids": torch.tensor([[0] * len(prefix_ids) + [1] * len(answer_ids)]),
        "labels": torch.tensor([[-100] * len(prefix_ids) + answer_ids]),
    }
""")
change("05.4", "no newline", N54, (' + "\\n"', ""), says="the newline that ends the prompt is missing")
change("05.4", "no EOS", N54, ("answer = suffix + tokenizer.eos_token", "answer = suffix"), says="the answer does not end in EOS: the model would")
change("05.4", "newline belongs to the answer", N54, (""" + "\\n"
    answer =""", """
    answer = "\\n" +"""), says="the newline counts as part of the answer: it ends")
change("05.4", "BOS first", N54, ('"<image>" * num_image_tokens + tokenizer.bos_token', 'tokenizer.bos_token + "<image>" * num_image_tokens'), says="the picture comes before the text, and so before")
change("05.4", "no BOS", N54, (" + tokenizer.bos_token", ""), says="the token that begins the text is missing")
change("05.4", "BOS before the answer", N54, ("answer = suffix", "answer = tokenizer.bos_token + suffix"), says="a second BOS stands before the answer: a text")
change("05.4", "labels on the prompt", N54, ("[-100] * len(prefix_ids) + answer_ids", "prefix_ids + answer_ids"), says="the prompt has labels, too: the model would learn")
change("05.4", "labels moved", N54, ("[-100] * len(prefix_ids) + answer_ids", "[-100] * (len(prefix_ids) - 1) + answer_ids + [-100]"), says="your labels are moved one place to the left: the")
change("05.4", "no label for EOS", N54, ("[-100] * len(prefix_ids) + answer_ids", "[-100] * len(prefix_ids) + answer_ids[:-1] + [-100]"), says="EOS has no label: the model would never learn to")
change("05.4", "kinds exchanged", N54, ("[0] * len(prefix_ids) + [1] * len(answer_ids)", "[1] * len(prefix_ids) + [0] * len(answer_ids)"), says="the kinds are exchanged: 1 is the answer")
change("05.4", "image of kind 1", N54, ("[0] * len(prefix_ids) + [1] * len(answer_ids)", "[1] * num_image_tokens + [0] * (len(prefix_ids) - num_image_tokens) + [1] * len(answer_ids)"), says="the image tokens are of kind 1, as the answer is:")
wrong("05.4", "one dimension", """
def encode(tokenizer, prompt, suffix, num_image_tokens):
    prefix = "<image>" * num_image_tokens + tokenizer.bos_token + prompt + "\\n"
    answer = suffix + tokenizer.eos_token
    prefix_ids = tokenizer(prefix, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return {
        "input_ids": torch.tensor(prefix_ids + answer_ids),
        "token_type_ids": torch.tensor([0] * len(prefix_ids) + [1] * len(answer_ids)),
        "labels": torch.tensor([-100] * len(prefix_ids) + answer_ids),
    }
""", says="your tensors have one axis: a batch of one row has")
change("05.4", "64 image tokens", N54, ('"<image>" * num_image_tokens', '"<image>" * 64'), says="the number of image tokens is fixed: it is an")
change("05.4", "space after BOS", N54, ("bos_token + prompt", 'bos_token + " " + prompt'), says="a space stands between BOS and the prompt: nothing")
change("05.4", "special tokens added", N54, (""", add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(answer, add_special_tokens=False""", """)["input_ids"]
    answer_ids = tokenizer(answer"""), says="the tokenizer adds special tokens of its own to")
wrong("05.4", "turned into ids together", """
def encode(tokenizer, prompt, suffix, num_image_tokens):
    prefix = "<image>" * num_image_tokens + tokenizer.bos_token + prompt + "\\n"
    ids = tokenizer(prefix + suffix + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    n = len(tokenizer(prefix, add_special_tokens=False)["input_ids"])
    return {
        "input_ids": torch.tensor([ids]),
        "token_type_ids": torch.tensor([[0] * n + [1] * (len(ids) - n)]),
        "labels": torch.tensor([[-100] * n + ids[n:]]),
    }
""", says="prompt and answer are turned into ids as one text:")
change("05.4", "space before the answer", N54, ("answer = suffix", 'answer = " " + suffix'), says="there is a space before the answer: it becomes")
change("05.4", "prompt tidied", N54, ('prompt + "\\n"', 'prompt.strip().lower() + "\\n"'), says="the prompt or the answer is changed (stripped, in")
change("05.4", "labels 0", N54, ("[[-100] *", "[[0] *"), says="the labels of the prefix are 0, which is a token")
change("05.4", "backslash n", N54, ('prompt + "\\n"', 'prompt + "\\\\n"'), says="a backslash and an n stand where a newline belongs")
change("05.4", "answer first", N54, ("torch.tensor([prefix_ids + answer_ids])", "torch.tensor([answer_ids + prefix_ids])"), says="the ids of the answer come before those of the")

# --- 05.5 -------------------------------------------------------------------------------------------------------------

right("05.5", "lists", """
def collate(rows, pad_id):
    L = max(len(p + a) for p, a in rows)
    table = {"input_ids": [], "attention_mask": [], "token_type_ids": [], "labels": []}
    for p, a in rows:
        rest = L - len(p) - len(a)
        table["input_ids"].append([*p, *a, *[pad_id] * rest])
        table["attention_mask"].append([1] * (L - rest) + [0] * rest)
        table["token_type_ids"].append([0] * len(p) + [1] * len(a) + [0] * rest)
        table["labels"].append([-100] * len(p) + list(a) + [-100] * rest)
    return {k: torch.tensor(v) for k, v in table.items()}
""")
right("05.5", "from lengths by comparison", """
def collate(rows, pad_id):
    p = torch.tensor([len(a) for a, _ in rows])[:, None]
    e = torch.tensor([len(a) + len(b) for a, b in rows])[:, None]
    t = torch.arange(int(e.max()))[None]
    real, kind = (t < e).long(), ((t >= p) & (t < e)).long()
    ids = torch.full(real.shape, pad_id)
    ids[real.bool()] = torch.tensor([x for a, b in rows for x in a + b])
    return dict(input_ids=ids, attention_mask=real, token_type_ids=kind, labels=ids.masked_fill(kind == 0, -100))
""")
C55 = right("05.5", "as most write it", """
def collate(rows, pad_id):
    longest = max(len(prefix) + len(answer) for prefix, answer in rows)
    input_ids = torch.full((len(rows), longest), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    token_type_ids = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, -100)
    for i, (prefix, answer) in enumerate(rows):
        middle, end = len(prefix), len(prefix) + len(answer)
        input_ids[i, :end] = torch.tensor(prefix + answer)
        attention_mask[i, :end] = 1
        token_type_ids[i, middle:end] = 1
        labels[i, middle:end] = torch.tensor(answer)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids, "labels": labels}
""")
change("05.5", "attention mask kept", C55, ("attention_mask = torch.zeros_like", "attention_mask = torch.ones_like"), says="one of three faults is left: padding may still be")
wrong("05.5", "token types kept", """
def collate(rows, pad_id):
    longest = max(len(prefix) + len(answer) for prefix, answer in rows)
    input_ids = torch.full((len(rows), longest), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    token_type_ids = torch.ones_like(input_ids)
    labels = torch.full_like(input_ids, -100)
    for i, (prefix, answer) in enumerate(rows):
        middle, end = len(prefix), len(prefix) + len(answer)
        input_ids[i, :end] = torch.tensor(prefix + answer)
        attention_mask[i, :end] = 1
        token_type_ids[i, :middle] = 0
        labels[i, middle:end] = torch.tensor(answer)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids, "labels": labels}
""", says="one of three faults is left: padding still counts")
change("05.5", "labels kept", C55, ("labels[i, middle:end]", "labels[i, middle - 1 : end - 1]"), says="one of three faults is left: labels stand one place")
change("05.5", "labels on the prefix", C55, ("labels[i, middle:end] = torch.tensor(answer)", "labels[i, :end] = torch.tensor(prefix + answer)"), says="the prompt has labels now: the answer alone is to")
change("05.5", "labels of pad_id", C55, ("labels = torch.full_like(input_ids, -100)", "labels = torch.full_like(input_ids, pad_id)"), says="labels are pad_id where there is nothing to learn:")
change("05.5", "moved the other way", C55, ("labels[i, middle:end] = torch.tensor(answer)", "labels[i, middle + 1 : end] = torch.tensor(answer[:-1])"), says="your labels are moved one place to the right: they")
wrong("05.5", "prefix += answer", """
def collate(rows, pad_id):
    longest = max(len(prefix) + len(answer) for prefix, answer in rows)
    ids, masks, types, labels = [], [], [], []
    for prefix, answer in rows:
        n = len(prefix)
        prefix += answer
        padding = longest - len(prefix)
        ids.append(prefix + [pad_id] * padding)
        masks.append([1] * len(prefix) + [0] * padding)
        types.append([0] * n + [1] * len(answer) + [0] * padding)
        labels.append([-100] * n + answer + [-100] * padding)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(masks), "token_type_ids": torch.tensor(types), "labels": torch.tensor(labels)}
""", says="an in-place operation (+=, *=, a method ending in")
change("05.5", "mask from ids", C55, ("    return {", """    attention_mask = (input_ids != pad_id).long()
    return {"""), says="the mask is 0 wherever the padding token's number")
change("05.5", "answer hidden", C55, ("attention_mask[i, :end] = 1", "attention_mask[i, :middle] = 1"), says="the mask is 0 on the answer: it is 1 on every token")
change("05.5", "last label missing", C55, ("labels[i, middle:end] = torch.tensor(answer)", "labels[i, middle : end - 1] = torch.tensor(answer[:-1])"), says="the last token of each answer has no label: the")
change("05.5", "types exchanged", C55, ("token_type_ids[i, middle:end] = 1", "token_type_ids[i, :middle] = 1"), says="the kinds are exchanged: 1 is the answer, 0 all else")
wrong("05.5", "padded on the left", """
def collate(rows, pad_id):
    longest = max(len(p) + len(a) for p, a in rows)
    out = {"input_ids": [], "attention_mask": [], "token_type_ids": [], "labels": []}
    for p, a in rows:
        k = longest - len(p) - len(a)
        out["input_ids"].append([pad_id] * k + p + a)
        out["attention_mask"].append([0] * k + [1] * len(p + a))
        out["token_type_ids"].append([0] * (k + len(p)) + [1] * len(a))
        out["labels"].append([-100] * (k + len(p)) + a)
    return {name: torch.tensor(t) for name, t in out.items()}
""", says="your rows are padded on the left: here padding")

# --- 05.6 -------------------------------------------------------------------------------------------------------------

right("05.6", "named functions", """
def near_misses():
    def right(prompt, bos, count, image):
        return image * count + bos + prompt + "\\n"

    def without_newline(prompt, bos, count, image):
        return right(prompt, bos, count, image)[:-1]

    def without_bos(prompt, bos, count, image):
        return right(prompt, "", count, image)

    def with_space(prompt, bos, count, image):
        return right(" " + prompt, bos, count, image)

    def picture_late(prompt, bos, count, image):
        return "".join([bos, prompt] + [image] * count + ["\\n"])

    names = ["newline left out", "BOS left out", "space after BOS", "picture after the prompt"]
    return dict(zip(names, [without_newline, without_bos, with_space, picture_late]))
""")
M56 = right("05.6", "as most write it", """
def near_misses():
    return {
        "newline left out": lambda prompt, bos, count, image: f"{image * count}{bos}{prompt}",
        "BOS left out": lambda prompt, bos, count, image: f"{image * count}{prompt}\\n",
        "space after BOS": lambda prompt, bos, count, image: f"{image * count}{bos} {prompt}\\n",
        "picture after the prompt": lambda prompt, bos, count, image: f"{bos}{prompt}{image * count}\\n",
    }
""")
change("05.6", "picture after the newline", M56, ("{bos}{prompt}{image * count}\\n", "{bos}{prompt}\\n{image * count}"), says="the newline stays last: the image tokens belong between")
change("05.6", "space before BOS", M56, ("{bos} {prompt}", " {bos}{prompt}"), says="it belongs between BOS and the first word of the prompt")
change("05.6", "two things left out", M56, ('f"{image * count}{prompt}\\n"', 'f"{image * count}{prompt}"'), says="'BOS left out' gives")
change("05.6", "64 images", M56, ('"picture after the prompt": lambda prompt, bos, count, image: f"{bos}{prompt}{image * count}\\n"', '"picture after the prompt": lambda prompt, bos, count, image: f"{bos}{prompt}{image * 64}\\n"'), says="'picture after the prompt' gives")
change("05.6", "space for the newline", M56, ('f"{image * count}{bos}{prompt}",', 'f"{image * count}{bos}{prompt} ",'), says="'newline left out' gives")
change("05.6", "prompt before BOS", M56, ('"picture after the prompt": lambda prompt, bos, count, image: f"{bos}{prompt}{image * count}\\n"', '"picture after the prompt": lambda prompt, bos, count, image: f"{prompt}{bos}{image * count}\\n"'), says="'picture after the prompt' gives")
change("05.6", "the right one", M56, ('"BOS left out": lambda prompt, bos, count, image: f"{image * count}{prompt}\\n"', '"BOS left out": lambda prompt, bos, count, image: f"{image * count}{bos}{prompt}\\n"'), says="that is the whole prompt, with nothing wrong in it")
change("05.6", "a string", M56, ('lambda prompt, bos, count, image: f"{image * count}{bos}{prompt}"', 'f"<image>" * 64 + "<bos>caption en"'), says="'newline left out': a str, expected a function")
change("05.6", "two spaces", M56, ("{bos} {prompt}", "{bos}  {prompt}"), says="change this one thing, and leave the rest")
change("05.6", "space before the newline", M56, ("{image * count}{bos} {prompt}\\n", "{image * count}{bos}{prompt} \\n"), says="it belongs between BOS and the first word of the prompt")
