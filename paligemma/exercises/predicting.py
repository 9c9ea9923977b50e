"""Predict, then measure: what you expect is kept with your progress, and shown beside the truth when you have passed.

    predict("16.3", 4)     # before the check; the last prediction before passing counts

Nobody is graded for being right. A task's Prediction (tasks.py) holds the question, the truth, and the answer that
suggests itself with the reason why it is not so.
"""

import numbers
import textwrap

from .progress import load, note, predictions
from .tasks import Prediction, Task, find_task, tasks_of
from .undisturbed import say


def predict(task_id: str, guess=...) -> None:
    """Keep what you expect for the question of a task: a number, one of the words it names, or a dict of these.

    The question is printed, with the dots and with a guess.
    Raises ValueError for a task that asks for no prediction, and for a guess that is no answer to its question.
    """
    task = find_task(task_id)
    if task.prediction is None:
        those = [other.id for other in tasks_of(task.id[:2]) if other.prediction is not None]
        raise ValueError(f"task {task.id} asks for no prediction; those that do: {', '.join(those) or 'none here'}")
    say(wrapped(f"{task.id}: {task.prediction.question}"))
    if guess is ... or (isinstance(guess, dict) and any(value is ... for value in guess.values())):
        answer = form(task.prediction.tempting, task.prediction.options)
        say(wrapped(f"no prediction yet; put yours in place of the dots ({answer}): it costs nothing to be wrong"))
        return
    guess = understood(task.prediction, guess)
    if load().get(task.id, {}).get("passed"):
        say(f"{task.id} is passed already, so this prediction is not kept; `reset({task.id!r})` begins it afresh.")
        return
    note({"task": task.id, "predicted": guess})
    say(f"you predict {spoken(guess)}; the check below shows it beside the truth")


def form(wanted, options) -> str:
    """What an answer looks like, in words: "a number", "one of 'tokens', 'examples'"."""
    if isinstance(wanted, dict) and not options:
        return "a number for each"
    if isinstance(wanted, dict):
        return "; ".join(f"{key}: {form(value, options)}" for key, value in wanted.items())
    return f"one of {', '.join(map(repr, options))}" if isinstance(wanted, str) else "a number"


def understood(prediction: Prediction, guess):
    """The guess, when it is of the kind that is asked for. Raises ValueError when it is not."""
    wanted = prediction.tempting
    if isinstance(wanted, dict):
        if not isinstance(guess, dict) or set(guess) != set(wanted):
            seen = sorted(map(str, guess)) if isinstance(guess, dict) else repr(guess)
            raise ValueError(f"the prediction is {seen}, expected a dict with the keys {sorted(map(str, wanted))}")
        return {key: same_kind(wanted[key], guess[key], prediction.options) for key in wanted}
    return same_kind(wanted, guess, prediction.options)


def same_kind(wanted, guess, options):
    if isinstance(wanted, str):
        if guess not in options:
            raise ValueError(f"the prediction is {guess!r}, expected one of {', '.join(map(repr, options))}")
        return guess
    if isinstance(guess, bool) or not isinstance(guess, numbers.Real):
        raise ValueError(f"the prediction is {guess!r}, expected a number")
    return int(guess) if float(guess).is_integer() else float(guess)


def show_prediction(task: Task) -> None:
    """After passing: the learner's prediction, the truth, the answer that suggests itself, and why."""
    prediction = task.prediction
    truth = prediction.truth() if callable(prediction.truth) else prediction.truth
    guess = predictions().get(task.id)
    say(f"\n{wrapped(prediction.question)}")
    rows = [("you predicted", "nothing" if guess is None else spoken(guess)), ("the truth", spoken(truth))]
    if not same_answer(prediction.tempting, truth):
        rows.append(("a tempting answer", spoken(prediction.tempting)))
    for name, answer in rows:
        say(f"  {name:<18} {answer}")
    say(wrapped(prediction.why))


def wrapped(text: str) -> str:
    return textwrap.fill(text, 90, break_long_words=False, break_on_hyphens=False)


def same_answer(one, other) -> bool:
    return spoken(one) == spoken(other)


def spoken(answer) -> str:
    if isinstance(answer, dict):
        return ", ".join(f"{key}: {spoken(value)}" for key, value in answer.items())
    return f"{answer:.3g}" if isinstance(answer, float) else str(answer)
