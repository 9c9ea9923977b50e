"""The benchmark runs, times the right things, and counts work as torch does. Nothing here asserts a time."""

import json
import sys
import time
from functools import partial

import pytest
import torch
from reference import assert_close
from torch.utils.flop_counter import FlopCounterMode

from paligemma.checkpoint import canonical_name
from paligemma.kv_cache import KVCache
from paligemma.modeling_gemma import PaliGemmaConfig
from paligemma.published import PUBLISHED
from paligemma.speed import benchmark, gpu, timing
from paligemma.speed.compiled import compile_for_decode
from paligemma.speed.fast import load_library


def small_config(text_model="gemma") -> PaliGemmaConfig:
    text = dict(model_type=text_model, vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
    text |= dict(num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    vision = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3)
    vision |= dict(image_size=12, patch_size=4)
    return PaliGemmaConfig.from_dict({"text_config": text, "vision_config": vision, "image_token_index": 89})


@pytest.mark.parametrize("text_model", ["gemma", "gemma2"])
def test_both_models_are_the_same_and_share_their_memory(text_model):
    config = small_config(text_model)
    ours, theirs = benchmark.make_models(config, torch.float32)
    addresses = {tensor.data_ptr() for tensor in theirs.state_dict().values()}
    assert {parameter.data_ptr() for parameter in ours.parameters()} <= addresses
    inputs = benchmark.make_inputs(config, 2)
    with torch.no_grad():
        assert_close(ours(**inputs).logits, theirs(**inputs).logits)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("text_model", ["gemma", "gemma2"])
def test_work_is_counted_as_torch_counts_it(text_model, rows):
    """torch's counter also sees attention: without it the two must be equal, to the last FLOP."""
    config = small_config(text_model)
    ours, _ = benchmark.make_models(config, torch.float32)
    inputs = benchmark.make_inputs(config, rows)
    length = inputs["input_ids"].shape[1]
    cache = KVCache(config.text_config, rows, length + 1)

    def count(*args, **kwargs):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            ours(*args, **kwargs, kv_cache=cache, logits_to_keep=1)
        products = ("mm", "addmm", "convolution")  # bmm and fused attention are the scores and the weighted sums
        by_operator = counter.get_flop_counts()["Global"]
        return sum(flops for operator, flops in by_operator.items() if str(operator).split(".")[-1] in products)

    work = benchmark.count_work(config, rows, 4)
    # make_inputs gives 16 tokens of text; the last position alone goes through the head.
    assert count(**inputs) == work["prefill"][0]
    ones = torch.ones(rows, length + 1, dtype=torch.int64)
    assert count(torch.full((rows, 1), 5), None, ones, ones) == work["decode"][0]


def test_bytes_are_those_of_the_matrices():
    config = small_config()
    ours, _ = benchmark.make_models(config, torch.float32)
    matrices = sum(p.nbytes for name, p in ours.language_model.named_parameters() if p.ndim == 2)
    assert benchmark.count_work(config, 1, 4)["decode"][1] == matrices
    published = PaliGemmaConfig.from_dict(PUBLISHED["paligemma-3b-pt-224"])
    assert 2.5e9 < benchmark.count_work(published, 1, 1)["decode"][1] < 2.51e9  # Gemma's 2.5 billion


def test_reading_a_matrix_reads_all_of_it():
    library = load_library()
    if library is None:
        pytest.skip("no C++ compiler here")
    weights = torch.randn(33, 2048)
    total = library.read_matrix(weights.data_ptr(), 33, 2048, 2)
    assert abs(total - weights.double().sum().item()) < 0.05


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7}, {"temperature": 0.7, "top_k": 5, "top_p": 0.9}])
def test_generation_is_timed_token_by_token(sampling):
    config = small_config()
    ours, theirs = benchmark.make_models(config, torch.float32)
    inputs = benchmark.make_inputs(config, 1)
    with benchmark.never_stop(ours):
        for way in benchmark.make_ways(ours, theirs, torch.float32):
            times = benchmark.time_generation(way, inputs, 5, **sampling)
            assert len(times) == 5 and all(seconds > 0 for seconds in times)
            if way.steps and not sampling:
                assert len(benchmark.time_steps(way, config, 2, 30, 4)) == 3
    assert ours.config.eos_token_id == 1


def test_sampling_is_the_same_question_to_both(monkeypatch):
    """transformers' defaults (top_k 50) must not slip in where ours has no limit."""
    config = small_config()
    ours, theirs = benchmark.make_models(config, torch.float32)
    asked = []
    monkeypatch.setattr(type(theirs), "generate", lambda self, **options: asked.append(options))
    way = benchmark.best_peer(benchmark.make_ways(ours, theirs, torch.float32))
    for sampling in benchmark.SAMPLING.values():
        benchmark.time_generation(way, {}, 5, **sampling)
    assert [options["do_sample"] for options in asked] == [False, True, True, True]
    assert [options.get("top_k") for options in asked] == [None, 0, 50, 0]
    assert [options.get("top_p") for options in asked] == [None, 1.0, 1.0, 0.9]


@pytest.mark.parametrize("text_model", ["gemma", "gemma2"])
@pytest.mark.parametrize("pictures, questions", [(2, 3), (3, 1)])
def test_training_steps_have_the_same_loss_and_gradients(text_model, pictures, questions):
    config = small_config(text_model)
    ours, theirs = benchmark.make_models(config, torch.float32)
    losses = benchmark.training_losses(ours, theirs, config, pictures, questions)
    assert list(losses) == ["ours", f"transformers, {theirs.config.get_text_config()._attn_implementation}"]
    (our_loss, their_loss) = (function() for function in losses.values())
    assert_close(our_loss, their_loss)
    our_loss.backward()
    their_loss.backward()
    gradients = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        assert_close(gradients[canonical_name(name)].grad, parameter.grad)


def test_a_training_step_changes_no_weight():
    """Both models hold the same weights: what one learned, the other would start from."""
    config = small_config()
    ours, theirs = benchmark.make_models(config, torch.float32)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    losses = benchmark.training_losses(ours, theirs, config, 2, 2)
    for model, loss in zip((ours, theirs), losses.values(), strict=True):
        benchmark.training_step(model, loss)()
        assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())


def test_quick_run_prints_and_writes_everything(tmp_path, capsys):
    benchmark.main(["--quick", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    for words in ("limits: memory is read at", "decode, batch 1", "transformers, eager", "growth of a step", "loading"):
        assert words in printed
    results = json.loads((tmp_path / "tiny-float32.json").read_text(encoding="utf-8"))
    works = {row["work"] for row in results["rows"]}
    assert {"decode, batch 1", "one step, 3000 tokens in the cache", "one step, batch 8, 300 tokens"} <= works
    assert {f"decode, batch 1, {kind}" for kind in benchmark.SAMPLING} <= works
    assert "prefill of 4 prompts about one picture" in works
    assert sum(work.startswith("training step of") for work in works) == 2
    for row in results["rows"]:
        assert 0 < row["low"] <= row["median"] <= row["high"]
        assert (row["times_peer"] is None) == row["way"].startswith("transformers")
    assert (tmp_path / "tiny-float32.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny-float32.json", "tiny-float32.png"]


def test_every_part_runs_for_paligemma_2(monkeypatch):
    monkeypatch.setattr(benchmark, "shape_config", lambda name: small_config("gemma2"))
    monkeypatch.setattr(timing, "compile_for_decode", partial(compile_for_decode, backend="eager"))
    loading = dict.fromkeys(("ours", "transformers"), [{"loaded": 1.0, "ready": 1.0, "peak": 10}])
    monkeypatch.setattr(benchmark, "time_loading", lambda *_: {"file bytes": 1, **loading})
    results = benchmark.run("pg2-3b", "bfloat16", quick=True, compiled=True)
    ways = {row["way"] for row in results["rows"]}
    assert {"ours, plain", "ours, torch.compile", "transformers, eager"} <= ways
    assert {"growth", "loading"} <= set(results)


@pytest.mark.parametrize("rounds, taken", [(None, 2), (3, 3)])
def test_as_many_rounds_as_were_asked_for(monkeypatch, rounds, taken):
    monkeypatch.setattr(benchmark, "shape_config", lambda name: small_config())
    limits = benchmark.Limits
    monkeypatch.setattr(benchmark, "Limits", lambda config, dtype, _, device: limits(config, dtype, 1, device))
    loading = dict.fromkeys(("ours", "transformers"), [{"loaded": 1.0, "ready": 1.0, "peak": None}])
    monkeypatch.setattr(benchmark, "time_loading", lambda *_: {"file bytes": 1, **loading})
    monkeypatch.setattr(benchmark, "report_training", lambda *_: None)
    rows = benchmark.run("3b", "float32", rounds)["rows"]
    assert {row["count"] for row in rows if row["work"].startswith("prefill, ")} == {taken}


def test_processor_time_leaves_out_what_others_do(monkeypatch):
    seen = []
    monkeypatch.setattr(timing, "clock", timing.clock)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(benchmark, "run", lambda *_: seen.append(benchmark.take_turns({"wait": sleep}, 2)["wait"]))
    sleep = partial(time.sleep, 0.05)
    benchmark.main(["--threads", "1", "--cpu-time"])
    benchmark.main(["--threads", "1"])
    assert max(seen[0]) < 0.04 < min(seen[1])


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--threads", "0"], ["--shape", "7b"], ["--cpu-time"]])
def test_bad_options_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert "error" in capsys.readouterr().err


def test_a_file_is_no_folder_for_the_report(tmp_path, capsys, monkeypatch):
    """Said before the minutes of measuring, not after."""
    monkeypatch.setattr(benchmark, "run", lambda *_: pytest.fail("it measured"))
    (tmp_path / "report").write_text("years of work", encoding="utf-8")
    for command in (benchmark.main, lambda arguments: gpu.main([*arguments, "--device", "cpu"])):
        with pytest.raises(SystemExit):
            command(["--output", str(tmp_path / "report")])
        assert "report, a file, expected a folder" in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        benchmark.main(["--device", "cuda"])
    assert "no GPU" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is known on Linux only")
def test_loading_is_measured_in_fresh_processes():
    config = small_config()
    config.text_config.vocab_size = 2**20  # 64 MB: seen beside what the interpreter takes
    ours, _ = benchmark.make_models(config, torch.bfloat16)
    loading = benchmark.time_loading(ours, 1)
    size = loading["file bytes"]
    assert size > sum(parameter.nbytes for parameter in ours.parameters())
    for who in ("ours", "transformers"):
        assert 0 < loading[who][0]["loaded"] <= loading[who][0]["ready"]
        assert 0.5 * size < loading[who][0]["peak"] < 3 * size
