"""Solutions of chapter 13's exercises, right and wrong."""

import itertools

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from . import right, with_faults, wrong

# --- 13.1 --------------------------------------------------------------------------------------------------------


@right("13.1")
def _(input_ids, attention_mask, token_type_ids):
    labels = input_ids.clone()
    labels[token_type_ids == 0] = -100
    labels[attention_mask == 0] = -100
    return labels


@right("13.1")
def _(input_ids, attention_mask, token_type_ids):
    B, L = input_ids.shape
    labels = torch.full((B, L), -100)
    for b in range(B):
        for t in range(L):
            if token_type_ids[b, t] and attention_mask[b, t]:
                labels[b, t] = input_ids[b, t]
    return labels


@right("13.1")
def _(input_ids, attention_mask, token_type_ids):
    learn = token_type_ids * attention_mask
    return input_ids * learn - 100 * (1 - learn)


@wrong("13.1", "loss on the prompt")
def _(input_ids, attention_mask, token_type_ids):
    return torch.where(attention_mask.bool(), input_ids, -100)


@wrong("13.1", "loss on everything")
def _(input_ids, attention_mask, token_type_ids):
    return input_ids


@wrong("13.1", "padding counted")
def _(input_ids, attention_mask, token_type_ids):
    return torch.where(token_type_ids == 1, input_ids, -100)


@wrong("13.1", "padding guessed from its id")
def _(input_ids, attention_mask, token_type_ids):
    labels = input_ids.clone()
    labels[(token_type_ids != 1) | (labels == 0)] = -100
    return labels


@wrong("13.1", "shifted already")
def _(input_ids, attention_mask, token_type_ids):
    labels = input_ids.masked_fill((token_type_ids == 0) | (attention_mask == 0), -100)
    return torch.cat([labels[:, 1:], torch.full((len(labels), 1), -100)], dim=1)


@wrong("13.1", "shifted already")
def _(input_ids, attention_mask, token_type_ids):
    return torch.roll(input_ids.masked_fill((token_type_ids == 0) | (attention_mask == 0), -100), -1, 1)


@wrong("13.1", "0 instead of -100")
def _(input_ids, attention_mask, token_type_ids):
    return input_ids.masked_fill((token_type_ids == 0) | (attention_mask == 0), 0)


@wrong("13.1", "prompt instead of answer")
def _(input_ids, attention_mask, token_type_ids):
    labels = input_ids.clone()
    labels[token_type_ids.bool()] = -100
    labels[~attention_mask.bool()] = -100
    return labels


@wrong("13.1", "first token of the answer missing")
def _(input_ids, attention_mask, token_type_ids):
    labels = input_ids.masked_fill((token_type_ids == 0) | (attention_mask == 0), -100)
    for row in labels:
        row[int((row != -100).int().argmax())] = -100
    return labels


@wrong("13.1", "end of the answer missing")
def _(input_ids, attention_mask, token_type_ids):
    labels = input_ids.masked_fill((token_type_ids == 0) | (attention_mask == 0), -100)
    for row in labels:
        row[(row != -100).nonzero()[-1]] = -100
    return labels


@wrong("13.1", "mask instead of labels")
def _(input_ids, attention_mask, token_type_ids):
    return ((token_type_ids == 1) & (attention_mask == 1)).long()


@wrong("13.1", "input changed")
def _(input_ids, attention_mask, token_type_ids):
    labels = input_ids
    labels[(token_type_ids == 0) | (attention_mask == 0)] = -100
    return labels


@wrong("13.1", "dtype")
def _(input_ids, attention_mask, token_type_ids):
    return torch.where((token_type_ids == 1) & (attention_mask == 1), input_ids, torch.tensor(-100.0))


# --- 13.2 --------------------------------------------------------------------------------------------------------


@right("13.2")
def _(logits, labels, average):
    guesses, targets = logits[:, :-1].float(), labels[:, 1:]
    if (targets == -100).all():
        raise ValueError("nothing to learn")
    if average == "tokens":
        return F.cross_entropy(guesses.flatten(0, 1), targets.flatten())
    return torch.stack([F.cross_entropy(g, t) for g, t in zip(guesses, targets)]).mean()


@right("13.2")
def _(logits, labels, average):
    B, L, V = logits.shape
    rows = []
    for b in range(B):
        row = []
        for t in range(L - 1):
            target = labels[b, t + 1].item()
            if target != -100:
                row.append(-torch.log_softmax(logits[b, t].to(torch.float32), 0)[target])
        rows.append(row)
    if not any(rows):
        raise ValueError("no labels at all")
    if average == "examples":
        return sum(sum(row) / len(row) for row in rows) / B
    flat = [x for row in rows for x in row]
    return sum(flat) / len(flat)


def my_loss(logits, labels, average, shift=1, ignore=True, cast=True, swap=False, only=None, check=True, per=None):
    guesses = logits[:, : logits.shape[1] - shift]
    targets = labels[:, shift:]
    if cast:
        guesses = guesses.float()
    if check and not (targets != -100).any():
        raise ValueError("nothing")
    each = F.cross_entropy(guesses.transpose(1, 2), targets, reduction="none", ignore_index=-100)
    count = (targets != -100).sum(1)
    if swap:
        average = {"tokens": "examples", "examples": "tokens"}[average]
    average = only or average
    if per == "places":
        return each.mean()
    if per == "sum":
        return each.sum()
    if average == "tokens":
        return each.sum() / count.sum()
    return (each.sum(1) / count).mean()


right("13.2")(lambda *a: my_loss(*a))
wrong("13.2", "not shifted")(lambda *a: my_loss(*a, shift=0))
wrong("13.2", "labels shifted twice")(lambda *a: my_loss(*a, shift=2))
wrong("13.2", "averages swapped")(lambda *a: my_loss(*a, swap=True))
wrong("13.2", "always over tokens")(lambda *a: my_loss(*a, only="tokens"))
wrong("13.2", "per-example mean")(lambda *a: my_loss(*a, only="examples"))
wrong("13.2", "padding counted")(lambda *a: my_loss(*a, per="places"))
wrong("13.2", "sum instead of mean")(lambda *a: my_loss(*a, per="sum"))
wrong("13.2", "computed in half precision")(lambda *a: my_loss(*a, cast=False))
wrong("13.2", "nothing to learn from")(lambda *a: my_loss(*a, check=False))
wrong("13.2", "sign")(lambda *a: -my_loss(*a))


@wrong("13.2", "labels shifted twice")
def _(logits, labels, average):
    labels = F.pad(labels[:, 1:], (0, 1), value=-100)
    return my_loss(logits, labels, average)


@wrong("13.2", "shifted the wrong way")
def _(logits, labels, average):
    guesses, targets = logits[:, 1:].float(), labels[:, :-1]
    if average == "tokens":
        return F.cross_entropy(guesses.transpose(1, 2), targets)
    return sum(F.cross_entropy(g, t) for g, t in zip(guesses, targets)) / len(targets)


@wrong("13.2", "always over tokens")
def _(logits, labels, average):
    if not (labels[:, 1:] != -100).any():
        raise ValueError("no labels")
    return F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]).float(), labels[:, 1:].reshape(-1))


@wrong("13.2", "padding counted")
def _(logits, labels, average):
    if average == "tokens":
        return my_loss(logits, labels, average)
    each = F.cross_entropy(logits[:, :-1].float().mT, labels[:, 1:], reduction="none")
    return each.mean(dim=1).mean()


@wrong("13.2", "raised")
def _(logits, labels, average):
    log_p = logits[:, :-1].float().log_softmax(-1)
    picked = log_p.gather(-1, labels[:, 1:, None])
    return -picked.mean()


@wrong("13.2", "raised")
def _(logits, labels, average):
    return F.cross_entropy(logits[:, :-1].float(), labels[:, 1:])


@wrong("13.2", "no gradient")
def _(logits, labels, average):
    return my_loss(logits.detach(), labels, average)


# --- 13.3 --------------------------------------------------------------------------------------------------------


def causes(**changed):
    names = ("the answer is visible", "rate a hundred times too small", "all is right", "loss on everything")
    return lambda: {**dict(zip("ABCD", names)), **changed}


right("13.3")(causes())
right("13.3")(lambda: {name: causes()()[name] for name in "DCBA"})
wrong("13.3", "taken for another")(causes(A="all is right", C="the answer is visible"))
wrong("13.3", "taken for another")(causes(A="loss on everything", D="the answer is visible"))
wrong("13.3", "taken for another")(causes(C="loss on everything", D="all is right"))
wrong("13.3", "taken for another")(causes(B="all is right", C="rate a hundred times too small"))
wrong("13.3", "a name twice")(causes(A="all is right"))
wrong("13.3", "unknown name")(causes(A="overfitting"))
wrong("13.3", "structure")(lambda: {"A": "all is right"})
wrong("13.3", "type")(lambda: ["all is right"])


# --- 13.4 --------------------------------------------------------------------------------------------------------


@right("13.4")
def _(table, old, new):
    grid = table.view(1, old[0], old[1], -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=new, mode="bilinear", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(new[0] * new[1], -1)


@right("13.4")
def _(table, old, new):
    picture = table.T.unflatten(1, old).unsqueeze(0)
    return F.interpolate(picture, new, mode="bilinear").squeeze(0).flatten(1).transpose(0, 1)


@right("13.4")
def _(table, old, new):
    grid = table.reshape(old[0], old[1], -1)
    rows = []
    for y in range(new[0]):
        for x in range(new[1]):
            v = min(max((y + 0.5) * old[0] / new[0] - 0.5, 0), old[0] - 1)
            u = min(max((x + 0.5) * old[1] / new[1] - 0.5, 0), old[1] - 1)
            top, left = int(v), int(u)
            bottom, side = min(top + 1, old[0] - 1), min(left + 1, old[1] - 1)
            a, b = v - top, u - left
            above = (1 - b) * grid[top, left] + b * grid[top, side]
            below = (1 - b) * grid[bottom, left] + b * grid[bottom, side]
            rows.append((1 - a) * above + a * below)
    return torch.stack(rows)


def enlarge(table, old, new, **how):
    grid = table.view(old[0], old[1], -1).permute(2, 0, 1)[None]
    return F.interpolate(grid, size=new, **how)[0].permute(1, 2, 0).reshape(-1, table.shape[1])


wrong("13.4", "corners aligned")(lambda t, o, n: enlarge(t, o, n, mode="bilinear", align_corners=True))
wrong("13.4", "nearest")(lambda t, o, n: enlarge(t, o, n))
wrong("13.4", "bicubic")(lambda t, o, n: enlarge(t, o, n, mode="bicubic"))
wrong("13.4", "grid transposed")(lambda t, o, n: enlarge(t, o[::-1], n, mode="bilinear"))
wrong("13.4", "grid transposed")(lambda t, o, n: enlarge(t, o, (n[1], n[0]), mode="bilinear"))


@wrong("13.4", "grid transposed")
def _(table, old, new):
    grid = table.view(1, old[0], old[1], -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=new, mode="bilinear")
    return grid.permute(0, 3, 2, 1).reshape(new[0] * new[1], -1)


@wrong("13.4", "places and channels mixed")
def _(table, old, new):
    D = table.shape[1]
    grid = F.interpolate(table.view(1, D, old[0], old[1]), size=new, mode="bilinear")
    return grid.permute(0, 2, 3, 1).reshape(-1, D)


@wrong("13.4", "places and channels mixed")
def _(table, old, new):
    D = table.shape[1]
    return F.interpolate(table.view(1, D, *old), size=new, mode="bilinear").reshape(-1, D)


@wrong("13.4", "way back without moving the axis")
def _(table, old, new):
    grid = table.view(1, old[0], old[1], -1).permute(0, 3, 1, 2)
    return F.interpolate(grid, size=new, mode="bilinear").reshape(new[0] * new[1], -1)


@wrong("13.4", "one axis")
def _(table, old, new):
    return F.interpolate(table.T.unsqueeze(0), size=new[0] * new[1], mode="linear").squeeze(0).T


@wrong("13.4", "old rows first")
def _(table, old, new):
    bigger = torch.zeros(new[0] * new[1], table.shape[1])
    bigger[: len(table)] = table
    return bigger


@wrong("13.4", "still a grid")
def _(table, old, new):
    grid = table.view(1, old[0], old[1], -1).permute(0, 3, 1, 2)
    return F.interpolate(grid, size=new, mode="bilinear")[0].permute(1, 2, 0)


@wrong("13.4", "still a picture")
def _(table, old, new):
    grid = table.view(1, old[0], old[1], -1).permute(0, 3, 1, 2)
    return F.interpolate(grid, size=new, mode="bilinear")


@wrong("13.4", "raised")
def _(table, old, new):
    return F.interpolate(table.view(old[0], old[1], -1), size=new, mode="bilinear")


@wrong("13.4", "no gradient")
def _(table, old, new):
    return enlarge(table.data, old, new, mode="bilinear")


# --- 13.5 --------------------------------------------------------------------------------------------------------


@right("13.5")
def _(model, optimizer, batch, clip=1.0):
    loss = model(**batch).loss
    optimizer.zero_grad()
    loss.backward()
    clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.item()


@right("13.5")
def _(model, optimizer, batch, clip=1.0):
    output = model(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"], labels=batch["labels"])
    output.loss.backward()
    norm = torch.sqrt(sum((p.grad**2).sum() for p in model.parameters()))
    if norm > clip:
        for p in model.parameters():
            p.grad *= clip / norm
    optimizer.step()
    model.zero_grad()
    return output.loss.item()


@right("13.5")
def _(model, optimizer, batch, clip=1.0):
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for p in parameters:
        p.grad = None
    loss = model(**batch).loss
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, max_norm=clip)
    optimizer.step()
    return loss.detach()


def written(faults):
    """The listing, with these faults left in."""

    def step(model, optimizer, batch, clip=1.0):
        labels = batch["labels"].clone()
        if "p" in faults:
            labels = torch.where(batch["attention_mask"] == 1, batch["input_ids"], -100)
        if "s" in faults:
            labels = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], 1)
        loss = model(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"], labels).loss
        if "z" not in faults:
            optimizer.zero_grad(set_to_none=False)
        if "c" in faults:
            clip_grad_norm_(model.parameters(), clip)
        loss.backward()
        if "c" not in faults:
            clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        return loss.item()

    return step


with_faults(
    "13.5",
    written,
    {"p": "loss on the prompt", "s": "labels shifted twice", "z": "zero_grad missing", "c": "not clipped"},
)


@wrong("13.5", "not clipped")
def _(model, optimizer, batch, clip=1.0):
    optimizer.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    return loss.item()


@wrong("13.5", "causal")
def _(model, optimizer, batch, clip=1.0):
    optimizer.zero_grad()
    loss = model(batch["input_ids"], batch["attention_mask"], batch["attention_mask"], batch["labels"]).loss
    loss.backward()
    clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.item()


@wrong("13.5", "step without gradients")
def _(model, optimizer, batch, clip=1.0):
    loss = model(**batch).loss
    loss.backward()
    clip_grad_norm_(model.parameters(), clip)
    optimizer.zero_grad()
    optimizer.step()
    return loss.item()


@wrong("13.5", "step without gradients")
def _(model, optimizer, batch, clip=1.0):
    loss = model(**batch).loss
    optimizer.zero_grad()
    optimizer.step()
    loss.backward()
    return loss.item()


@wrong("13.5", "step before backward")
def _(model, optimizer, batch, clip=1.0):
    loss = model(**batch).loss
    optimizer.step()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    return loss.item()


@wrong("13.5", "clipped by value")
def _(model, optimizer, batch, clip=1.0):
    optimizer.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    for p in model.parameters():
        p.grad.clamp_(-clip, clip)
    optimizer.step()
    return loss.item()


@wrong("13.5", "clip not passed on")
def _(model, optimizer, batch, clip=1.0):
    optimizer.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


@wrong("13.5", "no return")
def _(model, optimizer, batch, clip=1.0):
    optimizer.zero_grad()
    model(**batch).loss.backward()
    clip_grad_norm_(model.parameters(), clip)
    optimizer.step()


@wrong("13.5", "raised")
def _(model, optimizer, batch, clip=1.0):
    optimizer.zero_grad()
    loss = model(**batch).loss.item()
    loss.backward()
    optimizer.step()
    return loss


# --- 13.6 --------------------------------------------------------------------------------------------------------


@right("13.6")
def _(model, optimizer, new, old, steps):
    losses = []
    for fresh, known, _ in zip(itertools.cycle(new), itertools.cycle(old), range(steps)):
        optimizer.zero_grad()
        loss = 0.5 * model(**fresh).loss + 0.5 * model(**known).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@right("13.6")
def _(model, optimizer, new, old, steps):
    losses = []
    for step in range(steps):
        total = 0.0
        for batch in (new[step % len(new)], old[step % len(old)]):
            loss = model(**batch).loss / 2
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


@right("13.6")
def _(model, optimizer, new, old, steps):
    losses = []
    for step in range(steps):
        pair = [model(**batches[step % len(batches)]).loss for batches in (new, old)]
        loss = torch.stack(pair).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def learn(model, optimizer, loss, zero=True):
    if zero:
        optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@wrong("13.6", "old left out")
def _(model, optimizer, new, old, steps):
    return [learn(model, optimizer, model(**new[i % len(new)]).loss) for i in range(steps)]


@wrong("13.6", "new left out")
def _(model, optimizer, new, old, steps):
    return [learn(model, optimizer, model(**old[i % len(old)]).loss) for i in range(steps)]


@wrong("13.6", "in turn")
def _(model, optimizer, new, old, steps):
    losses = []
    for i in range(steps):
        batches = new if i % 2 == 0 else old
        losses.append(learn(model, optimizer, model(**batches[i % len(batches)]).loss))
    return losses


@wrong("13.6", "two steps")
def _(model, optimizer, new, old, steps):
    losses = []
    for i in range(steps):
        first = learn(model, optimizer, model(**new[i % len(new)]).loss)
        second = learn(model, optimizer, model(**old[i % len(old)]).loss)
        losses.append((first + second) / 2)
    return losses


@wrong("13.6", "gradient cleared between")
def _(model, optimizer, new, old, steps):
    losses = []
    for i in range(steps):
        a = model(**new[i % len(new)]).loss / 2
        b = model(**old[i % len(old)]).loss / 2
        a.backward()
        optimizer.zero_grad()
        b.backward()
        optimizer.step()
        losses.append((a + b).item())
    return losses


@wrong("13.6", "zero_grad missing")
def _(model, optimizer, new, old, steps):
    return [
        learn(model, optimizer, (model(**new[i % len(new)]).loss + model(**old[i % len(old)]).loss) / 2, zero=False)
        for i in range(steps)
    ]


@wrong("13.6", "sum instead of mean")
def _(model, optimizer, new, old, steps):
    return [
        learn(model, optimizer, model(**new[i % len(new)]).loss + model(**old[i % len(old)]).loss) for i in range(steps)
    ]


@wrong("13.6", "first batch only")
def _(model, optimizer, new, old, steps):
    return [learn(model, optimizer, (model(**new[0]).loss + model(**old[0]).loss) / 2) for _ in range(steps)]


@wrong("13.6", "lists not begun again")
def _(model, optimizer, new, old, steps):
    return [learn(model, optimizer, (model(**new[i]).loss + model(**old[i]).loss) / 2) for i in range(steps)]


@wrong("13.6", "stops with the shorter list")
def _(model, optimizer, new, old, steps):
    return [learn(model, optimizer, (model(**a).loss + model(**b).loss) / 2) for a, b in zip(new, old)]


@wrong("13.6", "no return")
def _(model, optimizer, new, old, steps):
    for i in range(steps):
        learn(model, optimizer, (model(**new[i % len(new)]).loss + model(**old[i % len(old)]).loss) / 2)
