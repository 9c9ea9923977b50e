"""The measurements for GPUs, tried on the CPU: every part runs, one that fails stops no other, the table is right."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_benchmark import small_config

from paligemma.speed import gpu


@pytest.mark.parametrize("part", [part for part in gpu.PARTS if "compile" not in part])
def test_every_part_writes_its_results(monkeypatch, tmp_path, part):
    monkeypatch.setattr(gpu, "shape_config", lambda name: small_config())
    monkeypatch.setattr(gpu, "NEW_TOKENS", 4)
    gpu.main(["--part", part, "--device", "cpu", "--shape", "tiny", "--dtype", "float32", "--output", str(tmp_path)])
    results = gpu.read_results(tmp_path / "results.jsonl")
    assert {row["part"] for row in results} == {part} and not any("error" in row for row in results)
    if part == "limits":
        assert any(row.get("bytes_per_second", 0) > 0 for row in results)
        assert any(row.get("flops_per_second", 0) > 0 for row in results)
    elif part.startswith("training"):
        assert len(results) == 2 and all(row["step"]["median"] > 0 for row in results)
    else:
        answer = results[0]
        assert answer["work"] == "answer, batch 1" and answer["decode"]["count"] == 2 * 2
        assert answer["decode_bytes_per_second"] > 0 and answer["prefill_flops_per_second"] > 0


def test_a_measurement_that_fails_is_a_line_and_the_next_goes_on(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "shape_config", lambda name: small_config())
    session = gpu.Session("a part", "tiny", "float32", "cpu", tmp_path)

    def fail():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    session.try_to("first", fail)
    session.try_to("second", lambda: {"decode": {"median": 1.0}})
    first, second = gpu.read_results(tmp_path / "results.jsonl")
    assert "OutOfMemoryError: CUDA out of memory" in first["error"] and second["decode"] == {"median": 1.0}


def test_a_process_that_dies_or_hangs_stops_no_other(monkeypatch, tmp_path, capsys):
    """Every part is started with what time there is; what became of it stands in the file and in the table."""
    started = []

    def run(command, timeout):
        part = command[command.index("--part") + 1]
        started.append((part, timeout))
        if part == "ours, plain":
            raise subprocess.TimeoutExpired(command, timeout)
        return SimpleNamespace(returncode=-11 if part == "limits" else 0)

    monkeypatch.setattr(gpu.subprocess, "run", run)
    (tmp_path / "results.jsonl").write_text("what an earlier run left\n", encoding="utf-8")
    gpu.main(["--device", "cpu", "--shape", "tiny", "--output", str(tmp_path), "--minutes", "2"])
    assert [part for part, _ in started] == list(gpu.PARTS) and all(0 < timeout <= 120 for _, timeout in started)
    errors = [row["error"] for row in gpu.read_results(tmp_path / "results.jsonl")]
    assert errors[0] == "the process ended with code -11" and errors[1].startswith("stopped after 1")
    assert "failed: limits, all of it: the process ended" in capsys.readouterr().out
    started.clear()
    gpu.main(["--device", "cpu", "--shape", "tiny", "--output", str(tmp_path), "--minutes", "0.01"])
    assert not started and len(gpu.read_results(tmp_path / "results.jsonl")) == len(gpu.PARTS)


def test_the_table_compares_with_the_best_of_transformers():
    spread = {"low": 0.001, "high": 0.003}
    results = [
        {"part": "limits", "work": "memory is read", "bytes_per_second": 3.35e12},
        {"part": "ours, plain", "work": "answer, batch 1", "decode": {"median": 0.002, **spread}, "peak_bytes": 2**33},
        {"part": "transformers, growing cache", "work": "answer, batch 1", "decode": {"median": 0.004, **spread}},
        {
            "part": "transformers, static cache, compiled",
            "work": "answer, batch 1",
            "decode": {"median": 0.003, **spread},
        },
        {"part": "ours, torch.compile", "work": "answer, batch 1", "error": "InductorError: no"},
    ]
    text = "\n".join(gpu.table(results))
    assert "memory is read: 3,350 GB/s" in text
    assert "| answer, batch 1: decode | ours, plain | 2 | 1 to 3 | 1.50 |" in text
    assert "failed: ours, torch.compile, answer, batch 1: InductorError: no" in text
    assert "peak memory of an answer, ours, plain: 8.00 GiB" in text


def test_the_command_itself(tmp_path):
    """In its own processes, with a part that is quick."""
    command = [sys.executable, "-m", "paligemma.speed.gpu", "--part", "limits", "--device", "cpu", "--shape", "tiny"]
    subprocess.run([*command, "--output", str(tmp_path)], check=True, cwd=Path(__file__).parent.parent)
    works = [json.loads(line)["work"] for line in (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert works == ["machine", "memory is read", "matrix products"]


@pytest.mark.parametrize("arguments", [["--minutes", "0"], ["--part", "no such"], ["--shape", "7b"]])
def test_bad_options_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        gpu.main([*arguments, "--device", "cpu"])
    assert "error" in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "no GPU that torch can use" in capsys.readouterr().err
