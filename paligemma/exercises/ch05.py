"""Chapter 05: how a prompt reaches the model."""

import copy
import functools
from collections.abc import Mapping

import torch
from tokenizers.processors import TemplateProcessing

from .exposing import matching_task
from .tasks import Case, Finding, Found, Mistake, Prediction, Task, faults_left, larger
from .watching import draw_kept, practice, trained, words_kept

# --- 05.1 --------------------------------------------------------------------------------------------------------

PIECES = ["<image>", "<image>", "<bos>", "caption", " en", "\\n", "a", " red", " star", "<eos>", "<pad>", "<pad>"]
ANSWER = range(6, 10)  # where the answer stands, EOS included
LEARNED = {
    "A": "loss on padding",
    "B": "moved twice",
    "C": "as it should be",
    "D": "no EOS",
    "E": "loss on the prompt",
}


def labels_of(name: str) -> list[str]:
    """What stands in the row of labels, place by place: "." where nothing is to be learned."""
    labels = [piece if place in ANSWER else "." for place, piece in enumerate(PIECES)]
    if name == "loss on padding":
        labels[10:] = PIECES[10:]
    if name == "moved twice":
        labels = [*labels[1:], "."]
    if name == "no EOS":
        labels[9] = "."
    if name == "loss on the prompt":
        labels[2:6] = PIECES[2:6]
    return labels


def show_rows() -> None:
    """Print one training row and, for panels A to E, the labels that go with it: "." where there is none."""
    width = max(map(len, PIECES)) + 1
    print("tokens " + "".join(piece.strip().rjust(width) for piece in PIECES))
    for panel, name in LEARNED.items():
        print(f"{panel}      " + "".join(label.strip().rjust(width) for label in labels_of(name)))


ROWS = matching_task(
    id="05.1",
    parts="rows",
    title="five rows of labels",
    points=2,
    minutes=8,
    level="easy",
    importance="core",
    truth=LEARNED,
    confusions={
        frozenset({"moved twice", "as it should be"}): "labels stand under their own token: the loss itself compares "
        "the prediction at a place with the label of the next",
        frozenset({"no EOS", "as it should be"}): "is the end of the answer something to be learned?",
        frozenset(
            {"loss on padding", "loss on the prompt"}
        ): "both have more labels than the answer has tokens: do they "
        "stand before it, under what the user types, or behind it?",
        frozenset(
            {"loss on padding", "as it should be"}
        ): "does anybody read what stands behind the end of the answer?",
        frozenset({"loss on the prompt", "as it should be"}): "is the model to write what stands before the answer?",
        frozenset({"no EOS", "moved twice"}): "in one of the two, every label of the answer stands under another token",
    },
    see='chapter 05, "Prefix, suffix, labels"; the hints of this task',
    reward=lambda solution: print("  all five train without an error, and the loss falls in each"),
)

# --- 05.2 --------------------------------------------------------------------------------------------------------


def make_labels(input_ids, token_type_ids):
    return torch.where(token_type_ids == 1, input_ids, torch.tensor(-100))


def label_cases(seed):
    k = larger(seed)
    ids = torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(seed))
    ids[0, 6], ids[1, 5], ids[1, 6] = 1, 1, 0  # EOS, and padding
    ids[0, 5] = 0  # an id like any other where the answer is: only the kinds say what is padding
    types = torch.tensor([[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1, 0]])
    yield Case((ids, types), sizes={"B": 2, "L": 7}, note="ids, and 1 where the answer is")
    ids = torch.randint(3, 90, (3, 5 + k), generator=torch.Generator().manual_seed(seed + 1))
    ids[:, 0], ids[:, -1] = 0, 1  # padded on the left
    yield Case((ids, torch.tensor([[0] * (3 + k) + [1, 1]] * 3)), sizes={"B": 3, "L": 5 + k}, note="padded on the left")


def show_labels(thing):
    ids, types = torch.tensor([[9, 9, 2, 7, 5, 41, 42, 1]]), torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1]])
    print(f"  ids     {ids[0].tolist()}\n  labels  {thing(ids, types)[0].tolist()}")


LABELS = Task(
    id="05.2",
    importance="core",
    title="labels: what is there to learn",
    points=2,
    minutes=6,
    level="easy",
    reference=make_labels,
    cases=label_cases,
    gradients=False,
    see='chapter 05, "Prefix, suffix, labels"; the hints of this task',
    reward=show_labels,
    mistakes=[
        Mistake("loss on the prompt", "the prompt has labels, too: the model would learn to guess image tokens and "
                "questions", lambda ids, types: ids.clone()),
        Mistake("loss on the prompt", "the prompt has labels, the padding has not: only the answer is to be learned",
                lambda ids, types: ids.masked_fill(ids == 0, -100)),
        Mistake("upside down", "the prompt has labels and the answer has none",
                lambda ids, types: ids.masked_fill(types == 1, -100)),
        Mistake("labels shifted twice", "your labels are moved one place to the left: the loss does that itself, and "
                "the model would learn to guess the token after next",
                lambda ids, types: torch.cat([make_labels(ids, types)[:, 1:],
                                              torch.full((len(ids), 1), -100)], dim=1)),
        Mistake("labels shifted", "your labels are moved one place to the right",
                [lambda ids, types: torch.cat([torch.full((len(ids), 1), -100),
                                               make_labels(ids, types)[:, :-1]], dim=1),
                 lambda ids, types: make_labels(ids, types).roll(1, dims=1)]),
        Mistake("loss on padding", "padding behind the answer has labels, too: the model would learn to write it",
                lambda ids, types: ids.masked_fill(types.cumsum(1) == 0, -100)),
        Mistake("kinds as labels", "your labels are the kinds: where the answer is, its ids are to stand",
                [lambda ids, types: types.masked_fill(types == 0, -100), lambda ids, types: types.clone()]),
        Mistake("id 0 not learned", "a token of the answer whose id is 0 has no label: the kinds say what is learned",
                lambda ids, types: torch.where((types == 1) & (ids != 0), ids, -100)),
        Mistake("0 instead of -100", "where there is nothing to learn stands 0, which is a token like any other (here "
                "the padding): the loss leaves out -100", lambda ids, types: ids * types),
        Mistake("-1 instead of -100", "where there is nothing to learn stands -1: the loss leaves out -100",
                lambda ids, types: ids.masked_fill(types == 0, -1)),
        Mistake("EOS not learned", "the answer's last token has no label: the model would never learn to stop",
                lambda ids, types: make_labels(ids, types).masked_fill(ids == 1, -100)),
        Mistake("first token not learned", "the answer's first token has no label",
                lambda ids, types: make_labels(ids, types * torch.cat([types[:, :1], types[:, :-1]], dim=1))),
        Mistake("answer cut out", "the answer is cut out: labels are as long as the ids, place by place",
                lambda ids, types: ids[types == 1]),
    ],
)  # fmt: skip

# --- 05.3 --------------------------------------------------------------------------------------------------------


def pad(rows, pad_id, side, fill=1, empty=0, opposite=False, shortest=False, length=None, cut=True):
    longest = (min if shortest else max)(len(row) for row in rows) if length is None else length
    side = {"left": "right", "right": "left"}[side] if opposite else side
    input_ids = torch.full((len(rows), longest), pad_id)
    attention_mask = torch.full((len(rows), longest), empty)
    for i, row in enumerate(rows):
        row = row[:longest] if cut else row
        place = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        input_ids[i, place] = torch.tensor(row)
        attention_mask[i, place] = fill
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def padded(**changes):
    return lambda rows, pad_id, side: pad(rows, pad_id, side, **changes)


def one_side(side):
    return lambda rows, pad_id, _: pad(rows, pad_id, side)


def mask_by_id(rows, pad_id, side):
    batch = pad(rows, pad_id, side)
    return {**batch, "attention_mask": (batch["input_ids"] != pad_id).long()}


def turned_round(rows, pad_id, side):
    """Padding on the left as padding on the right, seen in a mirror."""
    batch = pad(rows, pad_id, "right")
    return {name: value.flip(1) for name, value in batch.items()} if side == "left" else batch


def pad_cases(seed):
    rows = torch.randint(3, 90, (3, 7), generator=torch.Generator().manual_seed(seed)).tolist()
    rows = [rows[0][:5], rows[1], rows[2][:2]]
    for side in ("left", "right"):
        yield Case((rows, 0, side), sizes={"B": 3, "L": 7}, note=f"padded on the {side}")
    yield Case(([[5, 0, 6], [7]], 0, "right"), note="a row that holds the number of the padding token")
    yield Case(([[5, 6], [7, 8]], 0, "left"), note="rows of one length")
    yield Case(([[5, 6, 7], [8]], 99, "left"), note="padding token 99")


def show_padded(thing):
    for side in ("left", "right"):
        batch = thing([[9, 2, 7, 5], [9, 2, 5]], 0, side)
        print(f"  {side:5}  ids {batch['input_ids'].tolist()}  mask {batch['attention_mask'].tolist()}")


PAD = Task(
    id="05.3",
    importance="deepen",
    title="rows of unequal length",
    points=3,
    minutes=10,
    level="medium",
    reference=lambda rows, pad_id, side: pad(rows, pad_id, side),
    cases=pad_cases,
    gradients=False,
    see='chapter 05, "A batch"; the hints of this task',
    reward=show_padded,
    mistakes=[
        Mistake("padded on the right", "your rows are padded on the right, whatever `side` says", one_side("right")),
        Mistake("padded on the left", "your rows are padded on the left, whatever `side` says", one_side("left")),
        Mistake("sides exchanged", "left and right are exchanged: the side is where the padding goes",
                padded(opposite=True)),
        Mistake("mask upside down", "your mask is 1 for padding: it is 1 for what may be looked at",
                padded(fill=0, empty=1)),
        Mistake("padding attended", "your mask is 1 everywhere: the model would look at padding", padded(empty=1)),
        Mistake("mask from the ids", "your mask is 0 wherever the padding token's number stands, even inside a row",
                mask_by_id),
        Mistake("mask of the other side", "the ids stand at the right places, and the mask is that of padding on the "
                "other side",
                [lambda rows, pad_id, side: {**pad(rows, pad_id, side),
                                             "attention_mask": pad(rows, pad_id, "right")["attention_mask"]},
                 lambda rows, pad_id, side: {**pad(rows, pad_id, side),
                                             "attention_mask": pad(rows, pad_id, "left")["attention_mask"]}]),
        Mistake("ids reversed", "each row holds the right ids in reverse: turning the table round turns the "
                "tokens, too",
                turned_round),
        Mistake("cut to the shortest", "your rows are cut to the shortest one", padded(shortest=True)),
        Mistake("as long as the shortest", "your table is as long as the shortest row: the others do not fit",
                padded(shortest=True, cut=False)),
        Mistake("a fixed length", "the length of your rows is fixed: it is that of the longest row",
                [padded(length=length) for length in (8, 10, 12, 16, 20, 32, 64)]),
        Mistake("padded with 0", "your padding is 0: the number of the padding token is an argument",
                lambda rows, pad_id, side: pad(rows, 0, side)),
        Mistake("too long", "your rows are one place longer than the longest",
                lambda rows, pad_id, side: pad(rows, pad_id, side, length=1 + max(map(len, rows)))),
        Mistake("bool mask", "your mask holds True and False: whole numbers, 1 and 0, are asked for",
                lambda rows, pad_id, side: {name: value.bool() if name == "attention_mask" else value
                                            for name, value in pad(rows, pad_id, side).items()}),
        Mistake("float mask", "your mask holds floats: whole numbers are asked for",
                lambda rows, pad_id, side: {name: value.float() if name == "attention_mask" else value
                                            for name, value in pad(rows, pad_id, side).items()}),
        Mistake("no tensors", "your dict holds lists of lists: tensors are asked for",
                lambda rows, pad_id, side: {name: value.tolist() for name, value in pad(rows, pad_id, side).items()}),
        Mistake("mask forgotten", "your dict has the ids alone",
                lambda rows, pad_id, side: {"input_ids": pad(rows, pad_id, side)["input_ids"]}),
    ],
)  # fmt: skip

# --- 05.4 --------------------------------------------------------------------------------------------------------


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def encode(tokenizer, prompt, suffix, num_image_tokens, newline="\n", bos=None, eos=None, prefix_label=False,
           types=(0, 1), image_first=True, newline_type=0, shift=False, image="<image>"):  # fmt: skip
    bos = tokenizer.bos_token if bos is None else bos
    eos = tokenizer.eos_token if eos is None else eos
    pictures = image * num_image_tokens
    start = pictures + bos if image_first else bos + pictures
    prefix, answer = ids_of(tokenizer, start + prompt + newline), ids_of(tokenizer, suffix + eos)
    first = len(prefix) - newline_type
    kinds = [types[0]] * first + [types[1]] * (len(answer) + newline_type)
    labels = prefix + answer if prefix_label else [-100] * first + (prefix + answer)[first:]
    labels = labels[1:] + [-100] if shift else labels
    return {
        "input_ids": torch.tensor([prefix + answer]),
        "token_type_ids": torch.tensor([kinds]),
        "labels": torch.tensor([labels]),
    }


def encoded(**changes):
    return lambda tokenizer, prompt, suffix, count: encode(tokenizer, prompt, suffix, count, **changes)


@functools.cache
def particular_tokenizer():
    """As the published model's, it puts BOS in front unless it is told not to; a newline and "three" are one token."""
    tokenizer = copy.deepcopy(practice()[1].tokenizer)
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    tokenizer.add_tokens(["\nthree"])
    return tokenizer


def encode_cases(seed):
    tokenizer = practice()[1].tokenizer
    yield Case((tokenizer, "caption en", "a red circle", 4), note="4 image tokens")
    yield Case((tokenizer, "answer en how many things are there?", "three", 2 + seed))
    yield Case((tokenizer, "detect star", "<loc0010><loc0200><loc0300><loc0400> star", 3), note="an answer with a box")
    yield Case((tokenizer, " Caption EN ", " A star ", 3), note="capitals, and spaces at the ends of both texts")
    yield Case((particular_tokenizer(), "answer en how many?", "three", 3), note="a tokenizer that puts BOS in front "
               "unless it is told not to, and has one token for a newline with `three` behind it")  # fmt: skip


def flat_lists(function):
    return lambda *inputs: {name: value[0] for name, value in function(*inputs).items()}


def without_other_keys(function, *inputs):
    """A dict may hold more than the three tensors that are asked for: an attention mask, for instance."""
    row = function(*inputs)
    names = ("input_ids", "token_type_ids", "labels")
    return {name: row[name] for name in names} if isinstance(row, Mapping) and set(names) <= set(row) else row


def show_encoded(thing):
    tokenizer = practice()[1].tokenizer
    row = thing(tokenizer, "caption en", "a red circle", 3)
    for name, kind, label in zip(
        tokenizer.convert_ids_to_tokens(row["input_ids"][0].tolist()), row["token_type_ids"][0], row["labels"][0]
    ):
        print(f"  {name!r:12} {'answer' if kind else 'prefix'}  {'learned' if label != -100 else ''}".rstrip())


def changed_row(name, change):
    """The right row, with `change(values [L], number of prefix ids, number of image tokens)` done to one tensor."""

    def imitation(tokenizer, prompt, suffix, count):
        row = encode(tokenizer, prompt, suffix, count)
        values = row[name][0].clone()
        return {**row, name: change(values, int((row["token_type_ids"] == 0).sum()), count)[None]}

    return imitation


def last_not_learned(labels, prefix, count):
    labels[-1] = -100
    return labels


def pictures_learned(kinds, prefix, count):
    kinds[:count] = 1
    return kinds


def prefix_labelled(value):
    return changed_row("labels", lambda labels, prefix, count: labels.masked_fill(labels == -100, value))


def with_texts(prompt=str, suffix=str, count=int):
    """The right row of texts, or of a number of image tokens, that were changed before."""
    return lambda tokenizer, p, s, n: encode(tokenizer, prompt(p), suffix(s), count(n))


def with_bos(tokenizer, prompt, suffix, count):
    return encode(tokenizer, prompt, tokenizer.bos_token + suffix, count)


def special_tokens_added(tokenizer, prompt, suffix, count):
    prefix = tokenizer("<image>" * count + tokenizer.bos_token + prompt + "\n")["input_ids"]
    answer = tokenizer(suffix + tokenizer.eos_token)["input_ids"]
    return row_of(prefix, answer)


def ids_of_both(tokenizer, prompt, suffix, count):
    start = "<image>" * count + tokenizer.bos_token + prompt + "\n"
    together, first = ids_of(tokenizer, start + suffix + tokenizer.eos_token), len(ids_of(tokenizer, start))
    return row_of(together[:first], together[first:])


def answer_first(tokenizer, prompt, suffix, count):
    row = encode(tokenizer, prompt, suffix, count)
    first = int((row["token_type_ids"] == 0).sum())
    return {**row, "input_ids": row["input_ids"].roll(-first, dims=1)}


def row_of(prefix, answer):
    return {
        "input_ids": torch.tensor([prefix + answer]),
        "token_type_ids": torch.tensor([[0] * len(prefix) + [1] * len(answer)]),
        "labels": torch.tensor([[-100] * len(prefix) + answer]),
    }


def word_tokens(tokenizer, prompt, suffix, count):
    """BOS and EOS asked of the tokenizer's own rule, prompt and answer in one text."""
    row = encode(tokenizer, prompt, suffix, count)
    joint = ids_of(tokenizer, "<image>" * count + tokenizer.bos_token + prompt + "\n " + suffix + tokenizer.eos_token)
    prefix = int((row["token_type_ids"] == 0).sum())
    return {
        "input_ids": torch.tensor([joint]),
        "token_type_ids": torch.tensor([[0] * prefix + [1] * (len(joint) - prefix)]),
        "labels": torch.tensor([[-100] * prefix + joint[prefix:]]),
    }


ROW = Task(
    id="05.4",
    importance="core",
    title="one row to learn from",
    points=4,
    minutes=15,
    level="medium",
    reference=lambda tokenizer, prompt, suffix, count: encode(tokenizer, prompt, suffix, count),
    cases=encode_cases,
    use=without_other_keys,
    gradients=False,
    see='chapter 05, "Prefix, suffix, labels"; the hints of this task',
    reward=show_encoded,
    mistakes=[
        Mistake("EOS forgotten", "the answer does not end in EOS: the model would never learn to stop",
                encoded(eos="")),
        Mistake("newline forgotten", "the newline that ends the prompt is missing",
                [encoded(newline=""), lambda tokenizer, prompt, suffix, count: encode(
                    tokenizer, prompt.rstrip(), suffix, count, newline="")]),
        Mistake("BOS forgotten", "the token that begins the text is missing", encoded(bos="")),
        Mistake("BOS first", "the picture comes before the text, and so before what begins it",
                encoded(image_first=False)),
        Mistake("loss on the prompt", "the prompt has labels, too: the model would learn to guess the question",
                encoded(prefix_label=True)),
        Mistake("kinds upside down", "the kinds are exchanged: 1 is the answer", encoded(types=(1, 0))),
        Mistake("kinds all alike", "every token is of kind 0: the model could not tell where the answer begins, and "
                "would let it be seen", encoded(types=(0, 0))),
        Mistake("newline in the answer", "the newline counts as part of the answer: it ends the prompt",
                [encoded(newline_type=1), lambda tokenizer, prompt, suffix, count: encode(
                    tokenizer, prompt, "\n" + suffix, count, newline="")]),
        Mistake("labels shifted twice", "your labels are moved one place to the left: the loss does that itself",
                encoded(shift=True)),
        Mistake("space before the answer", "there is a space before the answer: it becomes another first token",
                word_tokens),
        Mistake("ids of both together", "prompt and answer are turned into ids as one text: where they meet, a token "
                "may take something of both. Each is turned into ids by itself", ids_of_both),
        Mistake("special tokens added", "the tokenizer adds special tokens of its own to yours: it is to be called "
                "with add_special_tokens=False, both times", special_tokens_added),
        Mistake("BOS before the answer", "a second BOS stands before the answer: a text begins once", with_bos),
        Mistake("space after BOS", "a space stands between BOS and the prompt: nothing belongs there",
                [with_texts(prompt=lambda text: " " + text)]),
        Mistake("backslash and n", "a backslash and an n stand where a newline belongs", encoded(newline="\\n")),
        Mistake("texts tidied", "the prompt or the answer is changed (stripped, in small letters) before it becomes "
                "ids: both are taken as they are",
                [with_texts(prompt=str.strip), with_texts(prompt=str.lower), with_texts(suffix=str.strip),
                 with_texts(prompt=lambda text: text.strip().lower()), with_texts(prompt=str.strip, suffix=str.strip)]),
        Mistake("a fixed number of image tokens", "the number of image tokens is fixed: it is an argument",
                [with_texts(count=lambda count, fixed=fixed: fixed) for fixed in (1, 64, 256)]),
        Mistake("EOS not learned", "EOS has no label: the model would never learn to stop",
                changed_row("labels", last_not_learned)),
        Mistake("picture of kind 1", "the image tokens are of kind 1, as the answer is: they belong to the prefix",
                changed_row("token_type_ids", pictures_learned)),
        Mistake("0 instead of -100", "the labels of the prefix are 0, which is a token like any other: the loss leaves "
                "out -100", prefix_labelled(0)),
        Mistake("-1 instead of -100", "the labels of the prefix are -1: the loss leaves out -100", prefix_labelled(-1)),
        Mistake("answer first", "the ids of the answer come before those of the prefix", answer_first),
        Mistake("image tokens forgotten", "there is no place for the picture", encoded(image="")),
        Mistake("one axis", "your tensors have one axis: a batch of one row has two", flat_lists(encoded())),
    ],
)  # fmt: skip

# --- 05.5 --------------------------------------------------------------------------------------------------------


def collate(rows, pad_id, padding_attended=False, padding_answers=False, shifted=False):
    longest = max(len(prefix) + len(suffix) for prefix, suffix in rows)
    input_ids = torch.full((len(rows), longest), pad_id)
    attention_mask = torch.full_like(input_ids, 1 if padding_attended else 0)
    token_type_ids = torch.full_like(input_ids, 1 if padding_answers else 0)
    labels = torch.full_like(input_ids, -100)
    for i, (prefix, suffix) in enumerate(rows):
        middle, end = len(prefix), len(prefix) + len(suffix)
        input_ids[i, :end] = torch.tensor(prefix + suffix)
        attention_mask[i, :end] = 1
        token_type_ids[i, :middle] = 0
        token_type_ids[i, middle:end] = 1
        labels[i, middle - shifted : end - shifted] = torch.tensor(suffix)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "token_type_ids": token_type_ids,
        "labels": labels,
    }


FAULTS = {  # what can be observed of each, and its name
    "padding_attended": ("padding may still be looked at", "left: padding attended"),
    "padding_answers": ("padding still counts as part of the answer", "left: the kinds"),
    "shifted": ("labels stand one place too far left; the loss moves them itself", "left: labels shifted twice"),
}


def labelled_prompt(rows, pad_id):
    batch = collate(rows, pad_id)
    return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def labelled_padding(rows, pad_id):
    batch = collate(rows, pad_id)
    return {**batch, "labels": batch["labels"].masked_fill(batch["attention_mask"] == 0, pad_id)}


def collated(name, change):
    """The right batch, with `change(a row of this tensor, where its answer begins, where it ends)` done to each row."""

    def imitation(rows, pad_id):
        batch = collate(rows, pad_id)
        for values, (prefix, suffix) in zip(batch[name], rows, strict=True):
            change(values, len(prefix), len(prefix) + len(suffix))
        return batch

    return imitation


def one_to_the_right(labels, middle, end):
    answer = labels[middle:end].clone()
    labels[middle] = -100
    labels[middle + 1 : end] = answer[:-1]


def answer_hidden(mask, middle, end):
    mask[middle:] = 0


def last_without_label(labels, middle, end):
    labels[end - 1] = -100


def kinds_exchanged(kinds, middle, end):
    kinds[:middle], kinds[middle:] = 1, 0


def other_side(rows, pad_id):
    """Padded on the left."""
    batch = collate(rows, pad_id)
    padding = (batch["attention_mask"] == 0).sum(1).tolist()
    return {name: torch.stack([row.roll(by) for row, by in zip(table, padding)]) for name, table in batch.items()}


def pad_as_label(rows, pad_id):
    batch = collate(rows, pad_id)
    return {**batch, "labels": batch["labels"].masked_fill(batch["token_type_ids"] == 0, pad_id)}


def collate_cases(seed):
    numbers = torch.randint(3, 90, (20,), generator=torch.Generator().manual_seed(seed)).tolist()
    rows = [(numbers[:4], numbers[4:6]), (numbers[6:9], [*numbers[9:14], 1]), (numbers[14:19], [1])]
    yield Case((rows, 0), sizes={"B": 3, "L": 9}, note="three rows of (prefix, suffix)")
    yield Case((rows[:2], 2), sizes={"B": 2, "L": 9}, note="padding token 2")
    yield Case(([([5, 0, 6], [7, 0, 1]), ([8, 9], [1])], 0), note="a row that holds the number of the padding token")


def show_batch(thing):
    from ..visualize import show_matrix  # here: matplotlib is not needed for anything else

    batch = thing([([9, 9, 2, 7, 5], [41, 1]), ([9, 9, 2, 5], [41, 42, 43, 1]), ([9, 9, 2, 5], [1])], 0)
    kinds = batch["attention_mask"] + batch["token_type_ids"] + (batch["labels"] != -100)
    print("  0 padding, 1 picture and prompt, 3 answer with a label:")
    show_matrix(kinds, title="what each place of the batch is")


BUGS = Task(
    id="05.5",
    importance="core",
    title="find the three faults",
    points=3,
    minutes=10,
    level="hard",
    reference=lambda rows, pad_id: collate(rows, pad_id),
    cases=collate_cases,
    gradients=False,
    see="the hints of this task: which tensor is wrong in which place?",
    reward=show_batch,
    mistakes=[
        *faults_left(FAULTS, lambda some: lambda rows, pad_id: collate(rows, pad_id, **dict.fromkeys(some, True))),
        Mistake("loss on the prompt", "the prompt has labels now: the answer alone is to be learned", labelled_prompt),
        Mistake(
            "mask from the ids",
            "the mask is 0 wherever the padding token's number stands, even inside a row",
            lambda rows, pad_id: {
                **collate(rows, pad_id),
                "attention_mask": (collate(rows, pad_id)["input_ids"] != pad_id).long(),
            },
        ),
        Mistake("loss on padding", "padding has labels now: the model would learn to write it", labelled_padding),
        Mistake(
            "pad_id instead of -100",
            "labels are pad_id where there is nothing to learn: that is a token like any "
            "other, and the loss leaves out -100",
            pad_as_label,
        ),
        Mistake(
            "labels shifted",
            "your labels are moved one place to the right: they stand at their own tokens",
            collated("labels", one_to_the_right),
        ),
        Mistake(
            "answer not attended",
            "the mask is 0 on the answer: it is 1 on every token that is not padding",
            collated("attention_mask", answer_hidden),
        ),
        Mistake(
            "EOS not learned",
            "the last token of each answer has no label: the model would never learn to stop",
            collated("labels", last_without_label),
        ),
        Mistake(
            "kinds upside down",
            "the kinds are exchanged: 1 is the answer, 0 all else",
            collated("token_type_ids", kinds_exchanged),
        ),
        Mistake(
            "padded on the left", "your rows are padded on the left: here padding comes behind the answer", other_side
        ),
    ],
)

# --- 05.6 --------------------------------------------------------------------------------------------------------


def near_misses() -> dict:
    return {
        "newline left out": lambda prompt, bos, count, image: f"{image * count}{bos}{prompt}",
        "BOS left out": lambda prompt, bos, count, image: f"{image * count}{prompt}\n",
        "space after BOS": lambda prompt, bos, count, image: f"{image * count}{bos} {prompt}\n",
        "picture after the prompt": lambda prompt, bos, count, image: f"{bos}{prompt}{image * count}\n",
    }


def write_prompts(solution, *inputs) -> dict[str, str]:
    given = solution()
    if not isinstance(given, dict) or set(given) != set(near_misses()):
        seen = f"the keys {sorted(map(str, given))}" if isinstance(given, dict) else f"a {type(given).__name__}"
        raise Found("structure", f"the result is {seen}, expected a dict with the keys {sorted(near_misses())}")
    for name, function in given.items():
        if not callable(function):
            raise Found("type", f"{name!r}: a {type(function).__name__}, expected a function")
    return {name: function(*inputs) for name, function in given.items()}


def near_miss_cases(seed):
    yield Case(("caption en", "<bos>", 3, "<image>"), note="three image tokens")
    yield Case(("detect red circle", "<s>", 4 + seed, "<img>"), note="other names for the tokens")


def which_prompt(case, got, want) -> Finding | None:
    prompt, bos, count, image = case.inputs
    whole = f"{image * count}{bos}{prompt}\n"
    for name in want:
        if got[name] == want[name]:
            continue
        if not isinstance(got[name], str):
            return None
        right = sum(got[other] == want[other] for other in want)
        seen = f"{right} of {len(want)} prompts are as they should be; {name!r} gives\n    {got[name]!r}"
        if got[name] == whole:
            return Finding("not broken", seen, "that is the whole prompt, with nothing wrong in it")
        same_length = len(got[name]) == len(want[name])
        if name == "space after BOS" and same_length and got[name].replace(" ", "") == want[name].replace(" ", ""):
            means = "the space stands in another place: it belongs between BOS and the first word of the prompt"
            return Finding("space in another place", seen, means)
        if got[name] == f"{bos}{prompt}\n{image * count}":
            means = "the newline stays last: the image tokens belong between the prompt and the newline"
            return Finding("newline not last", seen, means)
        return Finding("another fault", seen, "change this one thing, and leave the rest of the prompt as it is")
    return None


def show_costs(solution):
    """How much of 24 captions each of the learner's prompts leaves."""
    if trained() is None:
        print("The trained model is not in assets/tiny-paligemma, so nothing can be measured.")
        return
    print("With your prompts, captions of 24 that are as before, and words that are kept:")
    draw_kept({name: words_kept(add_image_tokens_to_prompt=part) for name, part in solution().items()})


NEAR_MISSES = Task(
    id="05.6",
    title="four prompts that are nearly right",
    points=3,
    minutes=10,
    level="easy",
    importance="core",
    reference=near_misses,
    cases=near_miss_cases,
    use=write_prompts,
    gradients=False,
    see='chapter 05, "The prompt as the model was trained on it" and "Break it"; the hints of this task',
    symptoms=[which_prompt],
    reward=show_costs,
    prediction=Prediction(
        "Captions of 24 that stay as they were:",
        truth=lambda: {
            name: words_kept(add_image_tokens_to_prompt=part)["captions"] for name, part in near_misses().items()
        },
        tempting={"newline left out": 24, "BOS left out": 0, "space after BOS": 24, "picture after the prompt": 0},
        why="In every example that this model has seen, the newline ended the prompt: without it, the model goes on "
        "with the prompt. BOS stood at the same place in every example, whatever the answer was, so this model never "
        "had to look at it. A space makes other tokens of the first word, ones that never "
        "began a prompt. And with the picture behind, everything stands at positions at which it was not "
        "in training.",
    ),
)

TASKS = [ROWS, LABELS, PAD, ROW, BUGS, NEAR_MISSES]
