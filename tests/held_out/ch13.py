"""Held-out solutions of chapter 13."""

# ruff: noqa: E501
# fmt: off

from . import answer, change, exchange, right, wrong

# --- 13.1 -------------------------------------------------------------------------------------------------------------

wrong("13.1", "padding learned", """
def make_labels(input_ids, attention_mask, token_type_ids):
    return input_ids.masked_fill(token_type_ids == 0, -100)
""", truth="padding whose type is 1 gets a label: the attention mask is not used")
wrong("13.1", "prompt learned", """
def make_labels(input_ids, attention_mask, token_type_ids):
    return input_ids.masked_fill(attention_mask == 0, -100)
""", truth="picture and prompt get labels: the types are not used")
wrong("13.1", "or instead of and", """
def make_labels(input_ids, attention_mask, token_type_ids):
    keep = (token_type_ids == 1) | (attention_mask == 1)
    return torch.where(keep, input_ids, -100)
""", truth="a token needs both to count; with | the prompt and padding get labels")
wrong("13.1", "shifted", """
def make_labels(input_ids, attention_mask, token_type_ids):
    keep = (token_type_ids == 1) & (attention_mask == 1)
    labels = torch.where(keep, input_ids, -100)
    return F.pad(labels[:, 1:], (0, 1), value=-100)
""", truth="the labels are shifted by one, but a label stays in its own place")
wrong("13.1", "0 instead of -100", """
def make_labels(input_ids, attention_mask, token_type_ids):
    return input_ids * token_type_ids * attention_mask
""", truth="what does not count gets 0 instead of -100")
wrong("13.1", "in place", """
def make_labels(input_ids, attention_mask, token_type_ids):
    input_ids[(token_type_ids == 0) | (attention_mask == 0)] = -100
    return input_ids
""", truth="input_ids is changed in place")
wrong("13.1", "inverted", """
def make_labels(input_ids, attention_mask, token_type_ids):
    return torch.where((token_type_ids == 0) & (attention_mask == 1), input_ids, -100)
""", truth="the prompt gets labels and the answer -100")
wrong("13.1", "eos left out", """
def make_labels(input_ids, attention_mask, token_type_ids):
    keep = (token_type_ids == 1) & (attention_mask == 1)
    last = keep & ~F.pad(keep[:, 1:], (0, 1), value=False)
    return torch.where(keep & ~last, input_ids, -100)
""", truth="the last token of the answer, eos, has no label")
wrong("13.1", "mask as label", """
def make_labels(input_ids, attention_mask, token_type_ids):
    keep = (token_type_ids == 1) & (attention_mask == 1)
    return torch.where(keep, 1, -100)
""", truth="returns which tokens count, not their ids")
wrong("13.1", "float", """
def make_labels(input_ids, attention_mask, token_type_ids):
    keep = (token_type_ids == 1) & (attention_mask == 1)
    return torch.where(keep, input_ids.float(), -100.0)
""", truth="the labels are float")
wrong("13.1", "-1", """
def make_labels(input_ids, attention_mask, token_type_ids):
    keep = (token_type_ids == 1) & (attention_mask == 1)
    return input_ids.masked_fill(~keep, -1)
""", truth="what does not count gets -1 instead of -100")
right("13.1", "arithmetic", """
def make_labels(input_ids, attention_mask, token_type_ids):
    counts = token_type_ids * attention_mask
    return input_ids * counts - 100 * (1 - counts)
""")
right("13.1", "loops over lists", """
def make_labels(input_ids, attention_mask, token_type_ids):
    rows = []
    for ids, mask, types in zip(input_ids.tolist(), attention_mask.tolist(), token_type_ids.tolist()):
        rows.append([i if m == 1 and t == 1 else -100 for i, m, t in zip(ids, mask, types)])
    return torch.tensor(rows, dtype=torch.long)
""")

# --- 13.2 -------------------------------------------------------------------------------------------------------------

LOSS = """
def suffix_loss(logits, labels, average):
    logits, targets = logits.float()[:, :-1], labels[:, 1:]
    counts = (targets != -100).sum(dim=1)
    if counts.sum() == 0:
        raise ValueError("no token has a label")
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    if average == "tokens":
        return losses.sum() / counts.sum()
    return (losses.sum(dim=1) / counts).mean()
"""
change("13.2", "not shifted", LOSS, ("logits.float()[:, :-1], labels[:, 1:]", "logits.float(), labels"), truth="the guess at t is compared with the token at t, not at t + 1")
change("13.2", "shifted the wrong way", LOSS, ("logits.float()[:, :-1], labels[:, 1:]", "logits.float()[:, 1:], labels[:, :-1]"), truth="the guess at t is compared with the token at t - 1")
change("13.2", "shifted by two", LOSS, ("logits.float()[:, :-1], labels[:, 1:]", "logits.float()[:, :-2], labels[:, 2:]"), truth="the guess at t is compared with the token at t + 2")
change("13.2", "always over tokens", LOSS, ("    return (losses.sum(dim=1) / counts).mean()", "    return losses.sum() / counts.sum()"), truth="the mean over tokens is taken for examples, too")
change("13.2", "averages exchanged", LOSS, ('average == "tokens"', 'average == "examples"'), truth="the two averages are exchanged", says="and the other way round")
change("13.2", "divides by all places", LOSS, ("losses.sum() / counts.sum()", "losses.mean()"), truth="the mean is over all places, those without a label too")
change("13.2", "rows divided by their length", LOSS, ("losses.sum(dim=1) / counts", "losses.mean(dim=1)"), truth="each row is divided by its length, not by how many of its guesses count")
change("13.2", "sum over rows", LOSS, ("counts).mean()", "counts).sum()"), truth="the rows' means are added up, not averaged")
change("13.2", "no error", LOSS, ('    if counts.sum() == 0:\n        raise ValueError("no token has a label")\n', ""), truth="no ValueError when no label counts: NaN comes out")
change("13.2", "computed in half precision", LOSS, ("logits.float()[:, :-1]", "logits[:, :-1]"), ("losses.sum() / counts.sum()", "(losses.sum() / counts.sum()).float()"), ("counts).mean()", "counts).mean().float()"), truth="the loss is computed in the logits' bfloat16, not in float32")
change("13.2", "float32 too late", LOSS, ("logits.float()[:, :-1]", "logits[:, :-1]"), ('reduction="none")', 'reduction="none").float()'), truth="the softmax is in bfloat16; only the losses are made float32")
change("13.2", "log of the softmax", LOSS, ('F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")', '-torch.log(logits.softmax(-1)).gather(2, targets.clamp(min=0)[..., None])[..., 0]\n    losses = torch.where(targets == -100, 0.0, losses)'), truth="log(softmax) gives minus infinity where the softmax is 0")
change("13.2", "counts before the cut", LOSS, ("counts = (targets != -100)", "counts = (labels != -100)"), truth="the labels are counted before the first is cut off")
change("13.2", "reshape mixes rows", LOSS, ("logits.transpose(1, 2)", "logits.reshape(logits.shape[0], logits.shape[2], logits.shape[1])"), truth="the vocabulary is made the second axis by reshape, which mixes the numbers up")
change("13.2", "softmax before cross-entropy", LOSS, ("logits.transpose(1, 2)", "logits.softmax(dim=-1).transpose(1, 2)"), truth="the softmax is taken twice: cross_entropy wants logits")
change("13.2", "-100 counted as token 0", LOSS, ("logits.transpose(1, 2), targets,", "logits.transpose(1, 2), targets.clamp(min=0),"), truth="places with -100 count as token 0")
change("13.2", "a python number", LOSS, ("return losses.sum() / counts.sum()", "return (losses.sum() / counts.sum()).item()"), ("return (losses.sum(dim=1) / counts).mean()", "return (losses.sum(dim=1) / counts).mean().item()"), truth="returns a python number, from which nothing can be learned", says=".item()")
right("13.2", "a loop over rows", """
def suffix_loss(logits, labels, average):
    per_row = []
    for scores, ids in zip(logits, labels):
        which = [t for t in range(1, len(ids)) if ids[t] != -100]
        if which:
            picked = torch.stack([torch.logsumexp(scores[t - 1].float(), 0) - scores[t - 1, ids[t]].float() for t in which])
            per_row.append(picked)
    if not per_row:
        raise ValueError("nothing to learn: all labels are -100")
    return torch.cat(per_row).mean() if average == "tokens" else torch.stack([row.mean() for row in per_row]).mean()
""")
right("13.2", "one-hot weights", """
def suffix_loss(logits, labels, average):
    log_p = logits[:, :-1].to(torch.float32).log_softmax(dim=-1)
    keep = labels[:, 1:].ne(-100)
    if not keep.any():
        raise ValueError("no labels")
    one_hot = F.one_hot(labels[:, 1:].masked_fill(~keep, 0), logits.shape[-1]).float()
    nll = -torch.einsum("blv,blv->bl", one_hot, log_p)
    weights = keep.float()
    if average == "examples":
        weights = weights / weights.sum(dim=1, keepdim=True)
    return (nll * weights).sum() / weights.sum()
""")

# --- 13.3 -------------------------------------------------------------------------------------------------------------

LOGS = {"A": "the answer is visible", "B": "rate a hundred times too small", "C": "all is right", "D": "loss on everything"}
wrong("13.3", "A and C exchanged", answer("causes", exchange(LOGS, "A", "C")), truth="A is the visible answer, C is right")
wrong("13.3", "C and D exchanged", answer("causes", exchange(LOGS, "C", "D")), truth="C is right, D has the loss on everything")
wrong("13.3", "A and D exchanged", answer("causes", exchange(LOGS, "A", "D")), truth="A is the visible answer, D the loss on everything")
wrong("13.3", "a name mistyped", answer("causes", LOGS | {"A": "the answer is seen"}), truth="there is no such name as 'the answer is seen'", says="is none of the names")
wrong("13.3", "D forgotten", answer("causes", {k: v for k, v in LOGS.items() if k != "D"}), truth="there is no answer for D", says="the logs are ['A', 'B', 'C'], expected ['A', 'B', 'C', 'D']")

# --- 13.4 -------------------------------------------------------------------------------------------------------------

GRID = """
def interpolate_positions(table, old, new):
    grid = table.view(1, old[0], old[1], -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=new, mode="bilinear", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(new[0] * new[1], -1)
"""
change("13.4", "view as channels", GRID, ("table.view(1, old[0], old[1], -1).permute(0, 3, 1, 2)", "table.view(1, -1, old[0], old[1])"), truth="view does not move the channels in front: places and channels are mixed up")
change("13.4", "old grid on its side", GRID, ("old[0], old[1], -1", "old[1], old[0], -1"), truth="rows and columns of the old grid are exchanged")
change("13.4", "new grid on its side", GRID, ("size=new", "size=(new[1], new[0])"), truth="rows and columns of the new grid are exchanged")
change("13.4", "result column by column", GRID, ("grid.permute(0, 2, 3, 1)", "grid.permute(0, 3, 2, 1)"), truth="the new table is listed column by column")
change("13.4", "old read column by column", GRID, ("table.view(1, old[0], old[1], -1).permute(0, 3, 1, 2)", "table.view(1, old[1], old[0], -1).permute(0, 3, 2, 1)"), truth="the old table is read column by column")
change("13.4", "channels not moved back", GRID, ("grid.permute(0, 2, 3, 1).reshape(new[0] * new[1], -1)", "grid.reshape(new[0] * new[1], -1)"), truth="the channels are not moved back behind the places")
change("13.4", "corners aligned", GRID, ("align_corners=False", "align_corners=True"), truth="align_corners=True: the corners are aligned")
change("13.4", "nearest", GRID, ('mode="bilinear", align_corners=False', 'mode="nearest"'), truth="nearest instead of bilinear", says="neighbours are repeated, not interpolated")
change("13.4", "bicubic", GRID, ("bilinear", "bicubic"), truth="bicubic instead of bilinear")
change("13.4", "square assumed", GRID, ("old[0], old[1], -1)", "int(len(table) ** 0.5), int(len(table) ** 0.5), -1)"), truth="assumes that the old grid is square")
change("13.4", "table stretched as a line", GRID, ('    grid = table.view(1, old[0], old[1], -1).permute(0, 3, 1, 2)\n    grid = F.interpolate(grid, size=new, mode="bilinear", align_corners=False)\n    return grid.permute(0, 2, 3, 1).reshape(new[0] * new[1], -1)', '    line = table.T[None]\n    line = F.interpolate(line, size=new[0] * new[1], mode="linear")\n    return line[0].T'), truth="the table is stretched along one line, not as a grid")
right("13.4", "one matrix for each axis", """
def interpolate_positions(table, old, new):
    def matrix(n_old, n_new):
        where = ((torch.arange(n_new, dtype=table.dtype) + 0.5) * n_old / n_new - 0.5).clamp(0, n_old - 1)
        low = where.floor().long()
        high = (low + 1).clamp(max=n_old - 1)
        m = torch.zeros(n_new, n_old, dtype=table.dtype)
        for i in range(n_new):
            m[i, low[i]] += 1 - (where[i] - low[i])
            m[i, high[i]] += where[i] - low[i]
        return m

    picture = table.reshape(old[0], old[1], table.shape[1])
    out = torch.einsum("yr,xc,rcd->yxd", matrix(old[0], new[0]), matrix(old[1], new[1]), picture)
    return out.flatten(0, 1)
""")
right("13.4", "channel by channel", """
def interpolate_positions(table, old, new):
    columns = []
    for channel in table.T:
        picture = channel.contiguous().view(1, 1, *old)
        columns.append(F.interpolate(picture, size=tuple(new), mode="bilinear").flatten())
    return torch.stack(columns, dim=1)
""")

# --- 13.5 -------------------------------------------------------------------------------------------------------------

STEP = """
def training_step(model, optimizer, batch, clip=1.0):
    optimizer.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.item()
"""
change("13.5", "gradients not cleared", STEP, ("    optimizer.zero_grad()\n", ""), truth="the gradients of the step before are not cleared")
change("13.5", "cleared after backward", STEP, ("    optimizer.zero_grad()\n", ""), ("    loss.backward()\n", "    loss.backward()\n    optimizer.zero_grad()\n"), truth="the gradients are cleared after backward: nothing is learned")
change("13.5", "clipped before backward", STEP, ("    loss.backward()\n    nn.utils.clip_grad_norm_(model.parameters(), clip)\n", "    nn.utils.clip_grad_norm_(model.parameters(), clip)\n    loss.backward()\n"), truth="clipping comes before backward, when there are no gradients")
change("13.5", "clipped after the step", STEP, ("    nn.utils.clip_grad_norm_(model.parameters(), clip)\n    optimizer.step()\n", "    optimizer.step()\n    nn.utils.clip_grad_norm_(model.parameters(), clip)\n"), truth="clipping comes after the step")
change("13.5", "not clipped", STEP, ("    nn.utils.clip_grad_norm_(model.parameters(), clip)\n", ""), truth="the gradient is not clipped")
change("13.5", "each number clipped", STEP, ("clip_grad_norm_", "clip_grad_value_"), truth="each number of the gradient is clipped, not its length")
change("13.5", "each tensor clipped by itself", STEP, ("    nn.utils.clip_grad_norm_(model.parameters(), clip)", "    for p in model.parameters():\n        nn.utils.clip_grad_norm_(p, clip)"), truth="each tensor is clipped by itself instead of the whole gradient")
change("13.5", "clip ignored", STEP, ("model.parameters(), clip", "model.parameters(), 1.0"), truth="clips to 1.0 always; clip is not used")
change("13.5", "labels shifted", STEP, ("    loss = model(**batch).loss", "    labels = F.pad(batch[\"labels\"][:, 1:], (0, 1), value=-100)\n    loss = model(**{**batch, \"labels\": labels}).loss"), truth="the labels are shifted once more, though the model does it")
change("13.5", "labels from the ids", STEP, ("    loss = model(**batch).loss", "    labels = batch[\"input_ids\"].masked_fill(batch[\"attention_mask\"] == 0, -100)\n    loss = model(**{**batch, \"labels\": labels}).loss"), truth="everything gets a label, the prompt too: the batch's labels are replaced")
change("13.5", "loss after the step", STEP, ("    return loss.item()", "    return model(**batch).loss.item()"), truth="returns the loss after the step")
change("13.5", "tensor returned", STEP, ("loss.item()", "loss"), truth="returns a tensor instead of a number")
change("13.5", "no step", STEP, ("    optimizer.step()\n", ""), truth="the optimizer makes no step")
right("13.5", "cleared after the step", STEP.replace("    optimizer.zero_grad()\n", "").replace("    optimizer.step()\n", "    optimizer.step()\n    optimizer.zero_grad()\n"))
change("13.5", "batch changed", STEP, ("    loss = model(**batch).loss", "    labels = batch.pop(\"labels\")\n    loss = model(**batch, labels=labels).loss"), truth="takes the labels out of the batch (pop), which changes it", says="writes into the caller's data")
right("13.5", "clips by hand", """
def training_step(model, optimizer, batch, clip=1.0):
    for p in model.parameters():
        p.grad = None
    loss = model(**batch)["loss"] if isinstance(model(**batch), dict) else model(**batch).loss
    loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    length = torch.sqrt(sum(g.pow(2).sum() for g in grads))
    if length > clip:
        for g in grads:
            g.mul_(clip / length)
    optimizer.step()
    return float(loss)
""")
right("13.5", "autograd.grad", """
def training_step(model, optimizer, batch, clip=1.0):
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = model(**batch).loss
    for p, g in zip(parameters, torch.autograd.grad(loss, parameters)):
        p.grad = g
    nn.utils.clip_grad_norm_(parameters, max_norm=clip)
    optimizer.step()
    return loss.detach().item()
""")

# --- 13.6 -------------------------------------------------------------------------------------------------------------

TEACH = """
def teach(model, optimizer, new, old, steps):
    losses = []
    for i in range(steps):
        loss = (model(**new[i % len(new)]).loss + model(**old[i % len(old)]).loss) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
"""
change("13.6", "sum instead of mean", TEACH, (" / 2\n", "\n"), truth="the losses are added, not averaged")
change("13.6", "two steps", TEACH, ("        loss = (model(**new[i % len(new)]).loss + model(**old[i % len(old)]).loss) / 2\n        optimizer.zero_grad()\n        loss.backward()\n        optimizer.step()\n", "        total = 0\n        for batch in (new[i % len(new)], old[i % len(old)]):\n            part = model(**batch).loss\n            optimizer.zero_grad()\n            part.backward()\n            optimizer.step()\n            total = total + part\n        loss = total / 2\n"), truth="the optimizer makes two steps, one for each loss")
change("13.6", "old examples forgotten", TEACH, ("(model(**new[i % len(new)]).loss + model(**old[i % len(old)]).loss) / 2", "model(**new[i % len(new)]).loss"), truth="only the new batches are learned")
change("13.6", "old by the length of new", TEACH, ("old[i % len(old)]", "old[i % len(new) % len(old)]"), truth="the old list's batch is chosen with the new list's length")
change("13.6", "stays at the last", TEACH, ("new[i % len(new)]", "new[min(i, len(new) - 1)]"), ("old[i % len(old)]", "old[min(i, len(old) - 1)]"), truth="a list at its end repeats its last batch instead of beginning again")
change("13.6", "stops with the shorter list", TEACH, ("range(steps)", "range(min(steps, len(new), len(old)))"), truth="stops when the shorter list is at its end")
change("13.6", "one batch for ever", TEACH, ("new[i % len(new)]", "new[0]"), ("old[i % len(old)]", "old[0]"), truth="batch 0 is used in every step")
change("13.6", "gradients not cleared", TEACH, ("        optimizer.zero_grad()\n", ""), truth="the gradients are not cleared between steps")
change("13.6", "log of the new loss only", TEACH, ("        loss = (model(**new[i % len(new)]).loss + model(**old[i % len(old)]).loss) / 2", "        first = model(**new[i % len(new)]).loss\n        loss = (first + model(**old[i % len(old)]).loss) / 2"), ("losses.append(loss.item())", "losses.append(first.item())"), truth="the list holds the new batches' losses, not the mean of both")
change("13.6", "tensors in the list", TEACH, ("losses.append(loss.item())", "losses.append(loss.detach())"), truth="the list holds tensors instead of numbers")
change("13.6", "begins with batch 1", TEACH, ("range(steps)", "range(1, steps + 1)"), truth="step 0 uses batch 1 instead of batch 0")
change("13.6", "by turns", TEACH, ("(model(**new[i % len(new)]).loss + model(**old[i % len(old)]).loss) / 2", "model(**(new[i % len(new)] if i % 2 == 0 else old[i % len(old)])).loss"), truth="new and old take turns instead of both in each step")
change("13.6", "clears between the two", TEACH, ("        loss = (model(**new[i % len(new)]).loss + model(**old[i % len(old)]).loss) / 2\n        optimizer.zero_grad()\n        loss.backward()\n", "        first = model(**new[i % len(new)]).loss / 2\n        first.backward()\n        optimizer.zero_grad()\n        second = model(**old[i % len(old)]).loss / 2\n        second.backward()\n        loss = first + second\n"), truth="the new loss's gradient is cleared before the step")
change("13.6", "clipped", TEACH, ("        optimizer.step()", "        nn.utils.clip_grad_norm_(model.parameters(), 0.1)\n        optimizer.step()"), truth="the gradient is clipped, which was not asked for")
right("13.6", "itertools.cycle, two backward passes", """
def teach(model, optimizer, new, old, steps):
    from itertools import cycle, islice

    history = []
    for fresh, known in islice(zip(cycle(new), cycle(old)), steps):
        optimizer.zero_grad(set_to_none=True)
        parts = []
        for batch in (fresh, known):
            part = 0.5 * model(**batch).loss
            part.backward()
            parts.append(float(part))
        optimizer.step()
        history.append(sum(parts))
    return history
""")
