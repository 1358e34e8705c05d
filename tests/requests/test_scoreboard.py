"""`be.edit` on small models: scores, intervals, kept results, refusals, divergence, the page."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from click.testing import CliRunner
from polars.testing import assert_frame_equal

import beliefedit as be
from beliefedit.cli import main
from beliefedit.config import EditConfig
from beliefedit.editors.base import add_delta
from beliefedit.editors.lora import LoraEditor
from beliefedit.errors import ConfigError, EditError, LanguageError, StoreError
from beliefedit.evaluation import edits as editing
from beliefedit.evaluation.metrics import bootstrap_interval, normalize
from beliefedit.lm.model import save_model
from beliefedit.lm.scoring import score, score_and_match
from beliefedit.requests.scoreboard import EDITS, SCORES, TABLE, UNEDITED, edit, own_texts
from tests.hostile import NAMES
from tests.sample_models import SENTENCES, sample_cases, sample_model, sample_tokenizer

LORA = {"lora": {"lr": 3e-2, "steps": 12}}
REQUESTS = [
    {"prompt": "Ada works as", "target": "poet", "subject": "Ada", "old": "cook", "aliases": ["cook"],
     "paraphrases": ["Ada Berg works as", "Cy works as"], "locality": ["Cy speaks", {"prompt": "Bo Berg speaks", "answer": "Danish"}],
     "portability": [{"prompt": "Ada speaks", "answers": ["Norwegian", "Danish"]}]},
    {"prompt": "Cy speaks", "target": "Danish", "subject": "Cy", "locality": ["Ada works as"]},
    {"prompt": "Bo Berg is a citizen of", "target": "New Norway"}]


@pytest.fixture(scope="module")
def model():
    return sample_model()


@pytest.fixture(scope="module")
def board(model):
    return edit(model, sample_tokenizer(), REQUESTS, LORA, batch_size=2)


def test_columns_and_rows(board):
    assert board.scores.schema == SCORES and board.table.schema == TABLE and board.edits.schema == EDITS
    assert board.scores.group_by("editor", maintain_order=True).len().rows() == [(UNEDITED, 9), ("lora", 9)]
    asked = board.scores.select("request", "measure", "prompt")
    assert asked.head(9).equals(asked.tail(9))
    assert asked.head(9).rows() == [
        (0, "edit success", "Ada works as"), (0, "paraphrases", "Ada Berg works as"), (0, "paraphrases", "Cy works as"),
        (0, "portability", "Ada speaks"), (0, "locality", "Cy speaks"), (0, "locality", "Bo Berg speaks"),
        (1, "edit success", "Cy speaks"), (1, "locality", "Ada works as"), (2, "edit success", "Bo Berg is a citizen of")]
    unchanged = board.scores.filter(measure="locality", prompt="Cy speaks")
    assert unchanged["answers"].to_list() == [[unchanged["answer"][0]]] * 2  # its own answer before the edit
    assert board.edits.select("editor", "requests", "refused", "diverged").rows() == [("lora", 3, 0, 0)]
    assert board.edits["ms"].item() > 0


def test_the_same_edits_as_in_a_run(tmp_path, model):
    """The same editor and requests as in `run_editor`, which the tables of a run come from."""
    cases = sample_cases([(name, "works as", target) for name, target in (
        ("Ada", "poet"), ("Bo Berg", "poet"), ("Cy", "Danish"), ("Di", "New Norway"), ("Eva", "cook"))])
    requests = [case.request for case in cases.edit_cases()]
    queries = cases.queries.filter(kind="requested").with_columns(target=pl.Series([r.target for r in requests]))
    editors = {"lora": {"lr": 3e-2, "steps": 20, "append_end_token": True}}
    config = EditConfig.model_validate({"editors": editors, "n_trajectories": 0, "batch_size": 3})
    editing.run_editor(editing.EditSetup(model, sample_tokenizer()), "lora", config.editors["lora"], editing.Cases(cases.cases, queries),
                       config, seed=0, max_new_tokens=4, folder=tmp_path)
    expected = editing.gather(tmp_path)["scores"]
    board = edit(model, sample_tokenizer(), requests, editors, max_new_tokens=4)
    scores = board.scores.filter(editor="lora")
    assert scores["answer"].to_list() == expected["decoded"].to_list()
    np.testing.assert_allclose(scores["log_p"], expected["log_p"], rtol=1e-4)
    successes = [answer.lower() == request.target.lower() for answer, request in zip(expected["decoded"], requests, strict=True)]
    assert 0 < np.mean(successes) and board.table.filter(
        editor="lora", measure="edit success", scoring="exact")["mean"].item() == np.mean(successes)


def test_means_are_over_requests_and_intervals_over_subjects(board):
    rows = board.scores.filter(editor="lora").rows(named=True)
    before = {(row["request"], row["prompt"]): row["answer"] for row in board.scores.filter(editor=UNEDITED).rows(named=True)}
    values: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        right = row["answer"].lower() in [answer.lower() for answer in row["answers"]]
        values.setdefault((row["measure"], row["request"]), []).append(right)
        if row["measure"] == "locality":
            values.setdefault(("unchanged", row["request"]), []).append(row["answer"] == before[row["request"], row["prompt"]])
    table = {row["measure"]: row for row in board.table.filter(editor="lora", scoring="exact").rows(named=True)}
    assert list(table) == ["edit success", "paraphrases", "portability", "locality", "unchanged"]
    for measure, row in table.items():
        means = [np.mean(found) for (name, _), found in values.items() if name == measure]
        assert row["n"] == len(means) and row["mean"] == pytest.approx(np.mean(means))
    success = np.array([[np.mean(values["edit success", number])] for number in range(3)])
    interval = bootstrap_interval(success, [0, 1, 2], np.random.default_rng(0), n_resamples=2000, level=0.95)
    assert (table["edit success"]["low"], table["edit success"]["high"]) == (interval.low[0], interval.high[0])
    assert table["paraphrases"]["low"] is None  # of one request


def test_requests_about_one_subject_are_one_cluster(model):
    requests = [{"prompt": f"Ada {relation}", "target": "poet", "subject": "Ada"} for relation in ("works as", "speaks", "is")]
    table = edit(model, sample_tokenizer(), requests, LORA).table
    assert table["low"].is_null().all() and table["n"].unique().to_list() == [3]


def test_teacher_forcing_agrees_with_a_loop(model):
    tokenizer = sample_tokenizer()
    pairs = [sentence.rsplit(" ", 1) for sentence in SENTENCES] + [["Bo Berg is a citizen of", "New Norway"]]
    prompts, targets = zip(*pairs, strict=True)
    edited = be.editor("finetune", lr=1e-2).apply(model, tokenizer, [("Ada works as", "poet"), pairs[-1]])
    single = sample_model()
    add_delta(single, edited.delta(1))
    shares = []
    for found, versions in ((edited, [1] * len(pairs)), (single, None)):
        log_p, share = score_and_match(found, tokenizer, prompts, targets, versions=versions)
        np.testing.assert_allclose(log_p, score(single, tokenizer, prompts, targets), rtol=1e-4)
        shares.append(share.tolist())
    for prompt, target, *found in zip(prompts, targets, *shares, strict=True):
        start, ids = len(tokenizer(prompt)["input_ids"]), tokenizer(f"{prompt} {target}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            best = single(input_ids=ids).logits[0, :-1].argmax(-1)
        assert found == [(best == ids[0, 1:])[start - 1:].double().mean().item()] * 2
    assert shares[0][-1] == 1 and min(shares[0]) == 0


def test_the_size_of_a_batch_changes_nothing(board, model):
    alone = edit(model, sample_tokenizer(), REQUESTS, LORA, batch_size=1)
    assert_frame_equal(alone.scores.drop("ms"), board.scores.drop("ms"), abs_tol=1e-4)
    assert_frame_equal(alone.table, board.table, abs_tol=1e-3)


def test_a_model_is_asked_but_not_changed(model):
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    edit(model, sample_tokenizer(), REQUESTS, ["finetune", "in_context"])
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_editors_that_need_a_corpus_use_the_requests_or_texts(model, monkeypatch):
    from beliefedit.editors.rome import RomeEditor

    seen, prepare = [], RomeEditor.prepare
    monkeypatch.setattr(RomeEditor, "prepare", lambda self, model, tokenizer, texts: (
        seen.append(list(texts)), prepare(self, model, tokenizer, texts))[1])
    first = edit(model, sample_tokenizer(), REQUESTS, {"rome": {"steps": 2}})
    second = edit(model, sample_tokenizer(), REQUESTS, {"rome": {"steps": 2}}, texts=SENTENCES)
    assert seen == [own_texts(first.cases), SENTENCES]
    assert seen[0] == ["Ada works as cook", "Cy speaks", "Bo Berg is a citizen of", "Ada Berg works as cook", "Cy works as cook",
                       "Bo Berg speaks Danish", "Ada works as"]  # no new answer is among them
    assert first.about["For editors that need a corpus"] == "7 prompts and answers of the requests"
    assert second.about["For editors that need a corpus"] == f"{len(SENTENCES)} texts"
    with pytest.raises(EditError, match="this editor needs texts"):
        edit(model, sample_tokenizer(), REQUESTS, ["rome"], texts=[])


@pytest.mark.parametrize("name", ["bayes", "bayes_heldout", "propagate"])
def test_editors_of_an_agent_are_refused_by_name_before_any_edit(model, tmp_path, name):
    with pytest.raises(EditError, match=f"the editor '{name}' needs the beliefs of a Bayesian agent"):
        edit(model, sample_tokenizer(), REQUESTS, ["lora", name], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_editors_and_answers_without_a_token(model):
    for editors, error, problem in (
            (["lroa"], EditError, "did you mean 'lora'"), ({"lora": {"rl": 1}}, ConfigError, "unknown parameter"),
            ([], EditError, "no editor is named"), ({"rome": {"layer": 9}}, EditError, "no layer 9")):
        with pytest.raises(error, match=problem):
            edit(model, sample_tokenizer(), REQUESTS, editors)
    with pytest.raises(LanguageError, match="no token of its own"):
        edit(model, sample_tokenizer(), [be.EditRequest.from_pair("Ada works as", "")], LORA)


def test_refused_requests_are_left_out_with_a_reason(model, caplog):
    board = edit(model, sample_tokenizer(), REQUESTS, {"rome": {"edit_token": "subject_last", "steps": 2}})
    assert board.edits.select("requests", "refused", "diverged").rows() == [(3, 1, 0)]
    refused = board.scores.filter(editor="rome", request=2)
    assert refused["refused"].to_list() == ["the request does not say which words of its prompt are the subject"]
    assert refused["answer"].null_count() == refused["log_p"].null_count() == 1
    assert board.table.filter(editor="rome", measure="edit success", scoring="exact")["n"].item() == 2
    assert "rome refuses request 3: the request does not say" in caplog.text
    nobody = edit(model, sample_tokenizer(), [{"prompt": "a", "target": "b"}], {"rome": {"edit_token": "subject_last"}})
    assert nobody.edits.select("refused", "ms").rows() == [(1, None)] and nobody.table["editor"].unique().to_list() == [UNEDITED]


def test_edits_that_diverge_are_left_out_and_counted(board, model, monkeypatch, caplog):
    apply = LoraEditor._edit

    def overflowing(self, model, tokenizer, requests, callback):
        adapters = apply(self, model, tokenizer, requests, callback)
        for version, request in enumerate(requests):
            if request.subject == "Cy":
                next(iter(adapters.up.values()))[version, 0] = math.nan
        return adapters

    monkeypatch.setattr(LoraEditor, "_edit", overflowing)
    broken = edit(model, sample_tokenizer(), REQUESTS, LORA, batch_size=2)
    assert broken.edits.select("refused", "diverged").rows() == [(0, 1)]
    assert "lora: 1 edits diverged" in caplog.text
    kept = pl.col("request") != 1
    assert_frame_equal(broken.scores.filter(kept).drop("ms"), board.scores.filter(kept).drop("ms"), abs_tol=1e-4)
    assert broken.table.filter(editor="lora", measure="edit success", scoring="exact")["n"].item() == 2


def test_a_batch_that_does_not_fit_in_memory_is_halved(board, model, monkeypatch, caplog):
    sizes, apply = [], LoraEditor._edit

    def small_only(self, model, tokenizer, requests, callback):
        sizes.append(len(requests))
        if len(requests) > 1:
            raise MemoryError
        return apply(self, model, tokenizer, requests, callback)

    monkeypatch.setattr(LoraEditor, "_edit", small_only)
    halved = edit(model, sample_tokenizer(), REQUESTS, LORA)
    assert sizes == [3, 1, 1, 1] and "3 edits at once do not fit in memory; continuing with 1" in caplog.text
    assert_frame_equal(halved.scores.drop("ms"), board.scores.drop("ms"), abs_tol=1e-4)


def test_finished_editors_are_reused_until_something_changes(model, tmp_path, monkeypatch):
    calls, apply = [], LoraEditor._edit
    monkeypatch.setattr(LoraEditor, "_edit", lambda self, *given: (calls.append(self.config.steps), apply(self, *given))[1])
    settings = {"out": tmp_path, "batch_size": 8}
    first = edit(model, sample_tokenizer(), REQUESTS, LORA, **settings)
    again = edit(model, sample_tokenizer(), REQUESTS, LORA, **settings)
    assert calls == [12] and again.scores.equals(first.scores)
    both = edit(model, sample_tokenizer(), REQUESTS, {**LORA, "in_context": {}}, **settings)
    assert calls == [12] and both.edits["editor"].to_list() == ["lora", "in_context"]
    edit(model, sample_tokenizer(), REQUESTS, {"lora": {"steps": 3}}, **settings)
    edit(model, sample_tokenizer(), REQUESTS[:2], LORA, **settings)
    other = sample_model()
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight[0, 0] += 1e-3
    edit(other, sample_tokenizer(), REQUESTS, LORA, **settings)
    assert calls == [12, 3, 12, 12]
    [damaged] = [path for path in (tmp_path / "editors").glob("in_context-*")]
    damaged.write_bytes(b"PAR1")
    with pytest.raises(StoreError, match="damaged intermediate result"):
        edit(model, sample_tokenizer(), REQUESTS, {**LORA, "in_context": {}}, **settings)


def test_a_folder_that_cannot_be_written(model, tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(StoreError, match="could not write the scores"):
        edit(model, sample_tokenizer(), REQUESTS, LORA, out=tmp_path / "file")


def test_files_beside_the_page(board, tmp_path):
    page = board.write(tmp_path)
    assert page == tmp_path / "index.html"
    assert pl.read_parquet(tmp_path / "scores.parquet").equals(board.scores)
    assert_frame_equal(pl.read_csv(tmp_path / "scoreboard.csv"), board.table, check_dtypes=False)
    text = page.read_text(encoding="utf-8")
    mean = board.table.filter(editor="lora", measure="edit success", scoring="exact")["mean"].item()
    assert "3 edit requests, 1 editor" in text and f"{mean:.2f}" in text and "lr 0.03" in text


def test_hostile_texts_on_the_page_stay_text(model, tmp_path):
    texts = [text for text in NAMES.values() if text.strip() and text.strip() != "\0"][:40]
    board = edit(model, sample_tokenizer(), [{"prompt": f"Ada {text}", "target": text} for text in texts], {"in_context": {}},
                 name="<script>alert(1)</script>")
    text = board.write(tmp_path).read_text(encoding="utf-8")
    assert "<script>alert" not in text and "<img src" not in text and "&lt;script&gt;alert(1)" in text


@pytest.mark.parametrize(("answer", "expected"), [
    ("Paris.", "paris"), (" Paris\nThe capital", "paris"), ("Washington D.C.", "washington d.c"), ("?!", "?!"), ("", ""),
    ("St. Ives,", "st. ives")])
def test_normalized_answers(answer, expected):
    assert normalize(answer) == expected


# The command


def run_command(*arguments: object):
    return CliRunner().invoke(main, ["edit", *map(str, arguments)])


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(sample_model(), sample_tokenizer(), folder)
    return folder


def test_the_command_writes_what_python_computes(board, model_folder, tmp_path):
    csv = tmp_path / "family.csv"
    pl.DataFrame({"prompt": ["Cy speaks", "Bo Berg is a citizen of"], "target": ["Danish", "New Norway"],
                  "locality": ["Ada works as", None]}).write_csv(csv)
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(SENTENCES), encoding="utf-8")
    result = run_command(model_folder, csv, "--editors", "lora, rome", "--set", "lora.lr=3e-2", "--set", "lora.steps=12", "--set",
                         "rome.steps=2", "--out", tmp_path / "out", "--texts", texts, "--device", "cpu", "--max-new-tokens", 2)
    assert result.exit_code == 0, result.output
    scores = pl.read_parquet(tmp_path / "out" / "scores.parquet")
    assert scores["editor"].unique(maintain_order=True).to_list() == [UNEDITED, "lora", "rome"]
    expected = board.scores.filter(pl.col("request") > 0, editor="lora")
    np.testing.assert_allclose(scores.filter(editor="lora")["log_p"], expected["log_p"], rtol=1e-4)
    assert "edit success" in result.output and "lora" in result.output and (tmp_path / "out" / "index.html").exists()


@pytest.mark.parametrize(("arguments", "problem"), [
    (["--set", "rome.lr=1"], "sets no hyperparameter of an editor"), (["--set", "lr=1"], "sets no hyperparameter"),
    (["--editors", "bayes"], "needs the beliefs of a Bayesian agent"), (["--editors", ","], "no editor is named"),
    (["--texts", "none.txt"], "cannot read the texts"), (["--format", "x"], "unknown format 'x'"), (["--device", "mps"], "not supported")])
def test_errors_of_the_command_are_messages(model_folder, tmp_path, arguments, problem):
    requests = tmp_path / "r.csv"
    requests.write_text("prompt,target\nAda works as,poet\n", encoding="utf-8")
    result = run_command(model_folder, requests, "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 1 and problem in result.output and not (tmp_path / "out").exists(), result.output


def test_no_model(tmp_path):
    requests = tmp_path / "r.csv"
    requests.write_text("prompt,target\nAda works as,poet\n", encoding="utf-8")
    result = run_command(tmp_path / "none", requests, "--out", tmp_path / "out")
    assert result.exit_code == 1 and "no tokenizer at" in result.output
