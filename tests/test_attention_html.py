"""Attention as an HTML file: the numbers in it, and what a reader does with it in a browser."""

import base64
import html
import json
import re
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import watched_page
from paligemma import answer_attention
from paligemma.attention_maps import AnswerAttention
from paligemma.visualize.attention_html import AttentionFrame, attention_page, save_attention_html
from paligemma.world.scenes import draw, make_scene


@pytest.fixture(scope="module")
def answered(tiny):
    image = draw(make_scene(5), 200)
    return answer_attention(*tiny, image, "caption en"), image


def random_attention(layers: int, heads: int, grid: int, tokens: list[str]) -> AnswerAttention:
    """Attention of a model of any size: rows that sum to 1."""
    L = grid**2 + 6 + len(tokens)
    decoder = torch.randn(layers, heads, L, L).mul(3).softmax(dim=-1)
    queries = torch.arange(L - len(tokens) - 1, L - 1)
    return AnswerAttention("", tokens, decoder, torch.zeros(1, 1, grid**2, grid**2), queries, grid)


def stored_maps(page: str) -> tuple[dict, np.ndarray]:
    """What the file says, and its maps as weights [layers, H, A, N]."""
    data = json.loads(re.search(r"const data = (\{.*\});\n", page)[1])
    shape = data["layers"], data["heads"], len(data["tokens"])
    whole = np.frombuffer(zlib.decompress(base64.b64decode(data["maps"])), np.uint8).reshape(*shape, data["grid"] ** 2)
    top = np.frombuffer(zlib.decompress(base64.b64decode(data["top"])), "<f4").reshape(shape)
    return data, whole / 255 * top[..., None]


def test_maps_in_the_file_are_the_attention(answered):
    attention, image = answered
    data, maps = stored_maps(attention_page(attention, image, "caption en"))
    assert data["tokens"][:2] == ["a", "large"] and data["tokens"][-1] == "<eos>"
    assert data["prompt"] == "caption en"
    for layer, head, token in ((0, 0, 0), (3, 2, 2), (1, 3, 5)):
        expected = attention.to_image(layer, head, token).flatten().numpy()
        np.testing.assert_allclose(maps[layer, head, token], expected, atol=expected.max() / 500)


def test_file_of_a_large_model_stays_small(tmp_path):
    """The 3B model at 224 pixels: 18 layers of 8 heads, 256 patches, an answer of 20 tokens."""
    attention = random_attention(18, 8, 16, ["▁word"] * 19 + ["<eos>"])
    path = save_attention_html(tmp_path / "large.html", attention, Image.new("RGB", (3000, 2000), "teal"))
    assert path.stat().st_size < 1_200_000
    _, maps = stored_maps(path.read_text(encoding="utf-8"))
    expected = attention.decoder[:, :, attention.queries, :256].numpy()
    assert (np.abs(maps - expected) <= expected.max(axis=-1, keepdims=True) / 500).all()


def test_words_cannot_break_the_page(browser, tmp_path):
    """Tokens and prompts are text, whatever stands in them."""
    tokens = ["</script>", "<img src=x>", "▁", "\n", "&amp;", "빨간", "<loc0012>"]
    attention = random_attention(1, 2, 3, tokens)
    prompt = '"</script><b>' + "DATA"
    path = save_attention_html(tmp_path / "odd.html", attention, Image.new("RGBA", (50, 20)), prompt)
    context = browser.new_context()
    page = watched_page(context)
    page.goto(path.as_uri())
    page.wait_for_function("document.getElementById('told').textContent")
    assert page.locator("#words button").all_inner_texts()[0] == "</script>"
    assert page.locator("#words button").count() == len(tokens)
    assert page.locator("h1").inner_text() == prompt
    assert page.locator("b, img").count() == 0
    assert page.wrong == []
    context.close()


def test_choosing_by_pointer_tap_and_keyboard(page, answered, tmp_path):
    attention, image = answered
    path = save_attention_html(tmp_path / "attention.html", attention, image, "caption en")
    page.goto(path.as_uri())
    page.wait_for_function("document.getElementById('told').textContent")
    told = page.locator("#told")

    def expect(layer: int, head: int, token: int) -> None:
        weights = attention.to_image(layer, head, token)
        word = attention.tokens[token].replace("▁", "")
        row, column = divmod(int(weights.argmax()), attention.grid)
        text = told.inner_text()
        assert f"“{word}”, layer {layer}, head {head}:" in text
        assert f"row {row + 1}, column {column + 1}" in text

    words = page.locator("#words button")
    words.nth(2).hover()
    layer, head = (int(page.locator(f"#{name}").input_value()) for name in ("layer", "head"))
    expect(layer, head, 2)
    before = page.locator("#map").evaluate("canvas => canvas.toDataURL()")
    words.nth(5).click()
    expect(layer, head, 5)
    page.keyboard.press("ArrowRight")
    expect(layer, head, 6)
    assert page.locator("#map").evaluate("canvas => canvas.toDataURL()") != before
    page.locator("#layer").fill("1")
    page.locator("#head").fill("3")
    expect(1, 3, 6)
    page.locator("#head").focus()
    page.keyboard.press("ArrowRight")
    assert "mean of all heads" in told.inner_text()
    share = float(re.search(r": ([\d.]+) % of", told.inner_text())[1]) / 100
    assert abs(share - attention.decoder[1, :, attention.queries[6], :64].sum(dim=-1).mean()) < 0.01
    assert page.wrong == [] and page.outside == []


def test_frame_of_a_notebook_holds_the_same_page(page, answered):
    frame = AttentionFrame(*answered, "caption en")
    markup = frame._repr_html_()
    assert html.unescape(re.search(r'srcdoc="([^"]*)"', markup)[1]) == frame.page
    assert repr(frame) == repr(AttentionFrame(*answered, "what")), "a saved notebook keeps this text: no address in it"
    page.set_content(markup)
    page.frame_locator("iframe").locator("#told", has_text="of the attention goes to the picture").wait_for()
    assert page.wrong == [] and page.outside == []


def test_refuses_what_cannot_be_shown(answered, tmp_path):
    attention, image = answered
    with pytest.raises(ValueError, match=r"ends in \.html"):
        save_attention_html(tmp_path / "attention.png", attention, image)
    with pytest.raises(OSError, match="no folder"):
        save_attention_html(tmp_path / "nowhere" / "attention.html", attention, image)
    broken = random_attention(1, 1, 2, ["a"])
    broken.decoder[0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        save_attention_html(tmp_path / "attention.html", broken, image)
    with pytest.raises(ValueError, match="one token at least"):
        attention_page(random_attention(1, 1, 2, []), image)
    assert list(tmp_path.iterdir()) == []
