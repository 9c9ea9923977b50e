"""Compare a result with the expected one, and say in words how it differs."""

import numpy as np
import torch
from PIL import Image

from .tasks import Case, Finding

# Findings that are about the form of a result: told before wrong values in another part of it.
FORM = ("type", "structure", "no return", "not started", "shape", "axes in another order")


def compare(got, want, tolerance: float, case: Case, path: str) -> Finding | None:
    """The first difference, or None. Wrong forms (types, lengths, shapes) come before wrong values."""
    label = f"`{path}`: " if path else ""
    if got is None and want is not None:
        means = "" if path else "the `return` is missing, or returns nothing"
        return Finding("no return", f"{label}the result is None", means)
    if got is Ellipsis:
        return Finding("not started", "the result is `...`", "put your code in place of the dots")
    if isinstance(want, dict):
        if not isinstance(got, dict):
            return wrong_type(label, got, want)
        if set(got) != set(want):
            return Finding("structure", f"{label}keys {sorted(map(str, got))}, expected {sorted(map(str, want))}", "")
        named = {key: f"{path}[{key!r}]" if path or not isinstance(key, str) else key for key in want}
        pairs = [(named[key], got[key], want[key]) for key in want]
    elif isinstance(want, list | tuple):
        if not isinstance(got, list | tuple):
            return wrong_type(label, got, want)
        if len(got) != len(want):
            means = "something is missing or too much in what you return"
            return Finding("structure", f"{label}{len(got)} values, expected {len(want)}", means)
        pairs = [(f"{path}[{index}]", a, b) for index, (a, b) in enumerate(zip(got, want, strict=True))]
    else:
        return compare_leaves(got, want, tolerance, case, label)
    findings = [compare(a, b, tolerance, case, name) for name, a, b in pairs]
    findings = [finding for finding in findings if finding is not None]
    return next((finding for finding in findings if finding.name in FORM), findings[0] if findings else None)


def wrong_type(label: str, got, want) -> Finding:
    expected = {dict: "a dict", tuple: f"{len(want) if isinstance(want, tuple) else 0} values", list: "a list"}.get(
        type(want), f"a {type(want).__name__}"
    )
    means = {
        "generator": "your function has a `yield`, so calling it gives a generator: gather the results in a list and "
        "return that",
        "coroutine": "leave out `async`: calling an async function does not run it",
    }.get(type(got).__name__, "look at what the docstring says")
    if type(got).__name__ == "coroutine":
        got.close()  # or Python warns that it was never awaited
    return Finding("type", f"{label}the result is a {type(got).__name__}, expected {expected}", means)


def compare_leaves(got, want, tolerance: float, case: Case, label: str) -> Finding | None:
    """Two tensors, arrays, pictures, numbers or texts."""
    numeric = int, float, complex, np.number
    if isinstance(want, Image.Image):
        if not isinstance(got, Image.Image):
            return wrong_type(label, got, want)
        if got.size != want.size or got.mode != want.mode:
            seen = f"{label}a picture {got.size[0]} x {got.size[1]} ({got.mode}), "
            seen += f"expected {want.size[0]} x {want.size[1]} ({want.mode})"
            turned = got.size == want.size[::-1] and got.size != want.size
            means = "PIL counts (width, height), arrays count (height, width)" if turned else ""
            return Finding("height and width swapped" if turned else "size", seen, means)
        got, want = np.asarray(got).astype(np.float64), np.asarray(want).astype(np.float64)
    if isinstance(want, numeric) and isinstance(got, torch.Tensor | np.ndarray) and got.ndim == 0:
        got = got.item()
    if isinstance(want, torch.Tensor) and want.ndim == 0 and isinstance(got, numeric):
        got = torch.tensor(got, dtype=want.dtype)
    if isinstance(want, bool | np.bool_):
        good = isinstance(got, bool | np.bool_) and bool(got) == bool(want)
        return None if good else Finding("values", f"{label}{brief(got)}, expected {want}", "")
    if isinstance(want, numeric):
        if not isinstance(got, numeric):
            return wrong_type(label, got, want)
        got, want = np.asarray(got, dtype=np.float64), np.asarray(want, dtype=np.float64)
    if isinstance(want, torch.Tensor):
        if not isinstance(got, torch.Tensor):
            return wrong_type(label, got, want)
        if got.is_meta != want.is_meta:
            seen = f"{label}the tensor is on the {got.device.type} device, expected on the {want.device.type}"
            return Finding("device", seen, "a tensor on the meta device has a shape and no numbers" * got.is_meta)
        return compare_numbers(got.detach(), want.detach(), got.dtype, want.dtype, tolerance, case, label)
    if isinstance(want, np.ndarray):
        if not isinstance(got, np.ndarray):
            return Finding("type", f"{label}the result is a {type(got).__name__}, expected a numpy array", "")
        if got.dtype.kind not in "biuf":
            return Finding("dtype", f"{label}an array of {got.dtype}, expected {want.dtype}", "")
        mine, theirs = torch.from_numpy(np.array(got)), torch.from_numpy(np.array(want))
        return compare_numbers(mine, theirs, got.dtype, want.dtype, tolerance, case, label)
    if type(got) is not type(want) and not isinstance(got, type(want)):
        return wrong_type(label, got, want)
    if got != want:
        return Finding("values", f"{label}{brief(got)}\nexpected {brief(want)}", "")
    return None


def compare_numbers(got, want, got_dtype, want_dtype, tolerance: float, case: Case, label: str) -> Finding | None:
    """Two tensors: shape, dtype, then values."""
    if got.shape != want.shape:
        return explain_shape(got, want, case, label)
    if got_dtype != want_dtype:
        return wrong_dtype(got_dtype, want_dtype, case, label)
    if got.numel() == 0 or got.is_meta:  # on the meta device there are no numbers
        return None
    if got.dtype == torch.bool:
        wrong = got != want
        if not wrong.any():
            return None
        seen = f"{label}{int(wrong.sum())} of {wrong.numel()} entries are the other way round"
        means = "every entry is the opposite of what is expected: True and False swapped" if wrong.all() else ""
        seen += largest_gap(wrong.float(), got, want) + side_by_side(got, want)
        return Finding("upside down" if wrong.all() else "values", seen, means)
    tolerance = {torch.bfloat16: max(tolerance, 2e-2), torch.float16: max(tolerance, 3e-3)}.get(got.dtype, tolerance)
    got64, want64 = got.to(torch.float64), want.to(torch.float64)
    if not torch.isfinite(got64[torch.isfinite(want64)]).all():
        bad = (~torch.isfinite(got64) & torch.isfinite(want64)).sum()
        return Finding(
            "not finite",
            f"{label}{int(bad)} of {got64.numel()} numbers are NaN or infinite",
            "a division by zero, 0 times infinity, an exponential of a large number, or memory that was never written",
        )
    gap = (got64 - want64).nan_to_num(0.0, 0.0, 0.0).abs()
    same = (gap <= tolerance * (1 + want64.abs())) | (got64 == want64) | (got64.isnan() & want64.isnan())
    if same.all():
        return None
    whole = not got.is_floating_point()
    seen = f"{label}{int((~same).sum())} of {gap.numel()} numbers differ" if whole else (
        f"{label}largest difference {gap.max():.2g} (allowed {tolerance:.0e})"
    )  # fmt: skip
    seen += largest_gap(gap, got, want)
    if whole and got.dtype == torch.uint8:
        seen += f" (largest difference {int(gap.max())})"
    seen += side_by_side(got, want)
    return explain_values(got64, want64, tolerance, case, seen, same)


def wrong_dtype(got_dtype, want_dtype, case: Case, label: str) -> Finding:
    """A wrong dtype. That it follows the input's is said only where it does."""
    kinds = {getattr(value, "dtype", None) for value in case.inputs} - {None}
    floating = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    if want_dtype == torch.bool or str(want_dtype) == "bool":
        means = (
            "a comparison gives bool, and so does `&` of two bool tensors; `&` with whole numbers gives whole numbers"
        )
    elif want_dtype in kinds & floating and got_dtype in floating:
        means = "a cast is missing or too much: the result's dtype is to be the input's"
    else:
        means = f"the task asks for {name_dtype(want_dtype)}: a cast is missing or too much"
    return Finding("dtype", f"{label}the result is {name_dtype(got_dtype)}, expected {name_dtype(want_dtype)}", means)


def largest_gap(gap: torch.Tensor, got, want) -> str:
    """Where the largest difference is."""
    index = np.unravel_index(int(gap.argmax()), tuple(gap.shape)) if gap.ndim else ()
    place = f" at [{', '.join(map(str, index))}]" if index else ""
    return f",{place} yours {short(got[index])}, expected {short(want[index])}"


def side_by_side(got, want) -> str:
    """A small row or matrix of yours beside the expected one; nothing for larger ones."""
    if got.ndim not in (1, 2) or not 2 <= got.shape[-1] <= 7 or (got.ndim == 2 and not 1 < got.shape[0] <= 7):
        return ""
    mine, theirs = (
        [
            [str(int(x)) if not t.is_floating_point() else f"{float(x):.3g}" for x in row]
            for row in t.reshape(-1, t.shape[-1])
        ]
        for t in (got, want)
    )
    width = max(len(text) for rows in (mine, theirs) for row in rows for text in row)
    rows = [[" ".join(text.rjust(width) for text in row) for row in table] for table in (mine, theirs)]
    if 2 * len(rows[0][0]) + 4 > 78:
        return ""
    head = "yours".ljust(len(rows[0][0])) + "    expected"
    return "\n" + "\n".join(f"  {line}" for line in [head, *(f"{a}    {b}" for a, b in zip(*rows, strict=True))])


def and_more(seen: str, text: str) -> str:
    """One sentence more about what was seen: on a line of its own when a table stands before it."""
    return f"{seen}\n{text}" if "\n" in seen else f"{seen}; {text}"


def explain_values(got, want, tolerance: float, case: Case, seen: str, same=None) -> Finding:
    """Numbers of the right shape that are wrong: what relates them to the right ones?

    A relation is told only where it holds as exactly as the check itself compares, and where the numbers are further
    from the expected ones than rounding would put them.
    """

    def equal(a, b):
        return a.shape == b.shape and bool(((a - b).abs() <= tolerance * (1 + b.abs())).all())

    rounded = rounded_to(got, want)
    if rounded:
        return Finding(
            "rounded",
            seen,
            f"your numbers are the expected ones, rounded to {rounded}: something on the way is computed in "
            f"{rounded}, or is cast to it too early",
        )
    if not got.any() and got.numel() > 1:  # one number may be zero by accident
        return Finding("all zeros", seen, "your result is zero everywhere: is what you compute put into the result?")
    gap, size = (got - want).abs(), float(want.abs().max())
    far = float(gap.max()) > max(0.02 * size, 20 * tolerance)  # much more than rounding
    large = want.abs() > 0.05 * want.abs().max()
    if want.numel() > 1 and large.any():
        ratio = float((got[large] / want[large]).median())
        if abs(ratio - 1) > 2e-2 and ratio != 0 and equal(got, ratio * want):
            return Finding(
                "constant factor",
                and_more(seen, f"every number is {ratio:.4g} times the expected one{guess(ratio, case.sizes)}"),
                "a factor is forgotten, doubled or turned upside down" if ratio > 0 else "a sign is turned round",
            )
        shift = float((got - want).median())
        if equal(got, want + shift) and abs(shift) > 20 * tolerance:
            return Finding(
                "constant difference",
                and_more(seen, f"every number is {shift:+.4g} away from the expected one"),
                "something is added that should not be, or left out",
            )
    if far and got.ndim >= 2 and equal(got.transpose(-1, -2), want):
        return Finding("transposed", seen, "your result is the expected one transposed: rows and columns are swapped")
    if far and got.numel() > 3 and equal(got.flatten().sort().values, want.flatten().sort().values):
        return other_places(got, want, seen, equal)
    if same is not None and same.ndim >= 2 and len(same) > 1 and same[0].all() and not same[1:].flatten(1).all(1).any():
        batch = case.sizes.get("B") == len(same)
        others = "row 1 is not" if len(same) == 2 else f"none of the other {len(same) - 1} is"
        return Finding(
            "row 0 only",
            and_more(seen, f"row 0 is right, {others}"),
            "what sets row 0 apart? Either something is read from row 0 only, or the other rows hold what your code "
            "does not allow for"
            if batch
            else "",
        )
    return Finding("values", seen, "")


def rounded_to(got, want) -> str:
    """ "float16" when these are the expected numbers in that precision, though more is asked for; else ""."""
    if len(got.unique()) < 8:  # a few numbers may have few bits by accident
        return ""
    for dtype, digits in ((torch.bfloat16, 8), (torch.float16, 11)):
        step = 2.0**-digits
        close = (got - want).abs() <= 4 * step * want.abs() + 2 * step * float(want.abs().max())
        if close.all() and torch.equal(got.to(dtype).to(got.dtype), got) and not torch.equal(
            want.to(dtype).to(want.dtype), want
        ):  # fmt: skip
            return name_dtype(dtype)
    return ""


def other_places(got, want, seen: str, equal) -> Finding:
    """The right numbers in the wrong order: along which axis?"""
    for axis in range(got.ndim):
        if got.shape[axis] > 1 and equal(got.flip(axis), want):
            where = (
                "each row holds the right numbers in reverse" if axis == got.ndim - 1 else f"axis {axis} is reversed"
            )
            return Finding("reversed", and_more(seen, where), "")
    if got.ndim > 1 and equal(got.sort(-1).values, want.sort(-1).values):
        return Finding(
            "right numbers in other places",
            and_more(seen, "each row holds the right numbers, at other places of the row"),
            "what puts the numbers of a row in this order: parts that are joined or counted in another order, a roll, "
            "an index, a sort that is not undone (gather reads at an index, scatter writes to it)?",
        )
    return Finding(
        "right numbers in other places",
        and_more(seen, "the numbers are the right ones, at other places"),
        "axes may be merged or split in another order: `view` and `reshape` never move numbers, a transpose does",
    )


def guess(ratio: float, sizes: dict[str, int]) -> str:
    for name, size in sizes.items():
        for text, value in ((f"{name}", size), (f"the square root of {name}", size**0.5)):
            if size > 1 and abs(abs(ratio) / value - 1) < 2e-3:
                return f": that is {text} ({name} is {size} here)"
            if size > 1 and abs(abs(ratio) * value - 1) < 2e-3:
                return f": that is 1 / {text} ({name} is {size} here)"
    return ""


def explain_shape(got, want, case: Case, label: str = "") -> Finding:
    """A wrong shape, in the names of its axes; the same axes in another order are recognised."""
    mine, theirs = named_shape(got.shape, case.sizes), named_shape(want.shape, case.sizes)
    seen = f"{label}the shape is {mine}, expected {theirs}"
    if [size for size in got.shape if size != 1] == [size for size in want.shape if size != 1]:
        return Finding("shape", seen, "an axis of length 1 is missing, too much or elsewhere (keepdim, unsqueeze)")
    if sorted(got.shape) == sorted(want.shape):
        moved = [axis for axis, (a, b) in enumerate(zip(got.shape, want.shape)) if a != b]
        means = f"the sizes are right and in another order (places {', '.join(map(str, moved))}): a transpose too few "
        means += "or too many, two axes exchanged (query and key, for instance), or a size that is fixed in the code?"
        return Finding("axes in another order", seen, means)
    longer = explain_length(got, want, seen)
    if longer:
        return longer
    if got.numel() == want.numel():
        return Finding("shape", seen, "the numbers are as many as expected: axes are merged, split or squeezed")
    return Finding("shape", seen, "print the shape after every line and find the first that is not as you expect")


def explain_length(got, want, seen: str) -> Finding | None:
    """One axis is too long or too short, and what is there is right."""
    if got.ndim != want.ndim or got.dtype != want.dtype:
        return None
    axes = [axis for axis, (a, b) in enumerate(zip(got.shape, want.shape, strict=True)) if a != b]
    if len(axes) != 1 or not min(got.shape[axes[0]], want.shape[axes[0]]):
        return None
    (axis,) = axes
    have, need = got.shape[axis], want.shape[axis]
    word = {got.ndim - 1: "columns", got.ndim - 2: "rows"}.get(axis, "entries") if got.ndim > 1 else "values"
    common = min(have, need)
    for at_front in (True, False):
        a, b = (
            t.narrow(axis, 0 if at_front else t.shape[axis] - common, common).to(torch.float64) for t in (got, want)
        )
        if not bool(((a - b).abs() <= 1e-4 * (1 + b.abs())).all()):
            continue
        count = f"{abs(have - need)} {word if abs(have - need) > 1 else word.rstrip('s').replace('entrie', 'entry')}"
        if have > need:
            where = "behind the right ones" if at_front else "before the right ones"
            return Finding("shape", f"{seen}: {count} too many, {where}", "")
        where = "at the end" if at_front else "at the beginning"
        return Finding("shape", f"{seen}: {count} missing {where}", "")
    return None


def named_shape(shape, sizes: dict[str, int]) -> str:
    names = {}
    for name, size in sizes.items():
        names[size] = f"{name}={size}" if size not in names else str(size)  # two of one length cannot be told apart
    return f"[{', '.join(names.get(size, str(size)) for size in shape)}]"


# --- copies and comparisons of inputs -------------------------------------------------------------------------


def copy(value):
    """A copy that the learner may spoil. Models, tokenizers and the like are passed as they are."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, np.ndarray | Image.Image):
        return value.copy()
    if type(value) in (list, tuple):
        return type(value)(copy(item) for item in value)
    if type(value) is dict:
        return {key: copy(item) for key, item in value.items()}
    return value


def same_inputs(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, np.ndarray):
        return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, Image.Image):
        return a.size == b.size and a.mode == b.mode and a.tobytes() == b.tobytes()
    if type(a) in (list, tuple):
        return len(a) == len(b) and all(same_inputs(x, y) for x, y in zip(a, b))
    if type(a) is dict:
        return a.keys() == b.keys() and all(same_inputs(a[key], b[key]) for key in a)
    return True


# --- an input in a few words ---------------------------------------------------------------------------------


def describe(case: Case) -> str:
    """One line about a case: shapes, dtypes, its note. Example: "[2, 5, 4] float32, about 1e-3 in size"."""
    parts = [brief(value, case.sizes) for value in case.inputs]
    text = ", ".join(part for part in parts if part)
    if len(text) > 140:
        text = text[:140] + "..."
    return f"{text}{'; ' if text and case.note else ''}{case.note}" or "no input"


def brief(value, sizes: dict[str, int] | None = None) -> str:
    if isinstance(value, torch.Tensor):
        return f"{named_shape(value.shape, sizes or {})} {name_dtype(value.dtype)}" if value.ndim else short(value)
    if isinstance(value, np.ndarray):
        return f"array {named_shape(value.shape, sizes or {})} {value.dtype}"
    if isinstance(value, Image.Image):
        return f"picture {value.size[0]} x {value.size[1]} {value.mode}"
    if isinstance(value, str | int | float | bool):
        text = repr(value)
        return text if len(text) < 200 else f"{text[:120]}...{text[-60:]}"
    if isinstance(value, list | tuple):
        inside = ", ".join(brief(item, sizes) for item in value[:4])
        return f"[{inside}{', ...' if len(value) > 4 else ''}]"
    return type(value).__name__


def name_dtype(dtype) -> str:
    return str(dtype).replace("torch.", "")


def short(value) -> str:
    value = value.item() if hasattr(value, "item") else value
    return f"{value:.4g}" if isinstance(value, float) else str(value)
