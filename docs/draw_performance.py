"""Draw the roofline of docs/performance.md from the tables on that page: python docs/draw_performance.py

Writes assets/performance.png. The work of a step is counted by `count_work`; times and limits are those of the page.
"""

import re
from pathlib import Path

from matplotlib import pyplot as plt

from paligemma import visualize
from paligemma.speed.shapes import count_work, shape_config

ROOT = Path(__file__).resolve().parents[1]
TABLE = "3b, bfloat16"  # the published shape on the first machine
POINTS = {  # name: (work and way of the row, kind of work, answers at once, bytes of a weight)
    "prompt": ("prefill, 272 tokens, until the first", "ours, fast", "prefill", 1, 2),
    "prompt, transformers": (
        "prefill, 272 tokens, until the first",
        "transformers, sdpa, static cache",
        "prefill",
        1,
        2,
    ),
    "8 answers": ("one step, batch 8, 300 tokens", "ours, fast", "decode", 8, 2),
    "8 answers, transformers": ("one step, batch 8, 300 tokens", "transformers, sdpa", "decode", 8, 2),
    "1 answer, 8 bits": ("decode, batch 1", "ours, fast, 8-bit weights", "decode", 1, 1),
    "1 answer": ("decode, batch 1", "ours, fast", "decode", 1, 2),
    "1 answer, transformers": ("decode, batch 1", "transformers, sdpa", "decode", 1, 2),
}


def read_table(page: str, name: str) -> dict[tuple[str, str], list[str]]:
    """The rows of the table under that summary: (work, way) -> the cells after them, as they are written."""
    start = page.index(f"<summary>{name}</summary>")
    lines = page[start : page.index("</details>", start)].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {(row[0], row[1]): row[2:] for row in rows[2:]}


def read_limits(page: str, name: str) -> tuple[float, float]:
    """(bytes a second, FLOPs a second), the fastest product counting."""
    line = next(
        line for line in page[page.index(f"<summary>{name}</summary>") :].splitlines() if line.startswith("Limits")
    )
    bandwidth = re.search(r"([\d.]+) GB/s", line)[1]
    return float(bandwidth) * 1e9, max(float(rate) for rate in re.findall(r"(?:torch|cpp) ([\d.]+)", line)) * 1e9


def draw(page: str):
    """The Axes of the roofline."""
    rows, config = read_table(page, TABLE), shape_config("3b")
    points = {}
    for name, (work, way, kind, answers, size) in POINTS.items():
        flops, read = count_work(config, answers, size)[kind]
        seconds = float(rows[work, way][0].replace(",", "")) / 1e3
        points[name] = (flops / read, flops / seconds)
    ax = visualize.roofline(*read_limits(page, TABLE), points)
    ax.set_title("The published 3B shape, bfloat16, two threads of an Intel Xeon")
    return ax


def main() -> None:
    visualize.set_style()
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    print(f"saved {visualize.save_figure(draw(page), ROOT / 'assets' / 'performance.png')}")
    plt.close("all")


if __name__ == "__main__":
    main()
