"""Chapters 01 to 08: what a check says of solutions by somebody who had not read it, in strangers_01_08.py."""

import collections

import pytest
import torch
from strangers_01_08 import HEADS, SOLUTIONS, SOLVES

from paligemma.exercises import check
from paligemma.exercises.checking import examine, explain_error
from paligemma.exercises.tasks import find_task
from paligemma.exercises.undisturbed import undisturbed

BY_TASK = collections.defaultdict(list)
for entry in SOLUTIONS:
    BY_TASK[entry[0]].append(entry[1:])


@pytest.mark.parametrize("task_id", sorted(BY_TASK))
def test_wrong_ones_are_named_and_right_ones_accepted(task_id, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # progress is written into the working directory
    faults = []
    for title, source, phrase in BY_TASK[task_id]:
        space = {}
        exec(HEADS[task_id[:2]] + source, space)
        with undisturbed():
            finding = examine(find_task(task_id), eval(SOLVES[task_id], space), seeds=(0,))
        if not phrase:
            faults += [f"{title}: refused, {finding}"] if finding is not None else []
        elif finding is None:
            faults.append(f"{title}: passes")
        elif phrase not in " ".join(f"{finding.observed} {finding.explanation}".split()):
            faults.append(f"{title}: {phrase!r} is not in {finding.observed!r}, {finding.explanation!r}")
    assert not faults, "\n".join(faults)


def test_a_solution_that_overwrites_its_own_tensors_passes_and_is_told(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def softmax(x, dim):
        shifted = x - x.amax(dim, keepdim=True)
        shifted.exp_()
        return shifted.div_(shifted.sum(dim, keepdim=True))

    check("03.1", softmax)
    assert "passed" in (said := capsys.readouterr().out) and "training would stop here" in said


def test_the_display_of_a_layer_norm_keeps_to_its_docstring(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def layer_norm(x, weight, bias, eps=1e-6):
        var, mean = torch.var_mean(x, dim=-1, correction=0)
        return torch.einsum("bnd,bn->bnd", x - mean[..., None], (var + eps).rsqrt()) * weight + bias

    check("04.1", layer_norm)
    assert "[1.0, 2.0, 3.0, 6.0] -> [" in (said := capsys.readouterr().out) and "cannot be shown" not in said


def test_what_einsum_says_of_an_ellipsis_is_no_line_left_to_write():
    with pytest.raises(RuntimeError) as raised:
        torch.einsum("bnd->bn", torch.ones(2, 3))
    assert explain_error(raised.value).name == "raised"
    with pytest.raises(TypeError) as raised:
        torch.ones(2) + ...
    assert explain_error(raised.value).name == "not started"
