"""Chapter 13: labels, the loss, the schedule, a larger grid, a training step, and teaching without forgetting."""

import copy as copies
import functools
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

from ..modeling_gemma import make_attn_mask
from ..modeling_gemma import suffix_loss as package_loss
from ..world.scenes import caption, draw, make_scene
from .exposing import matching_task
from .tasks import Case, Finding, Mistake, Prediction, Task, faults_left, larger, numbers
from .watching import trained


def batch_of(seed, *rows, vocabulary=11, pad=0):
    """A batch without pictures from rows of "q" (question), "a" (answer), "." (padding), "x" (padding of type 1)."""
    generator = torch.Generator().manual_seed(90 + seed)
    kinds = torch.tensor([[ord(kind) for kind in row] for row in rows])
    ids = torch.randint(1, vocabulary, kinds.shape, generator=generator)
    padding = (kinds == ord(".")) | (kinds == ord("x"))
    return {
        "input_ids": ids.masked_fill(padding, pad),
        "attention_mask": (~padding).long(),
        "token_type_ids": ((kinds == ord("a")) | (kinds == ord("x"))).long(),
        "labels": ids.masked_fill(kinds != ord("a"), -100),
    }


# --- 13.1 --------------------------------------------------------------------------------------------------------


def make_labels(input_ids, attention_mask, token_type_ids):
    return torch.where((token_type_ids == 1) & (attention_mask == 1), input_ids, -100)


def label_cases(seed):
    k = larger(seed)
    for rows, pad, note in (
        (("qqqaaa." + "." * k, "qqaa..." + "." * k), 0, "padded on the right"),
        (("..qqaa", "qqqqqa", "...qaa"), 0, "padded on the left"),
        (("qqqqaaxx", "qaaaaaax"), 0, "padding has type 1, like the answer"),
        (("qqaaax", "qaaxxx"), 5, "padding has the id 5 and type 1"),
    ):
        batch = batch_of(seed, *rows, pad=pad)
        inputs = tuple(batch[name] for name in ("input_ids", "attention_mask", "token_type_ids"))
        yield Case(inputs, sizes={"B": len(rows), "L": len(rows[0])}, note=note)


def first_missing(input_ids, attention_mask, token_type_ids):
    labels = make_labels(input_ids, attention_mask, token_type_ids)
    starts = (labels != -100) & (F.pad(labels, (1, 0), value=-100)[:, :-1] == -100)
    return labels.masked_fill(starts, -100)


def last_missing(input_ids, attention_mask, token_type_ids):
    labels = make_labels(input_ids, attention_mask, token_type_ids)
    ends = (labels != -100) & (F.pad(labels, (0, 1), value=-100)[:, 1:] == -100)
    return labels.masked_fill(ends, -100)


def where_it_differs(case, got, want) -> Finding | None:
    """Which token has a wrong label: one of the prompt, of the answer or padding."""
    if not isinstance(got, torch.Tensor) or got.shape != want.shape:
        return None
    ids, mask, types = case.inputs
    row, place = (got != want).nonzero()[0].tolist()
    kind = (
        "padding" if not mask[row, place] else "a token of the answer" if types[row, place] else "a token of the prompt"
    )
    return Finding(
        "values",
        f"row {row}, place {place}: yours {int(got[row, place])}, expected {int(want[row, place])}; there is {kind} "
        f"(id {int(ids[row, place])}, type {int(types[row, place])}, mask {int(mask[row, place])})",
        "a token of the answer has its own id as label, in its own place; all others have -100",
    )


def show_labels(thing):
    batch = batch_of(0, "qqqaa..", "qaaaaa.")
    labels = thing(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
    for ids, row in zip(batch["input_ids"].tolist(), labels.tolist(), strict=True):
        print("  tokens " + "".join(f"{number:6}" for number in ids))
        print("  labels " + "".join(f"{number:6}" for number in row))


LABELS = Task(
    id="13.1",
    title="which tokens have labels",
    points=1,
    minutes=5,
    level="easy",
    importance="core",
    symptoms=[where_it_differs],
    prediction=Prediction(
        "A row has 64 image tokens, 4 of prompt and 3 of answer, the last of them <eos>. How many labels are not -100?",
        truth=3,
        tempting=2,
        why="Each token of the answer is guessed by the token before it: the first by the last of the prompt.",
    ),
    reference=make_labels,
    cases=label_cases,
    gradients=False,
    see='chapter 13, "Which guesses count?"; the hints of this task',
    reward=show_labels,
    mistakes=[
        Mistake(
            "loss on the prompt",
            "your labels keep the tokens of the prompt: the model would learn to guess what it is always given",
            lambda ids, mask, types: ids.masked_fill(mask == 0, -100),
        ),
        Mistake(
            "loss on everything",
            "every token has its own id as a label: prompt and padding are to be left out",
            lambda ids, mask, types: ids.clone(),
        ),
        Mistake(
            "padding counted",
            "padding has labels where its type is 1: its type says nothing, the attention mask says that it is padding",
            lambda ids, mask, types: ids.masked_fill(types == 0, -100),
        ),
        Mistake(
            "padding guessed from its id",
            "padding was looked for by its id, and the id may be another one: the attention mask says where it is",
            lambda ids, mask, types: ids.masked_fill((types == 0) | (ids == 0), -100),
        ),
        Mistake(
            "shifted already",
            "your labels stand one place further left than their tokens. The shift is the loss's business: done here, "
            "too, it is done twice",
            lambda ids, mask, types: F.pad(make_labels(ids, mask, types)[:, 1:], (0, 1), value=-100),
        ),
        Mistake(
            "shifted already",
            "your labels stand one place further left than their tokens, and the first has moved to the end",
            lambda ids, mask, types: make_labels(ids, mask, types).roll(-1, dims=1),
        ),
        Mistake(
            "shifted already",
            "your labels stand one place further right than their tokens: a label stands in the place of its token",
            lambda ids, mask, types: F.pad(make_labels(ids, mask, types)[:, :-1], (1, 0), value=-100),
        ),
        Mistake(
            "0 instead of -100",
            "tokens that do not count have label 0: that is a token like any other, and would be learned",
            lambda ids, mask, types: ids * types * mask,
        ),
        Mistake(
            "-1 instead of -100",
            "tokens that do not count have label -1: the loss skips -100 and nothing else",
            lambda ids, mask, types: make_labels(ids, mask, types).where((types == 1) & (mask == 1), -1),
        ),
        Mistake(
            "prompt instead of answer",
            "the prompt has labels and the answer has none: the types are read the other way round",
            lambda ids, mask, types: ids.masked_fill((types == 1) | (mask == 0), -100),
        ),
        Mistake(
            "first token of the answer missing",
            "the first token of each answer has no label: the last token of the prompt is there to guess it",
            first_missing,
        ),
        Mistake(
            "end of the answer missing",
            "the last token of each answer has no label. It is <eos>: without it the model never learns to stop",
            last_missing,
        ),
        Mistake(
            "mask instead of labels",
            "the result says which tokens count, with 1 and 0: a label is the token's id",
            lambda ids, mask, types: types * mask,
        ),
    ],
)

# --- 13.2 --------------------------------------------------------------------------------------------------------


def token_losses(logits, labels):
    """(-log p of each label [B, L], which of them count), without any shift; by the formula."""
    counts = labels != -100
    log_p = logits.float() - logits.float().logsumexp(dim=-1, keepdim=True)
    return -log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * counts, counts


def mean_over_tokens(losses, counts):
    return losses.sum() / counts.sum()


def mean_over_examples(losses, counts):
    return (losses.sum(1) / counts.sum(1)).mean()


def shift(logits, labels):
    return logits[:, :-1], labels[:, 1:]


def losing(shift=shift, tokens=mean_over_tokens, examples=mean_over_examples, finish=lambda loss, logits: loss):
    """The loss, with another shift or other means."""

    def suffix_loss(logits, labels, average):
        losses, counts = token_losses(*shift(logits, labels))
        if not counts.any():
            raise ValueError("no token has a label")
        return finish({"tokens": tokens, "examples": examples}[average](losses, counts), logits)

    return suffix_loss


def half_precision(logits, labels, average):
    logits, labels = shift(logits, labels)
    losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return (mean_over_tokens if average == "tokens" else mean_over_examples)(losses, labels != -100)


def in_half(late=False):
    """The softmax in the dtype of the logits; float32 comes at the end, or for the losses."""

    def suffix_loss(logits, labels, average):
        logits, labels = shift(logits, labels)
        counts = labels != -100
        losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        losses = losses if late else losses.float()
        return (mean_over_tokens if average == "tokens" else mean_over_examples)(losses, counts).float()

    return suffix_loss


def computing(losses_of):
    """The loss, with another way to the losses of single guesses: `losses_of(logits, labels)`, after the shift."""

    def suffix_loss(logits, labels, average):
        logits, labels = shift(logits.float(), labels)
        counts = labels != -100
        if not counts.any():
            raise ValueError("no token has a label")
        return (mean_over_tokens if average == "tokens" else mean_over_examples)(losses_of(logits, labels), counts)

    return suffix_loss


def entropy(logits, labels):
    """[B, V, L], [B, L] -> [B, L]"""
    return F.cross_entropy(logits, labels, reduction="none")


def log_of_softmax(logits, labels):
    picked = -logits.softmax(-1).log().gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return torch.where(labels == -100, 0.0, picked)


def counted_too_early(logits, labels, average):
    """The labels are counted before the first is cut off."""
    counts = (labels != -100).sum(1)
    if not counts.any():
        raise ValueError("no token has a label")
    losses, _ = token_losses(*shift(logits, labels))
    return losses.sum() / counts.sum() if average == "tokens" else (losses.sum(1) / counts).mean()


def loss_cases(seed):
    k = larger(seed)
    for average in ("tokens", "examples"):
        labels = batch_of(seed, "qqaaaa", "qqqqa.", vocabulary=7)["labels"]
        yield Case((numbers(seed, 2, 6, 7, scale=2.0), labels, average), sizes={"B": 2, "L": 6, "V": 7})
        labels = batch_of(seed, ".qqqa", "qqaaa", "..qaa", vocabulary=4)["labels"]
        logits = numbers(seed, 3, 5, 4, scale=30.0)
        logits[2, 3, labels[2, 4]] = logits[2, 3].max() - 150.0  # a probability that float32 rounds to 0
        yield Case(
            (logits, labels, average),
            sizes={"B": 3, "L": 5, "V": 4},
            note="logits of about 30, a token that is found all but impossible, padded on the left",
        )
        labels = batch_of(seed, "qaaaaa." + "." * k, "qqqaa.." + "." * k, vocabulary=9)["labels"]
        yield Case(
            (numbers(seed, 2, 7 + k, 9, dtype=torch.bfloat16), labels, average), sizes={"B": 2, "L": 7 + k, "V": 9}
        )
        labels = batch_of(seed, "aaaaaa", "qqqaaa", vocabulary=8)["labels"]
        yield Case((numbers(seed, 2, 6, 8), labels, average), sizes={"B": 2, "L": 6, "V": 8},
                   note="the first token has a label, and nobody guesses it")  # fmt: skip


def refuses_nothing(thing):
    """Without any label the mean is of no numbers: NaN, and one step with it ruins every weight."""
    for average in ("tokens", "examples"):
        try:
            loss = thing(numbers(0, 2, 5, 7), torch.full((2, 5), -100), average)
        except ValueError:
            continue
        except Exception as error:
            return Finding(
                "another error",
                f'labels that are all -100 ("{average}") raised {type(error).__name__}: {error}',
                "the caller is to get a ValueError that says that no token has a label",
            )
        return Finding(
            "nothing to learn from",
            f'labels that are all -100 ("{average}") gave {float(loss)} without an error',
            "a mean of no numbers is NaN, and one step with it makes every weight NaN: look before you divide",
        )
    return None


def show_averages(thing):
    labels = batch_of(0, "qaaaaaaaaaaaaa", "qqqqqqqqqqqaa.", vocabulary=30)["labels"]
    logits = 4.0 * F.one_hot(labels.clamp(min=0), 30).roll(-1, dims=1).float()
    logits[1] = 0.0  # the long answer is known, the short one is not
    for average in ("tokens", "examples"):
        loss = thing(logits, labels, average)
        print(f"  13 tokens known, 2 unknown: mean over {average:8} {float(loss):.2f}")


LOSS = Task(
    id="13.2",
    title="the loss of the answer, averaged in two ways",
    points=3,
    minutes=12,
    level="medium",
    importance="core",
    prediction=Prediction(
        "A batch holds a long and a short answer. In which average does a token of the short one weigh more?",
        truth="examples",
        tempting="tokens",
        why="Over examples each answer weighs the same, so a token of a short one has a larger share of it.",
        options=("tokens", "examples"),
    ),
    reference=losing(),
    cases=loss_cases,
    see='chapter 13, "The loss" and "The two averages"; the hints of this task',
    extra=[refuses_nothing],
    reward=show_averages,
    mistakes=[
        Mistake(
            "not shifted",
            "the guess at place t is compared with the token at t: that token has been fed in already",
            losing(shift=lambda logits, labels: (logits, labels)),
        ),
        Mistake(
            "labels shifted twice",
            "the guess at place t is compared with the token at t + 2",
            losing(shift=lambda logits, labels: (logits[:, :-2], labels[:, 2:])),
        ),
        Mistake(
            "shifted the wrong way",
            "the guess at place t is compared with the token at t - 1: logits and labels are swapped in the shift",
            losing(shift=lambda logits, labels: (logits[:, 1:], labels[:, :-1])),
        ),
        Mistake(
            "averages swapped",
            "the mean over tokens is where that over examples is asked for, and the other way round",
            losing(tokens=mean_over_examples, examples=mean_over_tokens),
        ),
        Mistake(
            "always over tokens",
            '"examples" gives the mean over all tokens of the batch: first each row needs a mean of its own',
            losing(examples=mean_over_tokens),
        ),
        Mistake(
            "per-example mean",
            '"tokens" gives the mean of the rows\' means: then a token of a short answer weighs more',
            losing(tokens=mean_over_examples),
        ),
        Mistake(
            "padding counted",
            "the sum is divided by the number of all places, those with the label -100 too: the more padding, the "
            "smaller your loss",
            losing(tokens=lambda losses, counts: losses.mean(), examples=lambda losses, counts: losses.mean()),
        ),
        Mistake(
            "padding counted",
            "for the examples the sum of a row is divided by its length with prompt and padding",
            losing(examples=lambda losses, counts: losses.mean()),
        ),
        Mistake(
            "padding counted",
            "for the tokens the sum is divided by the number of all places, those with the label -100 too",
            losing(tokens=lambda losses, counts: losses.mean()),
        ),
        Mistake(
            "sum instead of mean",
            "the losses are added up and not divided",
            losing(tokens=lambda losses, counts: losses.sum(), examples=lambda losses, counts: losses.sum()),
        ),
        Mistake(
            "sum instead of mean",
            "for the examples each row's losses are added up before the mean over rows: a long answer weighs more",
            losing(examples=lambda losses, counts: losses.sum(1).mean()),
        ),
        Mistake(
            "sign",
            "the loss is negative: a logarithm of a probability is below zero, the loss is to be above",
            losing(finish=lambda loss, logits: -loss),
        ),
        Mistake(
            "computed in half precision",
            "with bfloat16 logits the loss is bfloat16: with 8 bits, small improvements are rounded away",
            half_precision,
        ),
        Mistake(
            "computed in half precision",
            "with bfloat16 logits the loss is cast to bfloat16 at the end: it is to be float32",
            losing(finish=lambda loss, logits: loss.to(logits.dtype)),
        ),
        Mistake(
            "sum of the rows",
            "the means of the rows are added up: their mean is wanted",
            losing(examples=lambda losses, counts: (losses.sum(1) / counts.sum(1)).sum()),
        ),
        Mistake(
            "computed in half precision",
            "the softmax is computed in the logits' bfloat16 and made float32 too late",
            [in_half(), in_half(late=True)],
        ),
        Mistake(
            "logarithm of the softmax",
            "the logarithm is taken of a probability that has become 0: log_softmax, or "
            "cross_entropy, works with the logits",
            computing(log_of_softmax),
        ),
        Mistake(
            "counted before the cut",
            "the labels are counted before the first is cut off: the first token is guessed "
            "by nobody, and its label counts for nothing",
            counted_too_early,
        ),
        Mistake(
            "axes mixed up",
            "the vocabulary was brought to the second axis by reshape or view, which deal numbers "
            "out anew: a transpose moves an axis",
            computing(lambda logits, labels: entropy(logits.reshape(len(logits), logits.shape[2], -1), labels)),
        ),
        Mistake(
            "softmax twice",
            "the softmax is taken twice: cross_entropy wants logits, not probabilities",
            computing(lambda logits, labels: entropy(logits.softmax(-1).transpose(1, 2), labels)),
        ),
        Mistake(
            "skipped ones counted",
            "where the label is -100 the loss of token 0 is added: it is to be 0 there",
            computing(lambda logits, labels: entropy(logits.transpose(1, 2), labels.clamp(min=0))),
        ),
    ],
)

# --- 13.3 --------------------------------------------------------------------------------------------------------

# 24 steps of Korean captions for the trained model, AdamW, batches of 5: the loss of a step as the run itself
# computes it, and at the end the loss on other pictures as it should be computed.
STEPS = (0, 3, 6, 9, 12, 15, 18, 21, 23)
LOGS = {
    "A": ((16.23, 9.98, 8.34, 4.91, 4.41, 3.78, 2.99, 3.16, 2.77), 4.74),
    "B": ((16.38, 18.79, 17.13, 18.30, 15.48, 15.51, 19.58, 15.02, 15.00), 17.15),
    "C": ((16.38, 10.10, 10.64, 6.99, 4.79, 4.16, 3.35, 3.44, 3.07), 3.06),
    "D": ((15.35, 7.28, 5.13, 3.78, 2.66, 1.72, 1.10, 0.91, 0.78), 4.73),
}
CAUSES = {
    "A": "the answer is visible",
    "B": "rate a hundred times too small",
    "C": "all is right",
    "D": "loss on everything",
}


def show_logs() -> None:
    """The four curves, each with its loss on other pictures."""
    from matplotlib import pyplot as plt  # here: matplotlib is not needed for anything else

    _, axes = plt.subplots(1, 4, figsize=(11, 2.4), sharey=True)
    for ax, (name, (losses, other)) in zip(axes, LOGS.items(), strict=True):
        ax.plot(STEPS, losses, marker=".", color="#1f4e79")
        ax.axhline(other, color="#b35900", linestyle="--")
        ax.set(title=f"{name}: {losses[-1]:.2f}, others {other:.2f}", xlabel="step", ylim=(0, 21))
    axes[0].set_ylabel("loss")
    print("  line: loss of the step, as the run computes it; dashed: loss of the answers to other pictures, at the end")


def show_causes(answer):
    for name, cause in answer().items():
        losses, other = LOGS[name]
        print(f"  {name}  {cause:31} last step {losses[-1]:5.2f}, other pictures {other:5.2f}")


READ = matching_task(
    "13.3",
    parts="logs",
    truth=CAUSES,
    confusions={
        frozenset(
            {"the answer is visible", "all is right"}
        ): "both fall to about 3; on other pictures, with the answer "
        "out of sight, one of them is much worse than in training",
        frozenset({"the answer is visible", "loss on everything"}): "prompt and picture are the same in every example "
        "and soon learned: which loss falls below 1, and begins lower?",
        frozenset(
            {"all is right", "loss on everything"}
        ): "a loss that is far lower in training than on other pictures counts something that is easy",
        frozenset({"all is right", "rate a hundred times too small"}): "a run that learns nothing stays where it began",
    },
    title="read four training logs",
    points=2,
    minutes=8,
    level="medium",
    importance="core",
    see='chapter 13, "Break it" and "Stage 3: a new task, live"; the hints of this task',
    reward=show_causes,
)

# --- 13.4 --------------------------------------------------------------------------------------------------------


def hat(old, new):
    """Weights [new, old] by which `new` places between the ends read `old` ones: each place counts with its middle."""
    at = ((torch.arange(new) + 0.5) * old / new - 0.5).clamp(0, old - 1)  # [new], where it lies among the old ones
    return (1 - (at[:, None] - torch.arange(old)).abs()).clamp(min=0)


def interpolate_positions(table, old, new):
    grid = table.reshape(*old, -1)
    return torch.einsum("yr,xc,rcd->yxd", hat(old[0], new[0]), hat(old[1], new[1]), grid).flatten(0, 1)


def interpolating(mode="bilinear", corners=False, grid=None, back=None):
    """By torch, with another mode, another way into the picture or another way back."""

    def function(table, old, new):
        picture = grid(table, old) if grid else table.T.reshape(1, -1, *old)
        corner = {} if mode == "nearest" else {"align_corners": corners}
        picture = F.interpolate(picture, size=new, mode=mode, **corner)
        return back(picture) if back else picture[0].flatten(1).T.contiguous()

    return function


def position_cases(seed):
    k = larger(seed)
    for old, new, D in (((3, 4), (5, 7), 6), ((2, 2), (5 + 3 * k, 5), 3 + 7 * k), ((4, 3), (8, 9), 5)):
        table = numbers(seed, old[0] * old[1], D)
        sizes = {"N": old[0] * old[1], "D": D, "new places": new[0] * new[1]}
        yield Case((table, old, new), sizes=sizes, note=f"from {old[0]} x {old[1]} to {new[0]} x {new[1]} places")


def padded_rows(fill):
    def function(table, old, new):
        missing = new[0] * new[1] - len(table)
        return torch.cat([table, fill(table, missing)])

    return function


def along_the_row(table, old, new):
    return F.interpolate(table.T[None], size=new[0] * new[1], mode="linear", align_corners=False)[0].T.contiguous()


def show_positions(thing):
    """The trained model's position embeddings on a grid of 12 x 12."""
    if trained() is None:
        print("The trained model is not in assets/tiny-paligemma, so there are no positions to see.")
        return
    from ..visualize import show_similarity_maps

    table = trained()[0].vision_tower.vision_model.embeddings.position_embedding.weight.detach()
    show_similarity_maps(thing(table, (8, 8), (12, 12)), (12, 12), [0, 42, 103], title="your 144 positions")
    print("  Each map: how much one place is like all others. Neighbours are still neighbours.")


def square_of(rounding):
    """The old grid is made a square, and what is left over goes into the channels."""

    def function(table, old, new):
        side = rounding(len(table) ** 0.5)
        grid = table.view(1, side, side, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=tuple(new), mode="bilinear", align_corners=False)
        return grid.permute(0, 2, 3, 1).reshape(new[0] * new[1], -1)

    return function


POSITIONS = Task(
    id="13.4",
    title="positions for a larger picture",
    points=3,
    minutes=12,
    level="medium",
    importance="deepen",
    reference=interpolate_positions,
    cases=position_cases,
    see='chapter 13, "Stage 2: higher resolution"; the hints of this task',
    reward=show_positions,
    mistakes=[
        Mistake(
            "places and channels mixed",
            "the table was viewed as D channels of a grid without moving an axis: `view` deals out the numbers of one "
            "embedding to the places of a grid",
            interpolating(grid=lambda table, old: table.reshape(1, -1, *old)),
        ),
        Mistake(
            "way back without moving the axis",
            "the larger picture was viewed as a table without moving its channels to the end",
            interpolating(back=lambda picture: picture.reshape(-1, picture.shape[1])),
        ),
        Mistake(
            "places and channels mixed",
            "neither before nor after were the channels moved: `view` deals out the numbers of one embedding to places",
            interpolating(
                grid=lambda table, old: table.reshape(1, -1, *old),
                back=lambda picture: picture.reshape(-1, picture.shape[1]),
            ),
        ),
        Mistake(
            "grid transposed",
            "rows and columns of the old grid are swapped: the table runs along the first row, then the second",
            interpolating(grid=lambda table, old: table.T.reshape(1, -1, old[1], old[0])),
        ),
        Mistake(
            "grid transposed",
            "the old places were read column by column: the table runs along the first row, then the second",
            interpolating(grid=lambda table, old: table.T.reshape(1, -1, old[1], old[0]).mT),
        ),
        Mistake(
            "grid transposed",
            "the new places are listed column by column: the table runs along the first row, then the second",
            interpolating(back=lambda picture: picture[0].mT.flatten(1).T),
        ),
        Mistake(
            "grid transposed",
            "the new grid has rows and columns swapped",
            lambda table, old, new: interpolate_positions(table, old, new[::-1]),
        ),
        Mistake(
            "corners aligned",
            "the corners of the two grids were laid on each other (align_corners=True). Places are the middles of "
            "patches, and the edges of the pictures are to fit",
            interpolating(corners=True),
        ),
        Mistake(
            "nearest",
            "each new place has the embedding of one old place: neighbours are repeated, not interpolated",
            interpolating("nearest"),
        ),
        Mistake("bicubic", "your numbers are those of bicubic interpolation; bilinear is asked for",
                interpolating("bicubic")),
        Mistake(
            "one axis",
            "the places were interpolated in one line, as if the end of a row were beside the beginning of the next",
            along_the_row,
        ),
        Mistake(
            "old rows first",
            "the old embeddings stand in the first rows and others follow: in a larger grid place 5 lies elsewhere",
            padded_rows(lambda table, missing: torch.zeros(missing, table.shape[1])),
        ),
        Mistake(
            "old rows first",
            "the old embeddings stand in the first rows and are repeated: in a larger grid place 5 lies elsewhere",
            padded_rows(lambda table, missing: table.repeat(missing // len(table) + 1, 1)[:missing]),
        ),
        Mistake(
            "still a grid",
            "the result is a grid [rows, columns, D]; a table is asked for, with one row for each place",
            lambda table, old, new: interpolate_positions(table, old, new).reshape(*new, -1),
        ),
        Mistake(
            "still a picture",
            "the result is a picture with D channels; a table is asked for, with one row for each place",
            interpolating(back=lambda picture: picture),
        ),
        Mistake(
            "still a picture",
            "the result has D rows; a table is asked for, with one row for each place",
            interpolating(back=lambda picture: picture[0].flatten(1)),
        ),
        Mistake("square assumed", "the old grid is taken for a square, of as many rows as columns: it may be of any "
                "shape",
                [square_of(rounding) for rounding in (int, round)]),
    ],
)  # fmt: skip

# --- 13.5 --------------------------------------------------------------------------------------------------------


class Toy(nn.Module):
    """A model that is called like PaliGemma and is trained in a millisecond: twice each token gets the mean of those
    that it may see, and the head guesses from that. Its loss shifts the labels by one, as the real one's does."""

    def __init__(self, seed, V=11, D=6):
        super().__init__()
        self.table, self.mixer = nn.Parameter(numbers(seed + 1, V, D)), nn.Parameter(numbers(seed + 2, D, D))

    def forward(self, input_ids, attention_mask, token_type_ids, labels):
        x = self.table[input_ids]  # [B, L, D]
        allowed = make_attn_mask(attention_mask, token_type_ids).to(x.dtype)  # [B, L, L]
        weights = allowed / allowed.sum(-1, keepdim=True).clamp(min=1)
        for _ in range(2):  # in the second round the answer notices what the prompt could see
            x = x + torch.tanh(weights @ x @ self.mixer)
        logits = x @ self.table.T  # [B, L, V]
        return SimpleNamespace(logits=logits, loss=package_loss(logits, labels))


def trained_by(work, seed, lr):
    """{"losses": what `work(model, optimizer)` returns, "weights": what it makes of the toy model's}"""
    model = Toy(seed).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with torch.enable_grad():
        losses = work(model, optimizer)
    return {"losses": losses, "weights": {name: value.detach() for name, value in model.named_parameters()}}


def use_step(step, seed, batches, clip):
    return trained_by(lambda model, optimizer: [step(model, optimizer, batch, clip) for batch in batches], seed, 0.2)


STEP_FAULTS = {  # what can be observed of each, and its name
    "prompt": ("picture and prompt have labels: the loss is on the prompt, too", "loss on the prompt"),
    "shift": ("the labels are shifted by one, and the model shifts them again", "labels shifted twice"),
    "zero": ("gradients of earlier steps are still there when new ones are added", "zero_grad missing"),
    "clip": (
        "the step is taken with gradients that are not clipped: the clipping is missing, or stands before `backward` "
        "or "
        "after the step",
        "not clipped",
    ),
}


def training_step(model, optimizer, batch, clip=1.0, faults=()):
    labels = batch["labels"]
    if "prompt" in faults:
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    if "shift" in faults:
        labels = F.pad(labels[:, 1:], (0, 1), value=-100)
    if "zero" not in faults:
        optimizer.zero_grad()
    loss = model(**{**batch, "labels": labels}).loss
    if "clip" in faults:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    loss.backward()
    if "clip" not in faults:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.item()


def causal_step(model, optimizer, batch, clip=1.0):
    return training_step(model, optimizer, {**batch, "token_type_ids": batch["attention_mask"]}, clip)


def zeroed_too_late(model, optimizer, batch, clip=1.0):
    loss = model(**batch).loss
    loss.backward()
    optimizer.zero_grad()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.item()


def stale_step(model, optimizer, batch, clip=1.0):
    loss = model(**batch).loss
    optimizer.step()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    return loss.item()


def clipped_by_value(model, optimizer, batch, clip=1.0):
    optimizer.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    nn.utils.clip_grad_value_(model.parameters(), clip)
    optimizer.step()
    return loss.item()


def each_clipped_alone(model, optimizer, batch, clip=1.0):
    optimizer.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    for parameter in model.parameters():
        nn.utils.clip_grad_norm_(parameter, clip)
    optimizer.step()
    return loss.item()


def loss_of_afterwards(model, optimizer, batch, clip=1.0):
    training_step(model, optimizer, batch, clip)
    return model(**batch).loss.item()


def gives_a_number(step) -> Finding | None:
    """A loss with its graph holds on to everything that it was computed from; a detached one does no harm."""
    seed, batches, clip = next(iter(step_cases(0))).inputs
    loss = use_step(step, seed, batches[:1], clip)["losses"][0]
    return tensor_given("the loss") if isinstance(loss, torch.Tensor) and loss.requires_grad else None


def tensor_given(what: str) -> Finding:
    return Finding(
        "tensor instead of a number",
        f"{what} comes back as a tensor",
        "a number is asked for: a tensor may keep all that it was computed from in memory",
    )


def fixed_clip(model, optimizer, batch, clip=1.0):
    return training_step(model, optimizer, batch, 1.0)


def step_cases(seed):
    batches = [batch_of(seed + i, "qqqaaa.", "qqaaaaa") for i in range(3)]
    yield Case((seed, batches, 0.3), note="three steps, gradients clipped at 0.3")
    batches = [batch_of(seed + 10 + i, ".qqaa", "qqqaa", "..qaa") for i in range(2)]
    yield Case((seed + 5, batches, 1.0), note="two steps, gradients clipped at 1")


def show_step(thing):
    batch = batch_of(0, "qqqaaa.", "qqaaaaa")
    losses = trained_by(lambda model, optimizer: [thing(model, optimizer, batch) for _ in range(60)], 0, 0.2)["losses"]
    print("  loss of a little model after 0, 20, 40 steps: " + ", ".join(f"{losses[i]:.2f}" for i in (0, 20, 40)))


STEP = Task(
    id="13.5",
    title="find the four faults",
    points=4,
    minutes=12,
    level="medium",
    importance="core",
    reference=training_step,
    cases=step_cases,
    use=use_step,
    gradients=False,
    see='chapter 13, "The batch" and "Break it"; the order of the five lines of a step',
    reward=show_step,
    extra=[gives_a_number],
    mistakes=[
        *faults_left(STEP_FAULTS, lambda some: functools.partial(training_step, faults=some)),
        Mistake("causal", "everything counts as the answer, so that no token of the prompt sees those after it: the "
                "mask is causal", causal_step),
        Mistake("step without gradients", "no weight has changed: when the step is taken the gradients are cleared "
                "again, or not there yet", zeroed_too_late),
        Mistake("step before backward", "each step uses the gradients of the batch before", stale_step),
        Mistake("clipped by value", "each number of the gradient is clipped for itself, which turns its direction: "
                "the length of the whole gradient is to be at most `clip`", clipped_by_value),
        Mistake("clip not passed on", "the length that is given is not used: a fixed one is", fixed_clip),
        Mistake("each tensor clipped alone", "each tensor of the model is clipped for itself, which turns the "
                "direction of "
                "the whole gradient: its length is to be at most `clip`", each_clipped_alone),
        Mistake("loss after the step", "the loss is computed once more after the step: the one before it is wanted",
                loss_of_afterwards),
    ],
)  # fmt: skip

# --- 13.6 --------------------------------------------------------------------------------------------------------


def teach(model, optimizer, new, old, steps, pick=lambda i, batches: batches[i % len(batches)], mix=None, zero=True):
    losses = []
    for i in range(steps):
        loss = (mix or (lambda a, b: (a + b) / 2))(model(**pick(i, new)).loss, model(**pick(i, old)).loss)
        if zero:
            optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def two_steps(model, optimizer, new, old, steps):
    losses = []
    for i in range(steps):
        both = []
        for batches in (new, old):
            loss = model(**batches[i % len(batches)]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            both.append(loss.item())
        losses.append(sum(both) / 2)
    return losses


def one_kind(choose):
    """Steps with one batch each: `choose(i, new, old)`."""

    def function(model, optimizer, new, old, steps):
        losses = []
        for i in range(steps):
            loss = model(**choose(i, new, old)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    return function


def cleared_between(model, optimizer, new, old, steps):
    losses = []
    for i in range(steps):
        both = []
        for batches in (new, old):
            optimizer.zero_grad()
            loss = model(**batches[i % len(batches)]).loss / 2
            loss.backward()
            both.append(loss.item())
        optimizer.step()
        losses.append(sum(both))
    return losses


def use_teach(thing, seed, new, old, steps):
    return trained_by(lambda model, optimizer: thing(model, optimizer, new, old, steps), seed, 0.2)


def list_of_numbers(thing) -> Finding | None:
    seed, new, old, _ = next(iter(teach_cases(0))).inputs
    losses = use_teach(thing, seed, new, old, 1)["losses"]
    return tensor_given("a loss of the list") if any(isinstance(loss, torch.Tensor) for loss in losses) else None


def noting(which):
    """The reference with another number in its list: `which(loss of new, loss of old)`."""

    def function(model, optimizer, new, old, steps):
        losses = []
        for i in range(steps):
            a, b = model(**new[i % len(new)]).loss, model(**old[i % len(old)]).loss
            optimizer.zero_grad()
            ((a + b) / 2).backward()
            optimizer.step()
            losses.append(which(a, b).item())
        return losses

    return function


def lengths_mixed_up(model, optimizer, new, old, steps):
    """The place in `old` is found with the length of `new`."""
    return teach(model, optimizer, new, [old[i % len(new) % len(old)] for i in range(steps)], steps)


def clipped(model, optimizer, new, old, steps, clip):
    step = optimizer.step
    optimizer.step = lambda: (nn.utils.clip_grad_norm_(model.parameters(), clip), step())
    return teach(model, optimizer, new, old, steps)


def teach_cases(seed):
    new = [batch_of(seed + i, "qqaaaa", "qqqaa.") for i in range(2)]
    old = [batch_of(seed + 20 + i, "qaaa", "qqqa", "qqa.") for i in range(3)]
    yield Case((seed, new, old, 5), note="2 new batches, 3 old ones, 5 steps")
    yield Case((seed + 3, new[:1], old[:2], 3), note="1 new batch, 2 old ones, 3 steps")


def caption_batch(processor, seeds, language):
    scenes = [make_scene(seed, 2) for seed in seeds]
    return processor(
        text=[f"caption {language}"] * len(scenes),
        images=[draw(scene) for scene in scenes],
        suffix=[caption(scene, language) for scene in scenes],
    )


def show_teaching(thing):
    """Twelve steps of Korean captions for the trained model, with and without old examples in between."""
    if trained() is None:
        print("The trained model is not in assets/tiny-paligemma, so it cannot learn.")
        return
    from matplotlib import pyplot as plt

    from ..visualize import show_curves

    model, processor = trained()
    languages = {"Korean, which it is to learn": "ko", "English, which it is to keep": "en"}
    korean, english = (
        [caption_batch(processor, range(500_000 + 5 * i, 500_005 + 5 * i), language) for i in range(4)]
        for language in languages.values()
    )
    other_pictures = {title: caption_batch(processor, range(100, 106), languages[title]) for title in languages}
    losses = {title: {} for title in languages}
    for name, old in (("Korean alone", korean), ("English mixed in", english)):
        student = copies.deepcopy(model).train()
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
        for steps in (0, 4, 8, 12):
            if steps:
                with torch.enable_grad():
                    thing(student, optimizer, korean, old, 4)
            for title, batch in other_pictures.items():
                with torch.no_grad():
                    losses[title].setdefault(name, []).append(student(**batch).loss.item())
    _, axes = plt.subplots(1, 2, figsize=(7, 2.8), sharey=True)
    for ax, (title, curves) in zip(axes, losses.items(), strict=True):
        show_curves(curves, ylabel="loss on other pictures", title=title, x=(0, 4, 8, 12), ax=ax, marker=".")
    print("  The trained model, taught by yours: on the left what it learns, on the right what it forgets.")


def keep(i, batches):
    return batches[min(i, len(batches) - 1)]


TEACH = Task(
    id="13.6",
    title="teach something new, and keep the old",
    points=3,
    minutes=10,
    level="medium",
    importance="core",
    reference=teach,
    cases=teach_cases,
    use=use_teach,
    gradients=False,
    see='chapter 13, "Stage 3: a new task, live"; the hints of this task',
    reward=show_teaching,
    extra=[list_of_numbers],
    mistakes=[
        Mistake("old left out", "only the new batches are learned from: that is how the old is forgotten",
                one_kind(lambda i, new, old: new[i % len(new)])),
        Mistake("new left out", "only the old batches are learned from",
                one_kind(lambda i, new, old: old[i % len(old)])),
        Mistake("in turn", "one step takes a new batch, the next an old one: each step is to take both",
                one_kind(lambda i, new, old: (new, old)[i % 2][i % len((new, old)[i % 2])])),
        Mistake("in turn", "one step takes a new batch, the next an old one: each step is to take both",
                one_kind(lambda i, new, old: (new, old)[i % 2][i // 2 % len((new, old)[i % 2])])),
        Mistake("two steps", "the optimiser makes two steps where one is asked for",
                two_steps),
        Mistake("gradient cleared between", "the gradient of the new batch is cleared before that of the old one comes"
                ": only the old one is learned from", cleared_between),
        Mistake("zero_grad missing", "gradients of earlier steps are still there when new ones are added",
                functools.partial(teach, zero=False)),
        Mistake("sum instead of mean", "the two losses are added and not halved: each step is twice as large",
                functools.partial(teach, mix=lambda a, b: a + b)),
        Mistake("first batch only", "every step takes the same two batches",
                functools.partial(teach, pick=lambda i, batches: batches[0])),
        Mistake("lists not begun again", "when a list is at its end, its last batch comes again and again: it is to "
                "begin from the front", functools.partial(teach, pick=keep)),
        Mistake("lists not begun again", "a list may be shorter than the number of steps: begin it again",
                functools.partial(teach, pick=lambda i, batches: batches[i])),
        Mistake("stops with the shorter list", "the lists are gone through together and the shorter one ends it: when "
                "a list is at its end, begin again", lambda model, optimizer, new, old, steps:
                teach(model, optimizer, new, old, min(steps, len(new), len(old)))),
        Mistake("one loss noted", "the list holds the losses of the new batches: the mean of both is wanted",
                noting(lambda new, old: new)),
        Mistake("one loss noted", "the list holds the losses of the old batches: the mean of both is wanted",
                noting(lambda new, old: old)),
        Mistake("sum noted", "the list holds the sums of the two losses: their mean is wanted",
                noting(lambda a, b: a + b)),
        Mistake("one length for both", "the place in one list is found with the length of the other: each has its own",
                lengths_mixed_up),
        Mistake("begins with batch 1", "step 0 takes batch 1 of each list: it is to take batch 0",
                functools.partial(teach, pick=lambda i, batches: batches[(i + 1) % len(batches)])),
        Mistake("clipped", "the gradient is clipped: this task does not ask for that",
                [functools.partial(clipped, clip=clip) for clip in (0.1, 0.5, 1.0)]),
    ],
)  # fmt: skip

TASKS = [LABELS, LOSS, READ, POSITIONS, STEP, TEACH]
