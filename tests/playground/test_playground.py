"""The playground without a page: search, requests, outlooks, pictures, and what they show."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import beliefedit as be
from beliefedit.agent.agent import BayesAgent
from beliefedit.corpus.language import Fact
from beliefedit.editors.base import EditRequest
from beliefedit.errors import EditError, EvidenceError, StoreError, TrainingError
from beliefedit.playground import html as show
from beliefedit.playground.agent_view import CAP, EvidenceStrength, largest
from beliefedit.playground.background import Cancelled, Worker, error_text, silent
from beliefedit.playground.files import make_run, open_run, runs_beside
from beliefedit.playground.search import Suggestions, fold
from beliefedit.playground.snapshot import TOP, draw
from tests.sample_notebooks import HOSTILE
from tests.sample_playground import open_tiny

NAMES = st.lists(st.text("aAbé ", min_size=1, max_size=6), unique=True, max_size=12)


def slow_find(names: list[str], text: str, n: int, first: list[str]) -> list[str]:
    """Sorted by kind of match, then preferred ones, then order."""
    typed = fold(text.strip())
    found = []
    for place, name in enumerate(names):
        folded = fold(name)
        if typed and typed not in folded:
            continue
        kind = (0 if not typed or folded == typed else 1 if folded.startswith(typed)
                else 2 if " " + typed in folded else 3)
        found.append((kind, first.index(name) if name in first else len(first), place, name))
    return [name for *_, name in sorted(found)][:n]


@settings(max_examples=200, deadline=None)
@given(NAMES, st.text("aAbé ", max_size=3), st.integers(1, 5), st.data())
def test_suggestions_are_the_best_matches(names, text, n, data):
    first = data.draw(st.permutations(names))[:3]
    assert Suggestions(names).find(text, n, first) == slow_find(names, text, n, first)


def test_a_name_may_be_typed_without_case_and_accents():
    names = Suggestions(["Émigré", "Ada", "ada", "👩🏽‍🔬 x"])
    assert names.resolve("emigre") == "Émigré" and names.resolve("Ada") == "Ada" and names.resolve("👩🏽‍🔬 X")
    assert names.resolve("ADA") is None, "two names are meant"
    assert names.resolve("") is None and names.find("zzz") == []


AGENT = BayesAgent.fit(pl.DataFrame({"subject": ["ann"] * 2, "relation": ["r"] * 2, "object": ["a", "b"],
                                     "weight": [9.0, 1.0]}), pairs={}, objects=["a", "b", "c"])


@pytest.mark.parametrize("p", [0.5, 0.95, 0.99])
def test_evidence_brings_the_belief_just_to_the_probability(p):
    weight = EvidenceStrength(p).observations(AGENT, Fact("ann", "r", "b"))
    told = AGENT.after("ann", "r", "b", weight)
    assert told.probability("ann", "r", "b", "direct") >= p - 1e-12
    assert AGENT.after("ann", "r", "b", weight - 1).probability("ann", "r", "b", "direct") < p


def test_other_strengths():
    fact = Fact("ann", "r", "b")
    assert EvidenceStrength(None, 0.5).observations(AGENT, fact) == 0.5
    for strength in (*(EvidenceStrength(None, weight) for weight in (0.0, -1.0, math.nan, math.inf)),
                     EvidenceStrength(1.0), EvidenceStrength(0.0)):
        with pytest.raises(EditError, match="evidence"):
            strength.observations(AGENT, fact)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(1, 9))
def test_largest_objects_of_a_belief(counts, n):
    p = np.array(counts, dtype=float)
    names = [str(place) for place in range(len(p))]
    assert largest(names, p, n) == [names[place] for place in np.argsort(-p, kind="stable")[:n]]


@pytest.fixture(scope="module")
def session(playground_run):
    made, _ = open_run(open_tiny(playground_run))
    yield made
    made.close()


def test_an_outlook_is_what_the_agent_believes(session):
    known, request = session.known, session.known.example()
    outlook = known.outlook(request, known.agent)
    updated = known.agent.after(request.subject, request.fact.relation, request.target, request.weight)
    assert [q.role for q in outlook.questions] == ["edited", "downstream", "other subject"]
    for place, question in enumerate(outlook.questions):
        view = "predictive" if place else "direct"
        for belief, agent in ((question.before, known.agent), (question.after, updated)):
            np.testing.assert_array_equal(belief, agent.distribution(
                question.fact.subject, question.fact.relation, view))
    edited, downstream, _ = outlook.questions
    assert downstream.after.argmax() != downstream.before.argmax()
    assert edited.after[known.agent.objects.index(request.target)] == pytest.approx(0.95, abs=0.02)


def test_the_ripple_is_capped_and_says_how_many_more(session):
    known, request = session.known, session.known.example()
    outlook = known.outlook(request, known.agent)
    everything = known.agent.ripple(known.facts, request.subject, request.fact.relation, request.target,
                                    request.weight)
    moved = everything.filter(pl.col("path") != "request")
    shown = [one for one in outlook.ripple if one.path not in ("request", "still")]
    assert len(outlook.ripple) <= CAP and len(shown) + outlook.n_more == len(moved)
    expected = moved.select("subject", "relation", "object", "path", "p_before", "p_after").head(len(shown)).rows()
    assert [(one.fact.subject, one.fact.relation, one.fact.object, one.path, one.p_agent_before, one.p_agent)
            for one in shown] == expected
    still = [one for one in outlook.ripple if one.path == "still"]
    assert still and all(one.by_agent == 0 for one in still)
    assert outlook.ripple[0].fact == request.requested and outlook.ripple[0].path == "request"


@pytest.mark.parametrize("kind", ["subject", "relation", "object"])
def test_unknown_names_are_explained(session, kind):
    names = {"subject": "Sven Galfell", "relation": "works as", "object": "zoologist", kind: "Nobody"}
    with pytest.raises(EditError, match=f"no {kind} is called 'Nobody'") as caught:
        session.known.named(*names.values())
    assert "pick a suggestion" in caught.value.hint


def test_own_relations_and_usual_objects_come_first(session):
    known, fact = session.known, session.known.example().fact
    own = known.relations_of[fact.subject]
    assert known.suggest("relation", "", fact.subject)[:len(own)] == own
    usual = known.suggest("object", "", relation=fact.relation, n=3)
    assert all(known.facts.filter(relation=fact.relation, object=name).height for name in usual)
    assert len(known.suggest("subject", "", n=5)) == 5


class SlowAnswers:
    """Beliefs that are made up, and asked for in full."""

    def __init__(self, objects, seed):
        self.objects, self.rng, self.known = objects, np.random.default_rng(seed), {}

    def p(self, prompt, target):
        return self.known.setdefault((prompt, target), float(self.rng.random() ** 8 / 4))

    def strongest(self, prompt, n):
        return sorted(self.objects, key=lambda o: -self.p(prompt, o))[:n]

    def ask(self, pairs):
        for pair in pairs:
            self.p(*pair)


def test_a_picture_shows_the_likeliest_of_anybody_and_the_rest(session):
    known, request = session.known, session.known.example()
    objects = known.agent.objects
    outlook = known.outlook(request, known.agent)
    before, after = SlowAnswers(objects, 1), SlowAnswers(objects, 2)
    picture = draw(outlook, objects, before, after)
    for place, panel in enumerate(picture.panels):
        prompt = panel.fact.prompt
        best = {o: max(before.p(prompt, o), after.p(prompt, o), outlook.questions[place].after[i]) for i, o in enumerate(objects)}
        must = {panel.fact.object} | ({request.target} if place == 0 else set())
        ranked = sorted((o for o in objects if o not in must), key=lambda o: -best[o])[:TOP - len(must)]
        assert {bar.object for bar in panel.bars[:-1]} == must | set(ranked)
        assert panel.bars[-1].object is None and len(panel.bars) == TOP + 1
        for column in ("p_agent", "p_agent_before"):
            assert sum(getattr(bar, column) for bar in panel.bars) == pytest.approx(1)
    for name, (a, b) in picture.logic.errors.items():
        for state, value in ((0, a), (1, b)):
            p = {key: row[state] for key, row in picture.logic.p.items()}
            expected = {"true_false": p["stated"] - p["A"], "negation": p["A"] - 1 + p["not A"],
                        "conjunction": p["A and B"] - p["A"] * p["B"], "commutation": p["A and B"] - p["B and A"],
                        "disjunction": p["A or B"] - (p["A"] + p["B"] - p["A"] * p["B"])}[name]
            assert value == pytest.approx(abs(expected))
    for model, state in ((before, 0), (after, 1)):
        prompt = f'"not {request.requested}" is'
        true, false = model.p(prompt, "true"), model.p(prompt, "false")
        assert picture.logic.p["not A"][state] == pytest.approx(true / (true + false))
    alone = draw(outlook, objects)
    assert all(math.isnan(bar.p_before) for panel in alone.panels for bar in panel.bars)


class Tags(HTMLParser):
    """Elements, attributes and text of some HTML."""

    def __init__(self, markup):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(markup)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, {name for name, _ in attributes}))

    def handle_data(self, data):
        self.text += data


ALLOWED = {"div", "p", "span", "i", "section", "h3", "bdi", "b", "em", "u", "br", "table", "thead", "tbody", "tr", "th",
           "td", "caption", "ol", "li", "svg", "g", "path", "circle", "text", "tspan", "title"}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text(session, name):
    known = session.known
    fact = known.fact(name, known.relations_of[name][0])
    request = EditRequest(fact, next(o for o in known.agent.objects if o != fact.object))
    picture = draw(session.outlook(request), known.agent.objects)
    markup = (show.belief_bars(picture) + show.logic(picture.logic) + show.ripple(picture)
              + show.message(name, "problem"))
    seen = Tags(markup)
    assert {tag for tag, _ in seen.tags} <= ALLOWED
    assert not any(attribute.startswith("on") or attribute in ("href", "src") for _, names in seen.tags
                   for attribute in names)
    assert name in seen.text


def test_a_folder_without_a_model_is_refused_and_left_alone(tmp_path, playground_run):
    params = playground_run / "params" / "tiny.yaml"
    (tmp_path / "empty").mkdir()
    for name in ("none", "empty"):
        with pytest.raises(StoreError, match=f"{name} holds no .* of this configuration"):
            open_run(be.Run(tmp_path / name, params, read_only=True))
    assert list((tmp_path / "empty").iterdir()) == [] and not (tmp_path / "none").exists()


def test_a_run_of_other_parameters_is_not_trained_again(playground_run, tmp_path):
    other = open_tiny(playground_run, {"pretraining.token_budget": 70_000})
    with pytest.raises(StoreError, match="holds no model of this configuration"):
        open_run(other)
    recorded = tmp_path / "runs" / "tiny"
    shutil.copytree(playground_run / "runs" / "tiny", recorded)
    config = open_tiny(playground_run).config.model_dump(mode="json")
    (recorded / "summary.json").write_text(json.dumps({"config": config}))
    made, opened = open_run(be.Run(recorded, other.config, read_only=True))
    made.close()
    assert opened.config.pretraining.token_budget == 500_000, "the configuration that is recorded"
    assert runs_beside(recorded) == [recorded]


RUN_ALL = """
import sys, time
print("arguments", *sys.argv[1:], file=sys.stderr)
print("  3 s  cell 2/9: Training: 135k/0.3M [00:30<01:30, 2.51ktok/s]", file=sys.stderr, flush=True)
{}
"""


def test_a_run_is_made_with_progress_and_can_be_stopped(tmp_path):
    params = tmp_path / "params" / "small.yaml"
    params.parent.mkdir()
    with pytest.raises(TrainingError, match="no run_all.py"):
        make_run(params, tmp_path / "run", print)
    told = []
    (tmp_path / "run_all.py").write_text(RUN_ALL.format(""))
    make_run(params, tmp_path / "run", lambda *what: told.append(what))
    assert f"--params {params} --out {tmp_path / 'run'}" in told[0][2] and told[1][:2] == (2, 9)
    (tmp_path / "run_all.py").write_text(RUN_ALL.format("sys.exit('no room left')"))
    with pytest.raises(TrainingError, match="the run failed: no room left"):
        make_run(params, tmp_path / "run", silent)
    (tmp_path / "run_all.py").write_text(RUN_ALL.format("time.sleep(600)"))

    def stop(done, total, text):
        if done:
            raise Cancelled

    with pytest.raises(Cancelled):
        make_run(params, tmp_path / "run", stop)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_run_that_is_made_ends_with_its_parent(tmp_path):
    params = tmp_path / "params" / "small.yaml"
    (tmp_path / "run_all.py").write_text(
        "import os, sys, time\nprint(os.getpid(), file=sys.stderr, flush=True)\ntime.sleep(600)")
    code = (f"from pathlib import Path\nfrom beliefedit.playground.files import make_run\n"
            f"make_run(Path({str(params)!r}), Path('run'), lambda *what: print(what[2], flush=True))")
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if "State:\tZ" in Path(f"/proc/{child}/status").read_text():  # nobody has waited for it
            return
        time.sleep(0.1)
    pytest.fail("the run goes on without its parent")


def test_work_is_done_in_order_and_can_be_stopped():
    worker, results, going = Worker(), [], threading.Event()

    def endless(progress):
        for step in range(10**9):
            progress(step, None, "")
            going.set()

    first = worker.run(endless, lambda *result: results.append(result))
    going.wait()
    worker.cancel()
    second = worker.run(lambda progress: 7, lambda *result: results.append(result))
    third = worker.run(lambda progress: 1 / 0, lambda *result: results.append(result))
    for work in (first, second, third):
        work.result()
    assert results[:2] == [(None, "Stopped. Nothing was changed."), (7, None)]
    assert results[2][0] is None and "ZeroDivisionError" in results[2][1]
    worker.close()


def test_errors_in_words():
    assert error_text(EvidenceError("it is so", hint="do this")) == "It is so. Do this."
    assert error_text(EditError("it is so")) == "It is so."
