"""The checks of the exercises: the bank of mistakes, and what a learner gets to see."""

import dataclasses
import functools
import importlib
import inspect
import json
import linecache
import os
import random
import re
import sys
import traceback
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from mistakes import RIGHT, WRONG
from PIL import Image

from paligemma import modeling_gemma
from paligemma.exercises import CheckFailed, NotStarted, check, checking, comparing, predict, progress, reset
from paligemma.exercises import undisturbed as undisturbed_module
from paligemma.exercises.checking import attempt, examine, explain_error, same_outcome
from paligemma.exercises.comparing import compare, explain_shape
from paligemma.exercises.exposing import ONE_CASE, exposing_task, matching_task
from paligemma.exercises.predicting import form, show_prediction, understood
from paligemma.exercises.progress import load, predictions, record
from paligemma.exercises.tasks import Case, Finding, Mistake, Prediction, Task, find_task, numbers, tasks_of
from paligemma.exercises.undisturbed import undisturbed
from paligemma.modeling_gemma import rotate_half

CHAPTERS = sorted(path.stem[2:] for path in Path(checking.__file__).parent.glob("ch[0-9][0-9].py"))
for chapter in CHAPTERS:
    if (Path(__file__).parent / "mistakes" / f"ch{chapter}.py").exists():
        importlib.import_module(f"mistakes.ch{chapter}")
TASKS = [task for chapter in CHAPTERS for task in tasks_of(chapter)]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    """Progress is written into the working directory."""
    monkeypatch.chdir(tmp_path)


def ids(entries):
    counts = defaultdict(int)
    for entry in entries:
        counts[entry[0]] += 1
        yield f"{entry[0]}-{counts[entry[0]]}"


def finding_for(task_id, thing) -> Finding | None:
    with undisturbed():
        return examine(find_task(task_id), thing, seeds=(0, 1, 2))


# --- the bank ------------------------------------------------------------------------------------------------

named: dict[tuple[str, int], tuple[str, str]] = {}


@pytest.mark.parametrize("number, entry", list(enumerate(WRONG)), ids=list(ids(WRONG)))
def test_wrong_solutions_are_caught(number, entry):
    task_id, name, thing = entry
    finding = finding_for(task_id, thing)
    assert finding is not None, f"{task_id}: {name!r} passes the check"
    named[task_id, number] = (name, finding.name)
    assert finding.observed, "the message must say what was seen"
    assert not re.search("paligemma/|site-packages", finding.observed), "no frames that are not theirs"


def test_mistakes_get_their_names():
    """At least 95 in 100 of the wrong solutions are given the right name."""
    if len(named) < len(WRONG):
        pytest.skip("only part of the bank was run")
    pairs = [(task, *names) for (task, _), names in named.items()]
    wrong = [f"{task}: {expected!r} is called {got!r}" for task, expected, got in pairs if expected != got]
    assert len(wrong) <= 0.05 * len(WRONG), f"{len(wrong)} of {len(WRONG)}:\n" + "\n".join(wrong)


@pytest.mark.parametrize("entry", RIGHT, ids=list(ids(RIGHT)))
def test_right_solutions_in_other_styles_pass(entry):
    finding = finding_for(*entry)
    assert finding is None, f"{entry[0]} refused: {finding}"


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.id)
def test_the_bank_is_large_enough(task):
    wrong = [entry for entry in WRONG if entry[0] == task.id]
    right = [entry for entry in RIGHT if entry[0] == task.id]
    assert len(wrong) >= 5 and len(right) >= 2, f"{len(wrong)} wrong and {len(right)} right solutions: 5 and 2 at least"


# --- the tasks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.id)
def test_a_task_is_well_made(task):
    assert re.fullmatch(r"\d\d\.\d", task.id) and task.points > 0 and task.minutes > 0 and task.see
    assert task.level in ("easy", "medium", "hard") and task.importance in ("core", "deepen", "extra", "")
    assert 3 <= len(tasks_of(task.id[:2])) <= 7
    cases = list(task.cases(0))
    wanted = [attempt(task, task.reference, case) for case in cases]
    assert all(want.error is None for want in wanted)
    for mistake in task.mistakes:
        assert mistake.message.strip(), f"{mistake.name!r} has no message"
        for imitation in mistake.imitations:
            imitated = [attempt(task, imitation, case) for case in cases]
            same = [
                same_outcome(got, want, case.tolerance or task.tolerance, case)
                for got, want, case in zip(imitated, wanted, cases, strict=True)
            ]
            assert not all(same), f"the imitation of {mistake.name!r} is right on every input"
            # An imitation that fails must fail as a learner's would, not by a slip in the task's own file.
            for outcome in imitated:
                assert not isinstance(outcome.error, NameError | ImportError | UnboundLocalError), outcome.error


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.id)
def test_the_reference_passes_on_hidden_inputs(task):
    with undisturbed():
        assert examine(task, renamed(task.reference), seeds=(11, 12)) is None


FIXED = {
    "08.1": "five tokens by hand, no input at all",
    "12.1": "five boxes",
    "10.2": "five rows to match",
    "11.5": "five inputs",
    "13.3": "four logs to match",
    "14.5": "six maps to match",
    "15.2": "five files",
    "16.7": "five points to match",
}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.id)
def test_hidden_inputs_have_other_sizes(task):
    """Sizes that are written into a solution pass the shown check, and must not pass the hidden one."""
    shown, hidden = (
        set().union(*(sizes_in((case.inputs, case.init)) for seed in seeds for case in task.cases(seed)))
        for seeds in ((0, 1, 2), (11, 12, 13, 14))
    )
    fixed = task.id in FIXED or list(task.cases(0)) == [ONE_CASE]  # the learner writes the inputs, or reads a figure
    assert hidden - shown or fixed, f"{task.id}: nothing in the hidden inputs has a size of its own"


def sizes_in(value) -> set:
    """Shapes, lengths and whole numbers, at any depth."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return {tuple(value.shape)}
    if isinstance(value, Image.Image):
        return {value.size}
    if isinstance(value, int) and not isinstance(value, bool):
        return {value}
    if isinstance(value, str):
        return {("text", len(value))}
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return {("list", len(value))}.union(*map(sizes_in, value))
    return set()


def test_a_size_that_is_written_in_fails_the_hidden_check():
    def rms_norm(x, eps=1e-6):
        features = {7: 7, 8: 8}[x.shape[-1]]
        return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) / features + eps)

    check("06.1", rms_norm)
    with pytest.raises(CheckFailed, match="KeyError"):
        check("06.1", rms_norm, hidden=True)


def renamed(reference):
    """The reference as if a learner had written it."""
    if isinstance(reference, type):
        own = {name: handed_on(value) for name, value in vars(reference).items() if inspect.isfunction(value)}
        return type(reference.__name__, (reference,), {**own, "__module__": "__main__"})
    return (lambda *inputs: reference(*inputs)) if callable(reference) else reference


def handed_on(method):
    return lambda *arguments, **named: method(*arguments, **named)


# --- what a learner sees -------------------------------------------------------------------------------------


def message(task_id, thing) -> str:
    with pytest.raises(CheckFailed) as caught:
        check(task_id, thing)
    assert caught.value._render_traceback_() == [str(caught.value)], "Jupyter shows the message alone"
    return str(caught.value)


def test_a_message_says_what_was_seen_what_it_means_and_where_to_look():
    def rms_norm(x, eps=1e-6):
        return x / (x.square().mean(-1, keepdim=True).sqrt() + eps)

    text = message("06.1", rms_norm)
    assert text.startswith("06.1 · divide by the root mean square: not yet")
    text = " ".join(text.split())
    assert re.search(r"seen .*about 1e-3 in size.*largest difference 0?\.\d+ \(allowed 1e-05\)", text)
    assert "eps is added after the root" in text and "see chapter 06" in text


def test_a_learners_error_is_shown_at_the_learners_line():
    def helper(x):
        return x @ x

    def rms_norm(x, eps=1e-6):
        return helper(x)

    text = message("06.1", rms_norm)
    line = helper.__code__.co_firstlineno + 1
    assert "\n             return x @ x\n" in text, "a line of code keeps its indentation"
    text = " ".join(text.split())
    assert f"in test_exercises.py, line {line}: return x @ x" in text
    assert "RuntimeError" in text and "two shapes do not fit" in text and "checking.py" not in text


@pytest.mark.parametrize("dots", [False, True])
def test_what_is_not_started_is_not_scolded(dots):
    def untouched(x, eps=1e-6):
        # YOUR CODE HERE
        raise NotImplementedError()

    def with_dots(x, eps=1e-6):
        square = ...
        return x / square

    class Module(torch.nn.Module):
        def __init__(self, dim, eps=1e-6):
            super().__init__()
            # YOUR CODE HERE
            raise NotImplementedError()

    for task_id, thing in (("06.1", with_dots if dots else untouched), ("06.3", Module), ("06.1", ...)):
        with pytest.raises(NotStarted):
            check(task_id, thing)


def test_what_einsum_says_of_an_ellipsis_is_no_line_left_to_write():
    with pytest.raises(RuntimeError) as raised:
        torch.einsum("bnd->bn", torch.ones(2, 3))
    assert explain_error(raised.value).name == "raised"
    with pytest.raises(TypeError) as raised:
        torch.ones(2) + ...
    assert explain_error(raised.value).name == "not started"


def test_what_is_not_a_solution_at_all():
    from paligemma.modeling_gemma import GemmaRMSNorm

    assert "pass the class itself" in message("06.3", GemmaRMSNorm(4))
    assert "pass the function itself" in message("06.1", torch.ones(3))
    assert "it is to be yours" in message("06.3", GemmaRMSNorm)
    with pytest.raises(ValueError, match="there is no task '06.9'; there are: 06.1"):
        check("06.9", lambda x: x)
    with pytest.raises(ValueError, match="no exercises"):
        check("99.1", lambda x: x)


def test_a_module_without_forward_is_not_called_unstarted():
    class Norm(torch.nn.Module):
        def __init__(self, dim, eps=1e-6):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(dim))

        def froward(self, x):
            return x

    assert "no method called forward" in message("06.3", Norm)


def test_open_swaps_are_refused():
    from paligemma.swap import swap

    with swap(None, rotate_half=lambda x: x):
        with pytest.raises(ValueError, match="a swap is open"):
            check("06.1", lambda x: x)


def test_the_learners_random_numbers_are_undisturbed():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    check("06.1", lambda x, eps=1e-6: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))
    assert torch.equal(torch.rand(3), expected)


def test_what_torch_wraps_itself_is_nobodys_doing(capsys):
    """The first optimizer of a class gets its `step` wrapped by torch."""
    from paligemma.training.muon import Muon

    def rms_norm(x, eps=1e-6):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)

    check("06.1", rms_norm)  # remembers the package as it is
    Muon([torch.nn.Parameter(torch.zeros(2, 2))])
    check("06.1", rms_norm)
    assert "replaced since" not in capsys.readouterr().out


def test_passing_shows_something(capsys):
    assert check("06.1", lambda x, eps=1e-6: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)) is None
    text = capsys.readouterr().out
    assert text.startswith("06.1 · divide by the root mean square: passed (2 points)\n") and len(text.splitlines()) > 1


def test_a_solution_that_overwrites_its_own_tensors_passes_and_is_told(capsys):
    def softmax(x, dim):
        shifted = x - x.amax(dim, keepdim=True)
        shifted.exp_()
        return shifted.div_(shifted.sum(dim, keepdim=True))

    check("03.1", softmax)
    assert "passed" in (said := capsys.readouterr().out) and "training would stop here" in said


def test_the_display_of_a_layer_norm_keeps_to_its_docstring(capsys):
    def layer_norm(x, weight, bias, eps=1e-6):
        var, mean = torch.var_mean(x, dim=-1, correction=0)
        return torch.einsum("bnd,bn->bnd", x - mean[..., None], (var + eps).rsqrt()) * weight + bias

    check("04.1", layer_norm)
    assert "[1.0, 2.0, 3.0, 6.0] -> [" in (said := capsys.readouterr().out) and "cannot be shown" not in said


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.id)
def test_every_reward_is_worth_a_line(task, capsys):
    assert task.reward is not None
    task.reward(renamed(task.reference))
    assert capsys.readouterr().out.strip() or task.reward.__doc__


# --- what a learner's code does to everything else ----------------------------------------------------------------


def right_norm(x, eps=1e-6):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def wrong_norm(x, eps=1e-6):
    return x * torch.rsqrt(x.pow(2).mean() + eps)


def everything_set():
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.autocast("cpu").__enter__()
    torch.set_grad_enabled(False)
    torch.inference_mode().__enter__()
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    os.chdir("/")


def torch_replaced():
    torch.softmax = torch.rsqrt = torch.randn = torch.isfinite = lambda *arguments, **named: torch.zeros(1)
    torch.Tensor.eq = torch.Tensor.abs = torch.Tensor.all = torch.Tensor.__eq__ = lambda *arguments, **named: True
    torch.no_grad = torch.equal = None
    np.array_equal = np.asarray = lambda *arguments, **named: True
    Image.Image.resize = Image.Image.tobytes = lambda self, *arguments: b""


def package_replaced():
    modeling_gemma.GemmaRMSNorm.forward = lambda self, x: x
    modeling_gemma.rotate_half = lambda x: x
    comparing.compare = lambda *arguments: None
    checking.same_inputs = lambda *arguments: True
    checking.Trial.gives_the_right_results = lambda self: None
    comparing.FORM = ()


def streams_closed():
    sys.stdout = sys.stderr = None
    del sys.modules["linecache"]
    linecache.getline = traceback.extract_tb = None


@pytest.mark.parametrize("deed", [everything_set, torch_replaced, package_replaced, streams_closed])
def test_a_check_undoes_what_the_code_does(deed, monkeypatch):
    """It neither lets a wrong solution pass nor refuses a right one, then or later, and nothing is left behind."""
    monkeypatch.setitem(sys.modules, "linecache", linecache)
    undisturbed_module.ORIGINALS.remember_package()
    with undisturbed():  # the same settings before and after, whatever other tests have left
        before, detours = undisturbed_module.settings(), torch._C._len_torch_function_stack()
        for _ in range(2):

            def solution(x, eps=1e-6):
                result = right_norm(x, eps)
                deed()
                return result

            def mistaken(x, eps=1e-6):
                result = wrong_norm(x, eps)
                deed()
                return result

            assert finding_for("06.1", solution) is None
            assert finding_for("06.1", mistaken) is not None
            assert finding_for("06.3", renamed(modeling_gemma.GemmaRMSNorm)) is None
            after = undisturbed_module.settings()
            for name in ("torch", "numpy"):
                before.pop(name, None), after.pop(name)
            assert after == before
        assert not undisturbed_module.ORIGINALS.replaced()
    assert torch._C._len_torch_function_stack() == detours, "a device that was set is in the way of all of torch"


def test_what_was_replaced_before_is_told_and_comes_back(capsys, monkeypatch):
    """The check works with torch's own; the learner's replacement is theirs, and there again afterwards."""
    strange = lambda *arguments: torch.zeros(1)  # noqa: E731
    monkeypatch.setattr(torch, "rsqrt", strange)
    check("06.1", lambda x, eps=1e-6: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))
    assert "replaced since the course was imported, and not used by this check: torch.rsqrt" in capsys.readouterr().out
    assert torch.rsqrt is strange


class Silent(Exception):
    def __str__(self):
        raise RuntimeError("no")


@pytest.mark.parametrize("error, said", [
    (SystemExit(3), "calls exit()"), (GeneratorExit(), "GeneratorExit"), (BaseException("odd"), "BaseException: odd"),
    (KeyboardInterrupt(), "was interrupted while your code ran"), (Silent(), "Silent: (its message cannot be shown"),
    (RecursionError("deep"), "RecursionError"),
], ids=lambda value: type(value).__name__)  # fmt: skip
def test_no_error_goes_through_a_check(error, said):
    def raises(x, eps=1e-6):
        raise error

    assert said in " ".join(message("06.1", raises).split())


def test_a_reward_that_fails_does_not_undo_the_pass(capsys):
    calls = []

    def fails_late(x, eps=1e-6):
        calls.append(x.shape)
        if len(x.shape) and x.shape[0] not in (2, 3):
            raise ValueError("only two or three")
        return right_norm(x, eps)

    task = find_task("06.1")
    checking.show_reward(dataclasses.replace(task, reward=lambda solution: solution(torch.ones(1, 4))), fails_late)
    assert "passed all the same; what comes with it cannot be shown: ValueError: only two" in capsys.readouterr().out


def test_rules_that_call_the_code_are_protected():
    def rule(solution):
        return solution(torch.ones(7))

    def picky(x, eps=1e-6):
        if x.ndim == 1:
            raise SystemExit
        return right_norm(x, eps)

    found = examine(dataclasses.replace(find_task("06.1"), extra=[rule], cache={}), picky, seeds=(0,))
    assert found.name == "raised" and "exit()" in found.observed


def test_a_loop_without_end_is_stopped_by_its_model():
    def forever(next_logits, prompt, max_new_tokens, eos, pad):
        while True:
            next_logits(prompt)

    assert finding_for("11.4", forever).name == "no end"


def test_the_failing_input_can_be_had():
    text = message("06.1", wrong_norm)
    last = check.last
    assert torch.equal(last.yours, wrong_norm(*last.inputs)) and torch.allclose(last.expected, right_norm(*last.inputs))
    assert max(map(len, text.splitlines())) <= 90
    check("06.1", right_norm)
    assert check.last is None


def test_nobody_passes_by_naming_the_package():
    class Mine(modeling_gemma.GemmaRMSNorm):
        pass

    class WithInit(modeling_gemma.GemmaRMSNorm):
        def __init__(self, dim, eps=1e-6):
            super().__init__(dim, eps)

    for thing in (Mine, WithInit, functools.partial(modeling_gemma.GemmaRMSNorm)):
        assert finding_for("06.3", thing).name in ("package's own", "class expected")
    assert finding_for("07.2", modeling_gemma.rotate_half).name == "package's own"
    assert finding_for("07.2", functools.wraps(modeling_gemma.rotate_half)(lambda x: x)).name == "package's own"
    assert finding_for("07.2", lambda x: rotate_half(x)).name == "package's own"


def test_the_suspect_is_told_how_many_faults_and_no_more():
    for task in TASKS:
        suspect = next((mistake for mistake in task.mistakes if "faults are left" in mistake.message), None)
        if suspect is not None:
            assert re.match(r"all (three|four) faults are left: take the input above", suspect.message), task.id
            two = [mistake.message for mistake in task.mistakes if mistake.name == "2 left"]
            assert all(re.search(r"faults are left\. Mended: ", message) for message in two), task.id


# --- symptoms without a named mistake --------------------------------------------------------------------------


def symptom(got, want, sizes=None, tolerance=1e-5):
    finding = compare(got, want, tolerance, Case(sizes=sizes or {}), "")
    return finding.name if finding else None


def test_symptoms():
    x = torch.arange(24.0).reshape(2, 3, 4) - 7.3
    assert symptom(x + 1e-7, x) is None
    assert symptom(x * 2, x) == "constant factor"
    assert symptom(-x, x) == "constant factor"
    assert symptom(x + 1, x) == "constant difference"
    assert symptom(x.double(), x) == "dtype"
    assert symptom(x / 0, x) == "not finite"
    assert symptom(torch.zeros_like(x), x) == "all zeros"
    assert symptom(x.numpy(), x) == "type"
    assert symptom([x, x], (x,)) == "structure"
    assert symptom([x], (x,)) is None
    assert symptom({"a": x}, {"b": x}) == "structure"
    assert symptom(x.flip(0), x) == "reversed"
    assert symptom(x.roll(1, -1), x) == symptom(x.roll(1, 1), x) == "right numbers in other places"
    square = x[0, :, :3].contiguous()
    assert symptom(square.T, square) == "transposed"
    assert symptom(x > 0, x <= 0) == "upside down"
    assert symptom(x + torch.randn_like(x), x) == "values"
    assert symptom("a", "b") == "values" and symptom("a", "a") is None
    assert symptom(2.0, 2) is None and symptom(torch.tensor(2.0), 2.0) is None and symptom(3, 2.0) == "values"
    masked = torch.tensor([1.0, -torch.inf])
    assert symptom(masked.clone(), masked) is None
    for dtype in (torch.float16, torch.bfloat16):
        finding = compare(x.sin().to(dtype).float(), x.sin(), 1e-5, Case(), "")
        assert finding.name == "rounded" and str(dtype).split(".")[1] in finding.explanation
    first = x.clone()
    first[1:] += torch.randn_like(first[1:])
    assert symptom(first, x, {"B": 2}) == "row 0 only"
    ids = torch.arange(40).reshape(5, 8)
    assert "34 of 40 numbers differ" in compare(ids.where(ids < 6, ids + 1), ids, 0, Case(), "").observed
    longer = compare(torch.cat([x, x], -1), x, 1e-5, Case(), "")
    assert "4 columns too many, behind the right ones" in longer.observed
    assert "1 row missing at the end" in compare(x[:, :2], x, 1e-5, Case(), "").observed
    assert symptom((x + 1, x[0]), (x, x)) == "shape", "a wrong shape anywhere is told before wrong values"
    table = compare(torch.zeros(2, 2), torch.eye(2), 1e-5, Case(), "").observed
    assert "yours    expected" in table and "  0 0    1 0" in table
    assert symptom((n for n in [1]), (1,)) == "type"


def test_rounding_is_not_taken_for_another_mistake():
    """Results of the reference that went through float16 or bfloat16 are called rounded, whatever their order."""
    for seed in range(20):
        want = numbers(seed, 4, 6)
        for dtype in (torch.float16, torch.bfloat16):
            assert symptom(want.to(dtype).float(), want) == "rounded"


def test_shapes_are_named_and_permutations_recognised():
    case = Case(sizes={"B": 2, "H": 3, "L": 5, "T": 7})
    finding = explain_shape(torch.zeros(2, 3, 7, 5), torch.zeros(2, 3, 5, 7), case)
    assert "[B=2, H=3, T=7, L=5], expected [B=2, H=3, L=5, T=7]" in finding.observed
    assert finding.name == "axes in another order" and "query and key" in finding.explanation
    assert "length 1" in explain_shape(torch.zeros(2, 5), torch.zeros(2, 1, 5), case).explanation
    assert "as many as expected" in explain_shape(torch.zeros(2, 15), torch.zeros(6, 5), case).explanation
    factor = compare(torch.ones(4) * 2, torch.ones(4), 1e-5, Case(sizes={"d": 4}), "")
    assert "the square root of d (d is 4 here)" in factor.observed


def test_random_results_and_changed_inputs():
    def task(reference, **more):
        cases = lambda seed: [Case((numbers(seed, 3, 4),))]  # noqa: E731
        return Task("00.0", "t", 1, 1, "easy", reference, cases, see="x", **more)

    state = []

    def counts(x):
        state.append(1)
        return x * 2 if len(state) <= 3 else x * 3

    assert examine(task(lambda x: x * 2), counts, seeds=(0, 1, 2)).name == "different each time"
    assert examine(task(lambda x: x * 2), lambda x: x.mul_(2), seeds=(0,)).name == "input changed"
    twice = Mistake("tripled", "…", lambda x: x * 3)
    found = examine(task(lambda x: x * 2, mistakes=[twice]), lambda x: x.mul_(3), seeds=(0,))
    assert found.name == "tripled" and "changes its input" in found.observed


# --- progress --------------------------------------------------------------------------------------------------


def good(x, eps=1e-6):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def test_progress_is_kept_counted_and_reset(capsys):
    with pytest.raises(CheckFailed):
        check("06.1", lambda x, eps=1e-6: x)
    check("06.1", good)
    with pytest.raises(CheckFailed):
        check("06.1", lambda x, eps=1e-6: x)
    entry = load()["06.1"]
    assert entry["passed"] and entry["tries"] == 2
    capsys.readouterr()
    progress("06")
    assert capsys.readouterr().out.startswith("chapter 06  ●○○○○   1 of 5 tasks, 2 of ")
    progress()
    assert "together 2 of" in capsys.readouterr().out
    record("06.2", passed=True)
    reset("06.1")
    progress("06")
    assert "○●○○○   1 of 5 tasks" in capsys.readouterr().out
    reset("06")
    assert load() == {}
    reset()
    assert not list(Path().iterdir())


def test_a_line_cut_off_by_a_crash_costs_that_line_alone():
    record("06.1", passed=True)
    with open("exercises-progress.jsonl", "a", encoding="utf-8") as file:
        file.write('{"task": "06.2", "pas')
    record("06.3", passed=True)
    assert {task: entry["passed"] for task, entry in load().items()} == {"06.1": True, "06.3": True}


def test_two_notebooks_at_once_lose_nothing():
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: record(f"06.{number % 5}", passed=number >= 40), range(45)))
    lines = Path("exercises-progress.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines if line]
    assert sorted(entry["task"] for entry in entries) == sorted(f"06.{number % 5}" for number in range(45))
    assert all(entry["passed"] for entry in load().values())


def test_hidden_checks_leave_progress_alone():
    check("06.1", good, hidden=True)
    assert not list(Path().iterdir())


# --- predictions -----------------------------------------------------------------------------------------------

COUNTED = Prediction("Of 24 captions, as many stay:", truth=lambda: 17, tempting=4, why="The scale matters late.")


@pytest.fixture
def predicted_task(monkeypatch):
    """Task 06.1, with a question."""
    task = dataclasses.replace(find_task("06.1"), prediction=COUNTED)
    for module in (checking, sys.modules["paligemma.exercises.predicting"]):
        monkeypatch.setattr(module, "find_task", lambda task_id: task)
    return task


def test_a_prediction_is_kept_and_shown_beside_the_truth(predicted_task, capsys):
    predict("06.1", ...)
    said = capsys.readouterr().out
    assert COUNTED.question in said and "no prediction yet" in said and "(a number)" in said and predictions() == {}
    predict("06.1", 3)
    assert COUNTED.question in capsys.readouterr().out
    predict("06.1", np.int64(5))
    assert predictions() == {"06.1": 5} and load() == {}
    with pytest.raises(CheckFailed):
        check("06.1", wrong_norm)
    assert "17" not in capsys.readouterr().out, "the truth is not told before the task is passed"
    check("06.1", right_norm)
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("Of 24 captions, as many stay:")
    assert [line.split() for line in lines[at + 1 : at + 4]] == [
        ["you", "predicted", "5"], ["the", "truth", "17"], ["a", "tempting", "answer", "4"]
    ]  # fmt: skip
    assert lines[at + 4] == "The scale matters late."
    predict("06.1", 17)
    assert "is passed already" in capsys.readouterr().out and predictions() == {"06.1": 5}
    record("06.2", passed=True)
    reset("06.2")
    assert predictions() == {"06.1": 5}, "forgetting one task leaves the others' predictions"
    reset("06.1")
    assert predictions() == {}


def test_without_a_prediction_the_truth_is_shown_all_the_same(capsys):
    show_prediction(dataclasses.replace(find_task("06.1"), prediction=COUNTED))
    assert re.search(r"you predicted +nothing\n +the truth +17", capsys.readouterr().out)


@pytest.mark.parametrize("guess, expected", [
    ("many", "expected a number"), (True, "expected a number"), (None, "expected a number"),
    ({"a": 1}, "expected a number"),
])  # fmt: skip
def test_predictions_of_another_kind_are_refused(guess, expected):
    with pytest.raises(ValueError, match=expected):
        understood(COUNTED, guess)


def test_predictions_of_words_and_of_several():
    both = Prediction(
        "?", {"first": "colours", "captions": 8}, {"first": "sizes", "captions": 1}, "", ["colours", "sizes"]
    )
    assert form(both.tempting, both.options) == "first: one of 'colours', 'sizes'; captions: a number"
    assert form({"causal": 1, "everything": 2}, ()) == "a number for each"
    assert understood(both, {"first": "sizes", "captions": 2.5}) == {"first": "sizes", "captions": 2.5}
    with pytest.raises(ValueError, match="'size', expected one of 'colours', 'sizes'"):
        understood(both, {"first": "size", "captions": 2})
    with pytest.raises(ValueError, match="expected a dict with the keys"):
        understood(both, {"first": "sizes"})
    with pytest.raises(ValueError, match="asks for no prediction"):
        predict("06.1", 4)


def test_grading_keeps_no_predictions(predicted_task, monkeypatch):
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    predict("06.1", 4)
    assert not list(Path().iterdir())


# --- inputs that expose, and figures to be read ----------------------------------------------------------------


def exposing(**more) -> Task:
    """The largest of a row: wrong versions take the first, or the largest without its sign."""
    return exposing_task(
        "00.0", lambda x: x.max(), {"first": lambda x: x[0], "unsigned": lambda x: x.abs().max()},
        lambda: {"first": (torch.tensor([1.0, 2.0]),), "unsigned": (torch.tensor([1.0, -2.0]),)},
        lambda x: None if x.ndim == 1 and len(x) else "expected a row of numbers",
        title="t", points=1, minutes=1, level="easy", see="x", **more,
    )  # fmt: skip


def test_an_input_exposes_its_own_version_and_no_other():
    def found(first, unsigned):
        finding = examine(exposing(), lambda: {"first": first, "unsigned": unsigned}, seeds=(0,))
        return finding and finding.name

    row = torch.tensor
    assert found((row([1.0, 2.0]),), (row([1.0, -2.0]),)) is None
    assert found(row([1.0, 2.0]), row([1.0, -2.0])) is None, "a single argument needs no brackets"
    assert found((row([2.0, 1.0]),), (row([1.0, -2.0]),)) == "not exposed"
    assert found((row([-3.0, 2.0]),), (row([1.0, -2.0]),)) == "exposes others"
    assert found((row([]),), (row([1.0, -2.0]),)) == "not an input"
    assert found((row([1.0]), 3), (row([1.0, -2.0]),)) == "not an input"
    assert examine(exposing(), lambda: {"first": row([1.0])}, seeds=(0,)).name == "structure"
    assert examine(exposing(), lambda: [], seeds=(0,)).name == "type"
    text = examine(exposing(), lambda: {"first": row([-3.0, 2.0]), "unsigned": row([1.0, -2.0])}, seeds=(0,)).observed
    assert "1 of 2 inputs expose their version and no other" in text and "exposes it, and unsigned, too" in text


@pytest.mark.parametrize("chapter, name", [
    ("01", "EXPOSE"), ("02", "EXPOSE"), ("04", "EXPOSE"), ("06", "EXPOSE"), ("08", "EXPOSE"), ("11", "EXPOSE"),
    ("12", "WRITE"), ("15", "STRICT"),
])  # fmt: skip
def test_inputs_that_expose_one_version_alone_exist(chapter, name):
    """What a task asks for has to be possible: the reference's inputs expose their own version and no other."""
    task = getattr(importlib.import_module(f"paligemma.exercises.ch{chapter}"), name)
    exposed = task.use(task.reference)
    assert exposed == {version: [version] for version in exposed}


def test_a_sentence_about_a_table_stands_on_a_line_of_its_own():
    want = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    observed = compare(want[:, [1, 0, 2]], want, 1e-5, ONE_CASE, "").observed
    assert observed.splitlines()[-1] == "each row holds the right numbers, at other places of the row"
    assert "; every number is 2 times" in compare(2 * want[:1], want[:1], 1e-5, ONE_CASE, "").observed


def test_a_part_of_a_result_is_called_by_its_name():
    parts = {"written": [1, 2], "fed": 1}
    assert compare({**parts, "written": [1]}, parts, 1e-5, ONE_CASE, "").observed.startswith("`written`: 1 values")


def test_what_may_be_exposed_together_is_neither_counted_nor_blamed():
    task = exposing(together={"unsigned": {"first"}})
    both, first = (torch.tensor([-3.0, 2.0]),), (torch.tensor([1.0, 2.0]),)
    assert examine(task, lambda: {"first": first, "unsigned": both}, seeds=(0,)) is None
    text = examine(task, lambda: {"first": both, "unsigned": both}, seeds=(0,)).observed
    assert "1 of 2 inputs expose" in text and "Your input for first exposes it, and unsigned, too" in text


def test_panels_are_matched():
    task = matching_task(
        "00.0", {"A": "one", "B": "two", "C": "three"}, {frozenset({"one", "two"}): "count them"},
        title="t", points=1, minutes=1, level="easy", see="x",
    )  # fmt: skip

    def found(**answer):
        return examine(task, lambda: answer, seeds=(0,))

    assert found(A="one", B="two", C="three") is None
    exchanged = found(A="two", B="one", C="three")
    assert exchanged.name == "taken for another" and "count them" in exchanged.explanation
    assert "1 of 3 panels are right" in exchanged.observed
    twice = found(A="one", B="one", C="three")
    assert twice.name == "a name twice" and "'one' stands at more than one of the panels" in twice.observed
    assert found(A="two", B="three", C="one").name == "taken for another"
    assert found(A="three", B="two", C="one").name == "not matched"
    assert found(A="one", B="two", C="four").name == "unknown name"
    empty = found()
    assert empty.name == "structure" and "each with one name" in empty.explanation
    assert found(A="one", B="two").name == "structure"
    assert found(A="one", B="two", C=...).name == "not started"


def test_words_kept():
    from paligemma.exercises.watching import captions_of, count_words, trained, whole_captions, words_kept

    if trained() is None:
        pytest.skip("the trained model is not in assets/tiny-paligemma")
    assert count_words("a small red ring above a small red star", ("red", "ring", "blue")) == {
        "red": 2,
        "ring": 1,
        "blue": 0,
    }
    assert words_kept(4, captions=list(whole_captions(4))) == {
        "captions": 4, "sizes": 1, "colours": 1, "shapes": 1, "relations": 1
    }  # fmt: skip
    kept = words_kept(4, captions=[caption.replace("small", "large") for caption in captions_of(*trained(), 4)])
    assert kept["sizes"] < 1 and kept["shapes"] == 1 and kept["captions"] < 4
