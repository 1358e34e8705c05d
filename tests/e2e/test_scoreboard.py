"""The page of `be.edit` in a browser: on a screen, on a phone, and with hostile texts."""

import pytest

import beliefedit as be
from tests.hostile import NAMES
from tests.sample_models import sample_model, sample_tokenizer

from .test_reports import overflow, unsafe, visit  # noqa: F401 - visit is a fixture

TEXTS = [text for text in NAMES.values() if text.strip() and "\0" not in text][:50]


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    requests = [{"prompt": f"Ada {text} is", "target": text, "locality": ["Cy speaks"], "paraphrases": [text]} for text in TEXTS]
    board = be.edit(sample_model(), sample_tokenizer(), requests, {"lora": {"steps": 2}, "in_context": {}}, max_new_tokens=8, name=TEXTS[0])
    return board, board.write(tmp_path_factory.mktemp("board"))


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_shows_editors_and_answers_and_runs_nothing(visit, board, artifacts, width):  # noqa: F811
    scores, path = board
    page = visit(path, width)
    page.locator(".js-plotly-plot .scatterlayer .point").first.wait_for()
    page.screenshot(path=artifacts / f"scoreboard-{width}.png", full_page=True)
    assert page.locator("h1").inner_text() == f"{len(TEXTS)} edit requests, 2 editors"
    assert page.locator(".scatterlayer .trace").count() == 3
    table = page.locator("#scoreboard ~ .table-box table").first
    assert table.locator("tbody tr td:first-child").all_inner_texts() == ["before editing", "lora", "in_context"]
    mean = scores.table.filter(editor="lora", measure="edit success", scoring="exact")["mean"].item()
    assert table.locator("tbody tr").nth(1).locator("td").nth(1).inner_text().startswith(f"{mean:.2f}")
    answers = page.locator("#answers ~ .table-box tbody tr")
    assert answers.count() == min(len(TEXTS), 100)
    for index, text in enumerate(TEXTS[:20]):
        assert " ".join(text[:60].split()) in " ".join(answers.nth(index).locator("td").nth(2).text_content().split())
    assert unsafe(page) == [] and overflow(page) <= 0
