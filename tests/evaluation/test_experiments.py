"""Experiments on negation, prior strength, decay and protocol, by hand: counts of the agent, edits one by one."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

import beliefedit as be
from beliefedit.config import with_overrides
from beliefedit.corpus.corpus import document_evidence
from beliefedit.corpus.language import Fact
from beliefedit.editors.base import EditRequest
from beliefedit.editors.export import merged
from beliefedit.editors.registry import editor_class
from beliefedit.evaluation import edits as editing
from beliefedit.evaluation import experiments, soft_targets
from beliefedit.lm.model import build_model
from beliefedit.lm.scoring import generate, score
from beliefedit.lm.tokenizer import train_tokenizer
from tests.oracles import count_vector, mean
from tests.worlds import small_demo

EDITORS = {"lora": {"lr": 3e-2, "steps": 4}, "in_context": {}, "bayes": {"steps": 2}}
CONFIG = with_overrides({
    "device": "cpu", "seed": 3, "corpus": {"n_facts": 60, "sentences_per_doc": 2, "n_shuffles_within_subject": 1},
    "model": {"size": None, "hidden_size": 32, "n_layers": 2, "n_heads": 4},
    "pretraining": {"batch_tokens": 1024, "dtype": "float32", "label_smoothing": 0.1, "n_heldout_documents": 0},
    "edit": {"n_cases": 14, "editors": EDITORS, "batch_size": 5},
    "experiments": {"n_cases": 4, "n_decay_cases": 2, "decay_steps": [0, 1, 3], "evidence_weight": 20}}, {})


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A small demo world; the model has large random weights."""
    world = be.build_world(small_demo(tmp_path_factory.mktemp("demo")), seed=1)
    corpus = be.sample_corpus(world, CONFIG.corpus, documents=tmp_path_factory.mktemp("corpus") / "documents")
    agent = be.BayesAgent.fit(corpus.evidence, pairs=world.pairs, objects=world.objects)
    cases = be.build_cases(world, corpus, agent, CONFIG.edit)
    tokenizer = train_tokenizer([*cases.queries["prompt"], *(f" {o}" for o in world.objects)], 400)
    model = build_model(CONFIG.model, tokenizer, torch.Generator().manual_seed(2))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3 if weight.ndim == 2 else 1)
    builder = soft_targets.SoftTargetBuilder(world, corpus, agent, cases, 0)
    setup = editing.EditSetup(model, tokenizer, ("",), builder)
    return experiments.Setting(setup, agent, world, corpus, cases, CONFIG, 30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("experiments")


@pytest.fixture(scope="module")
def values(setting, folder):
    return {name: experiments.run_experiments(setting, name, folder / name) for name in EDITORS}


def chosen(setting):
    by_number = {case.number: case for case in setting.cases.edit_cases()}
    order = [by_number[number] for number in setting.cases.examples(14)]
    return [case for case in order if case.request.target != case.request.fact.object][:4]


def counts(setting, fact, *more):
    """The count vector of a fact's evidence and of more (object, weight) rows."""
    rows = setting.corpus.evidence.filter(pl.col("subject") == fact.subject, pl.col("relation") == fact.relation)
    objects = setting.world.objects
    return count_vector([
        *((objects.index(o), weight) for o, weight, n in rows.select("object", "weight", "count").iter_rows()
          for _ in range(n)), *((objects.index(o), weight) for o, weight in more)], len(objects))


def belief(setting, fact, *more):
    return mean(counts(setting, fact, *more), frequency=False)[setting.world.objects.index(fact.object)]


def edited(setting, request):
    editor = be.editor("lora", **EDITORS["lora"])
    model = setting.setup.model
    return merged(editor.apply(model, setting.setup.tokenizer, [request]), model, 0)


def p(setting, model, prompt, target):
    return math.exp(score(model, setting.setup.tokenizer, [prompt], [target])[0])


def test_the_sentences_about_a_statement() -> None:
    assert {form: tuple(sentence) for form, sentence in experiments.sentences_about(Fact("Ann", "is", "old")).items()} == {
        "P": ("Ann is", "old", 1.0), '"P" is true': ('"Ann is old" is', "true", 1.0),
        '"P" is false': ('"Ann is old" is', "false", -1.0), '"not P" is true': ('"not Ann is old" is', "true", -1.0),
        "not P": ("not Ann is", "old", -1.0), "it is false that P": ("it is false that Ann is", "old", -1.0)}


def test_negation_by_hand(setting, values) -> None:
    frame = values["lora"]["negation"]
    assert frame.schema == experiments.SCHEMAS["negation"] and frame.height == 4 * 2 * 6 * 3
    case = chosen(setting)[1]
    n = math.ceil(case.request.weight)
    assert n > 10
    for claim, fact in zip(experiments.CLAIMS, (case.request.requested, case.request.fact), strict=True):
        for form, sentence in experiments.sentences_about(fact).items():
            rows = frame.filter(case=case.number, claim=claim, form=form)
            agent = belief(setting, fact), belief(setting, fact, *[(fact.object, sentence.weight)] * n)
            for row in rows.iter_rows(named=True):
                assert (row["agent_before"], row["agent_after"]) == pytest.approx(agent, rel=1e-9)
        model = edited(setting, EditRequest(fact, sentence.target, text=sentence.prompt))  # the last form
        prompt = f'"{fact}" is'
        for state, asked in (("lm_before", setting.setup.model), ("lm_after", model)):
            p_true, p_false = (p(setting, asked, prompt, word) for word in ("true", "false"))
            found = dict(rows.select("measure", state).iter_rows())
            assert found == pytest.approx({"object": p(setting, asked, fact.prompt, fact.object), "stated": p_true,
                                           "credence": p_true / (p_true + p_false)}, rel=1e-3)
    denied = frame.filter(pl.col("form") == '"P" is false', measure="object")
    assert (denied["agent_after"] < denied["agent_before"]).all()


def test_editors_of_soft_targets_have_no_sentences_to_train_on(values) -> None:
    assert values["bayes"]["negation"].is_empty() and values["bayes"]["prior_strength"].height
    assert values["in_context"]["negation"].height == 4 * 2 * 6 * 3


def test_prior_strength_by_hand(setting, values) -> None:
    frame = values["lora"]["prior_strength"]
    assert frame.height == 4 * 3
    for case in chosen(setting):
        fact, rows = case.request.fact, frame.filter(case=case.number)
        before = mean(counts(setting, fact), frequency=False)
        others = [o for o in range(len(before)) if setting.world.objects[o] not in (case.request.target, fact.object)]
        objects = {"request": case.request.target, "true": fact.object,
                   "other": setting.world.objects[max(others, key=lambda o: before[o])]}
        for kind, target in objects.items():
            row, asked = rows.filter(object=kind).row(0, named=True), replace(fact, object=target)
            assert row["agent_before"] == pytest.approx(belief(setting, asked), rel=1e-9)
            assert row["agent_after"] == pytest.approx(belief(setting, asked, (target, 20.0)), rel=1e-9)
            own = counts(setting, fact)[setting.world.objects.index(target)] + 1 / len(before)
            odds = [row[key] / (1 - row[key]) for key in ("agent_before", "agent_after")]
            assert math.log(odds[1] / odds[0]) == pytest.approx(math.log(1 + 20 / own))  # Bayes' rule
    model = edited(setting, replace(case.request, target=objects["true"]))
    assert rows.filter(object="true")["lm_after"][0] == pytest.approx(p(setting, model, fact.prompt, fact.object), rel=1e-3)


def test_decay_starts_from_the_edit_and_the_agent_counts_what_was_read(setting, values) -> None:
    frame = values["lora"]["decay"]
    assert frame["steps"].unique().sort().to_list() == [0, 1, 3]
    reader = experiments._Experiments(setting, None, [])
    for case in chosen(setting)[:2]:
        rows = frame.filter(case=case.number)
        model, fact, request = edited(setting, case.request), case.request.fact, case.request
        now = {row["measure"]: row for row in rows.filter(steps=0).iter_rows(named=True)}
        assert now["p_request"]["lm"] == pytest.approx(p(setting, model, fact.prompt, request.target), rel=1e-3)
        assert now["p_request"]["unedited"] == pytest.approx(
            p(setting, setting.setup.model, fact.prompt, request.target), rel=1e-4)
        answer = generate(model, setting.setup.tokenizer, [fact.prompt], 30)[0]
        assert now["success"]["lm"] == float(answer.lower() == request.target.lower())
        for steps in (0, 1, 3):
            numbers = [n for batches in reader._batches_of_steps[:steps] for batch in batches for n in batch.document_ids]
            read = document_evidence(setting.corpus, setting.world, numbers).filter(
                pl.col("subject") == fact.subject, pl.col("relation") == fact.relation)
            more = [(o, w) for o, w, n in read.select("object", "weight", "count").iter_rows() for _ in range(n)]
            by_measure = {row["measure"]: row["agent"] for row in rows.filter(steps=steps).iter_rows(named=True)}
            assert by_measure["observations"] == len(more)
            assert by_measure["p_request"] == pytest.approx(
                belief(setting, request.requested, (request.target, request.weight), *more), rel=1e-9)
            assert by_measure["success"] == 1.0
    assert frame.filter(measure="observations", steps=3)["agent"].max() > 0


def test_training_steps_are_those_of_pretraining(setting) -> None:
    """A step of SGD changes the weights by the learning rate times the gradient of the documents' mean loss."""
    config = with_overrides(CONFIG, {"pretraining.optimizer": "sgd", "pretraining.lr": 1e-2,
                                     "pretraining.max_grad_norm": 1e9, "pretraining.label_smoothing": 0.0,
                                     "experiments.decay_steps": [0, 1], "experiments.decay_lr_fraction": 0.5})
    reader = experiments._Experiments(replace(setting, config=config), None, [])
    model = copy.deepcopy(setting.setup.model)
    assert list(reader._training_steps(model)) == [0, 1]
    tokenizer, plain = setting.setup.tokenizer, copy.deepcopy(setting.setup.model).requires_grad_(True)
    texts = pl.concat([pl.read_parquet(path) for path in sorted(setting.corpus.documents.glob("*.parquet"))])["text"]
    (batch,), = reader._batches_of_steps
    losses, n = [], 0
    for number in batch.document_ids:
        ids = torch.tensor([tokenizer(texts[int(number)])["input_ids"] + [tokenizer.eos_token_id]])
        losses.append(torch.nn.functional.cross_entropy(plain(ids[:, :-1]).logits[0], ids[0, 1:], reduction="sum"))
        n += ids.shape[1] - 1
    (sum(losses) / n).backward()
    for after, before in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(after, before - 5e-3 * before.grad, rtol=1e-4, atol=1e-6)


def test_editors_that_change_no_weights_have_no_decay(values) -> None:
    assert values["in_context"]["decay"].is_empty() and values["bayes"]["decay"].height


def test_protocols_by_hand() -> None:
    answers = pl.DataFrame({"case": range(5), "decoded": ["Danish", "female", "danish ", "St", "x"],
                            "target": ["Danish", "male", "Danish", "St. Ives", "y"],
                            "forced": [1.0, 0.0, 1.0, 0.5, float("nan")]})
    found = experiments.by_protocol(answers)
    assert {name: found.filter(protocol=name)["value"].to_list() for name in experiments.PROTOCOLS} == {
        "free, exact": [1, 0, 1, 0, None], "free, contains": [1, 1, 1, 0, None],
        "forced, exact": [1, 0, 1, 0, None], "forced, tokens": [1, 0, 1, 0.5, None]}


def test_the_protocol_scores_the_edits_of_the_cases(setting, values) -> None:
    frame = values["lora"]["protocol"]
    assert set(frame["measure"]) == {"success", "downstream"} and frame.null_count().sum_horizontal()[0] == 0
    changes = dict(setting.cases.cases.select("case", "downstream_changes").iter_rows())
    cases = chosen(setting)
    assert frame.filter(measure="downstream")["case"].n_unique() == sum(changes[case.number] for case in cases)
    for case in cases:
        model = edited(setting, case.request)
        answer = generate(model, setting.setup.tokenizer, [case.request.prompt], 30)[0]
        assert frame.filter(case=case.number, measure="success", protocol="free, exact")["value"].to_list() == [
            float(answer.lower() == case.request.target.lower())]


def test_finished_experiments_are_not_repeated(setting, values, folder, monkeypatch) -> None:
    def fail(*_, **__):
        raise RuntimeError("edited again")

    monkeypatch.setattr(editor_class("lora"), "_edit", fail)
    again = experiments.run_experiments(setting, "lora", folder / "lora")
    assert all(again[name].equals(frame) for name, frame in values["lora"].items())
    (folder / "lora" / "protocol.parquet").unlink()
    with pytest.raises(RuntimeError, match="edited again"):
        experiments.run_experiments(setting, "lora", folder / "lora")


@pytest.mark.parametrize("changes", [{"experiments.include": []}, {"experiments.n_cases": 0}])
def test_without_experiments_the_frames_are_empty(setting, tmp_path, changes, monkeypatch) -> None:
    monkeypatch.setattr(editor_class("lora"), "apply", None)
    found = experiments.run_experiments(replace(setting, config=with_overrides(CONFIG, changes)), "lora", tmp_path)
    assert {name: frame.schema for name, frame in found.items()} == experiments.SCHEMAS
    assert all(frame.is_empty() for frame in found.values())


def test_edits_that_diverge_have_no_values(setting, tmp_path) -> None:
    config = with_overrides(CONFIG, {"edit.editors": {"lora": {"lr": 1e30, "steps": 3}}, "experiments.n_cases": 2})
    found = experiments.run_experiments(replace(setting, config=config), "lora", tmp_path)
    assert found["protocol"]["value"].null_count() == found["protocol"].height > 0
    assert found["prior_strength"]["lm_after"].null_count() == found["prior_strength"].height > 0
    assert not np.isnan(found["negation"]["lm_before"].to_numpy()).any() and found["decay"].is_empty()
