"""The playground without a page: search, wishes, outlooks, pictures, and what they show."""

from __future__ import annotations

import math
import threading
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beliefedit.agent.agent import BayesAgent
from beliefedit.config import load_params
from beliefedit.errors import EditError, EvidenceError, StoreError, TrainingError
from beliefedit.playground import html as show
from beliefedit.playground.agent_view import CAP, Strength, Wish, largest
from beliefedit.playground.background import Cancelled, Worker, silent, words
from beliefedit.playground.files import make_run, open_run, runs_beside
from beliefedit.playground.html import ripple
from beliefedit.playground.search import Suggestions, fold
from beliefedit.playground.snapshot import TOP, draw
from tests.sample_notebooks import HOSTILE

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
    weight = Wish("ann", "r", "b", Strength("probability", p)).weight(AGENT)
    told = AGENT.after("ann", "r", "b", weight)
    assert told.probability("ann", "r", "b", "direct") >= p - 1e-12
    assert AGENT.after("ann", "r", "b", weight - 1).probability("ann", "r", "b", "direct") < p


def test_other_strengths():
    assert Wish("ann", "r", "b", Strength("one observation", 7.0)).weight(AGENT) == 1
    assert Wish("ann", "r", "b", Strength("weight", 0.5)).weight(AGENT) == 0.5
    for kind, value in (("weight", 0.0), ("weight", -1.0), ("weight", math.nan), ("weight", math.inf),
                        ("probability", 1.0), ("probability", 0.0)):
        with pytest.raises(EditError, match="evidence"):
            Wish("ann", "r", "b", Strength(kind, value)).weight(AGENT)


def test_a_wish_survives_json():
    wish = Wish("ann", "r", HOSTILE[0], Strength("weight", 2.5))
    assert Wish.from_json(wish.to_json()) == wish
    for broken in (None, {}, {"subject": 1}, wish.to_json() | {"object": 3},
                   wish.to_json() | {"strength": {"kind": "x", "value": 1}}):
        with pytest.raises(EditError, match="no request"):
            Wish.from_json(broken)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(1, 9))
def test_largest_objects_of_a_belief(counts, n):
    p = np.array(counts, dtype=float)
    names = [str(place) for place in range(len(p))]
    assert largest(names, p, n) == [names[place] for place in np.argsort(-p, kind="stable")[:n]]


@pytest.fixture(scope="module")
def session(playground_run):
    made, _ = open_run(playground_run / "runs" / "tiny", load_params(playground_run / "params" / "tiny.yaml"))
    yield made
    made.close()


def test_an_outlook_is_what_the_agent_believes(session):
    known, wish = session.known, session.known.example()
    outlook = known.outlook(wish, known.agent)
    told = known.agent.after(wish.subject, wish.relation, wish.object, wish.weight(known.agent))
    assert [q.role for q in outlook.questions] == ["edited", "downstream", "other subject"]
    for place, question in enumerate(outlook.questions):
        view = "predictive" if place else "direct"
        for beliefs, agent in ((outlook.before, known.agent), (outlook.after, told)):
            np.testing.assert_array_equal(beliefs[place], agent.distribution(question.subject, question.relation, view))
    assert known.agent.objects[outlook.after[1].argmax()] != known.agent.objects[outlook.before[1].argmax()]
    assert outlook.after[0][known.agent.objects.index(wish.object)] == pytest.approx(0.95, abs=0.02)


def test_the_ripple_is_capped_and_says_how_many_more(session):
    known, wish = session.known, session.known.example()
    outlook = known.outlook(wish, known.agent)
    facts = known.facts.select("subject", "relation", "object")
    everything = known.agent.ripple(facts, wish.subject, wish.relation, wish.object, outlook.weight)
    moved = everything.filter(pl.col("path") != "request")
    shown = outlook.ripple.filter(~pl.col("path").is_in(["request", "still"]))
    assert len(outlook.ripple) <= CAP and len(shown) + outlook.n_more == len(moved)
    assert shown.equals(moved.head(len(shown)))
    still = outlook.ripple.filter(path="still")
    assert len(still) and (still["change"] == 0).all()
    assert outlook.ripple.row(0, named=True)["object"] == wish.object


@pytest.mark.parametrize("kind", ["subject", "relation", "object"])
def test_unknown_names_are_explained(session, kind):
    names = {"subject": "Sven Galfell", "relation": "works as", "object": "zoologist", kind: "Nobody"}
    with pytest.raises(EditError, match=f"no {kind} is called 'Nobody'") as caught:
        session.known.wish(*names.values(), Strength())
    assert "pick a suggestion" in caught.value.remedy


def test_own_relations_and_usual_objects_come_first(session):
    known, wish = session.known, session.known.example()
    own = known.relations_of[wish.subject]
    assert known.suggest("relation", "", wish.subject)[:len(own)] == own
    usual = known.suggest("object", "", relation=wish.relation, n=3)
    assert all(known.facts.filter(relation=wish.relation, object=name).height for name in usual)
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
    known, wish = session.known, session.known.example()
    objects = known.agent.objects
    outlook = known.outlook(wish, known.agent)
    before, after = SlowAnswers(objects, 1), SlowAnswers(objects, 2)
    picture = draw(outlook, objects, before, after)
    for place, panel in enumerate(picture.panels):
        prompt = panel.question.prompt
        best = {o: max(before.p(prompt, o), after.p(prompt, o), outlook.after[place][i]) for i, o in enumerate(objects)}
        must = {panel.question.object} | ({wish.object} if place == 0 else set())
        ranked = sorted((o for o in objects if o not in must), key=lambda o: -best[o])[:TOP - len(must)]
        assert {bar.object for bar in panel.bars[:-1]} == must | set(ranked)
        assert panel.bars[-1].object is None and len(panel.bars) == TOP + 1
        for column in ("p_agent", "p_agent_before"):
            assert sum(getattr(bar, column) for bar in panel.bars) == pytest.approx(1)
    for name, (a, b) in picture.logic.errors.items():
        for state, value in ((0, a), (1, b)):
            p = {key: row[state] for key, row in picture.logic.p.items()}
            expected = {"T/F": p["stated"] - p["A"], "negation": p["A"] - 1 + p["not A"],
                        "conjunction": p["A and B"] - p["A"] * p["B"], "commutation": p["A and B"] - p["B and A"],
                        "disjunction": p["A or B"] - (p["A"] + p["B"] - p["A"] * p["B"])}[name]
            assert value == pytest.approx(abs(expected))
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
           "td", "ol", "li", "svg", "g", "path", "circle", "text", "tspan", "title"}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text(session, name):
    known = session.known
    relation = known.relations_of[name][0]
    wish = Wish(name, relation, next(o for o in known.agent.objects if o != known.object_of[name, relation]))
    picture = draw(session.outlook(wish), known.agent.objects)
    markup = show.beliefs(picture) + show.logic(picture.logic) + ripple(picture) + show.message(name, "problem")
    seen = Tags(markup)
    assert {tag for tag, _ in seen.tags} <= ALLOWED
    assert not any(attribute.startswith("on") or attribute in ("href", "src") for _, names in seen.tags
                   for attribute in names)
    assert name in seen.text


def test_a_folder_without_a_model_is_refused_and_left_alone(tmp_path, playground_run):
    params = load_params(playground_run / "params" / "tiny.yaml")
    with pytest.raises(StoreError, match="there is no run"):
        open_run(tmp_path / "none", params)
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="holds no graph of this configuration"):
        open_run(tmp_path / "empty", params)
    assert list((tmp_path / "empty").iterdir()) == [] and not (tmp_path / "none").exists()
    assert [path.name for path in runs_beside(playground_run / "runs" / "tiny")] == ["tiny"]


def test_a_run_of_other_parameters_is_not_trained_again(playground_run):
    params = load_params(playground_run / "params" / "tiny.yaml", {"pretraining.n_tokens": 70_000})
    with pytest.raises(StoreError, match="holds no model of this configuration"):
        open_run(playground_run / "runs" / "tiny", params)


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
    assert f"--params {params} --out {tmp_path / 'run'}" in told[0][2] and told[1][:2] == (45, 100)
    (tmp_path / "run_all.py").write_text(RUN_ALL.format("sys.exit('no room left')"))
    with pytest.raises(TrainingError, match="the run failed: no room left"):
        make_run(params, tmp_path / "run", silent)
    (tmp_path / "run_all.py").write_text(RUN_ALL.format("time.sleep(600)"))

    def stop(done, total, text):
        if done:
            raise Cancelled

    with pytest.raises(Cancelled):
        make_run(params, tmp_path / "run", stop)


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
    assert words(EvidenceError("it is so", remedy="do this")) == "It is so. Do this."
    assert words(EditError("it is so")) == "It is so."
