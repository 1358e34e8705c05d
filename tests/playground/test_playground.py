"""The playground without a page: search, requests, predictions, snapshots and their HTML."""

from __future__ import annotations

import math
import os
import shlex
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
from beliefedit.playground.agent_view import CAP, EvidenceStrength, FactChange, largest
from beliefedit.playground.background import Cancelled, Worker, error_text, silent
from beliefedit.playground.files import example_facts, make_run, open_run, run_command, runs_beside
from beliefedit.playground.ripple import ripple_of
from beliefedit.playground.search import Suggestions, fold
from beliefedit.playground.snapshot import TOP, draw
from tests.conftest import ROOT
from tests.sample_notebooks import HOSTILE
from tests.sample_playground import open_tiny
from tests.worlds import write_record

NAMES = st.lists(st.text("aAbé ", min_size=1, max_size=6), unique=True, max_size=12)


def slow_find(names: list[str], text: str, n: int, first: list[str]) -> list[str]:
    """Sorted by kind of match, then preferred ones, then order."""
    typed = fold(text.strip())
    matches = []
    for index, name in enumerate(names):
        folded = fold(name)
        if typed and typed not in folded:
            continue
        kind = (0 if not typed or folded == typed else 1 if folded.startswith(typed)
                else 2 if " " + typed in folded else 3)
        matches.append((kind, first.index(name) if name in first else len(first), index, name))
    return [name for *_, name in sorted(matches)][:n]


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
    updated = AGENT.after("ann", "r", "b", weight)
    assert updated.probability("ann", "r", "b", "direct") >= p - 1e-12
    assert AGENT.after("ann", "r", "b", weight - 1).probability("ann", "r", "b", "direct") < p


def test_evidence_for_less_than_the_agent_believes_adds_nothing(session):
    facts = session.known
    request = facts.example()
    p = facts.agent.probability(request.subject, request.fact.relation, request.fact.object, "direct")
    assert p > 0.5
    known = facts.request(request.fact, EvidenceStrength(0.5))
    assert known.weight == 0
    prediction = session.outlook(known)
    assert not any(change.agent_moves for change in prediction.ripple) and prediction.n_more == 0
    assert all((question.before == question.after).all() for question in prediction.questions)
    assert show.evidence(0, 0.5, p) == (
        f"none: the Bayesian agent believes it with P = {p:.2f} already, so evidence for P = 0.5 adds nothing")


def test_the_other_subject_does_not_have_the_requested_object(session):
    facts = session.known
    seen = 0
    for relation, members in facts.subjects_of.items():
        for subject in members[:6]:
            following = members[(members.index(subject) + 1) % len(members)]
            target = facts.object_of[following, relation]
            request = facts.request(Fact(subject, relation, target))
            if (other := facts.outlook(request, facts.agent).other) is not None and other.fact.subject != subject:
                seen += following != subject
                assert other.fact.object != target
            assert target not in {facts.object_of[s, relation] for s in facts.others(subject, relation, 99, target)}
    assert seen > 5, "the next subject would have been shown"


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
    names = [str(o) for o in range(len(p))]
    assert largest(names, p, n) == [names[o] for o in np.argsort(-p, kind="stable")[:n]]


@pytest.fixture(scope="module")
def session(playground_run):
    opened, _ = open_run(open_tiny(playground_run))
    yield opened
    opened.close()


def test_a_prediction_has_the_beliefs_of_the_agent(session):
    facts, request = session.known, session.known.example()
    prediction = facts.outlook(request, facts.agent)
    updated = facts.agent.after(request.subject, request.fact.relation, request.target, request.weight)
    assert [q.role for q in prediction.questions] == ["edited", "downstream", "other subject"]
    for index, question in enumerate(prediction.questions):
        view = "predictive" if index else "direct"
        for belief, agent in ((question.before, facts.agent), (question.after, updated)):
            np.testing.assert_array_equal(belief, agent.distribution(
                question.fact.subject, question.fact.relation, view))
    edited, downstream, _ = prediction.questions
    assert downstream.after.argmax() != downstream.before.argmax()
    assert edited.after[facts.agent.objects.index(request.target)] == pytest.approx(0.95, abs=0.02)


def test_the_ripple_is_capped_and_says_how_many_more(session):
    facts, request = session.known, session.known.example()
    prediction = facts.outlook(request, facts.agent)
    everything = facts.agent.ripple(facts.facts, request.subject, request.fact.relation, request.target,
                                    request.weight)
    printed = [f"{p:.2f}" != f"{q:.2f}" for p, q in everything.select("p_before", "p_after").iter_rows()]
    assert 0 < sum(printed) < len(everything)
    changed = everything.filter(pl.Series(printed) & (pl.col("path") != "request"))
    shown = [change for change in prediction.ripple if change.path not in ("request", "unchanged")]
    assert len(prediction.ripple) <= CAP and len(shown) + prediction.n_more == len(changed)
    expected = changed.select("subject", "relation", "object", "path", "p_before", "p_after").head(len(shown)).rows()
    assert [(*vars(change.fact).values(), change.path, change.p_agent_before, change.p_agent)
            for change in shown] == expected
    unchanged = [change for change in prediction.ripple if change.path == "unchanged"]
    assert unchanged and not any(change.agent_moves for change in unchanged)
    assert prediction.ripple[0].fact == request.requested and prediction.ripple[0].path == "request"


@pytest.mark.parametrize("kind", ["subject", "relation", "object"])
def test_unknown_names_are_explained(session, kind):
    names = {"subject": "Sven Galfell", "relation": "works as", "object": "zoologist", kind: "Nobody"}
    with pytest.raises(EditError, match=f"no {kind} is called 'Nobody'") as caught:
        session.known.named(*names.values())
    assert "pick a suggestion" in caught.value.hint


def test_relations_of_the_subject_and_frequent_objects_come_first(session):
    facts, fact = session.known, session.known.example().fact
    relations = facts.relations_of[fact.subject]
    assert facts.suggest("relation", "", fact.subject)[:len(relations)] == relations
    frequent = facts.suggest("object", "", relation=fact.relation, n=3)
    assert all(facts.facts.filter(relation=fact.relation, object=name).height for name in frequent)
    assert len(facts.suggest("subject", "", n=5)) == 5


def test_the_object_that_fits_a_subject_asks_for_a_change(session):
    facts, fact = session.known, session.known.example().fact
    frequent = facts.frequent_objects[fact.relation]
    other = next(name for name in frequent if name != fact.object)
    assert facts.fitting(fact.subject, fact.relation, other) == other
    for name in (fact.object, "an object of no relation"):
        assert facts.fitting(fact.subject, fact.relation, name) == other


class SlowAnswers:
    """Random beliefs, computed for every object."""

    def __init__(self, objects, seed):
        self.objects, self.rng, self.answers = objects, np.random.default_rng(seed), {}

    def p(self, prompt, target):
        return self.answers.setdefault((prompt, target), float(self.rng.random() ** 8 / 4))

    def strongest(self, prompt, n):
        return sorted(self.objects, key=lambda o: -self.p(prompt, o))[:n]

    def ask(self, pairs):
        for pair in pairs:
            self.p(*pair)


def test_a_snapshot_shows_the_most_probable_objects_and_the_rest(session):
    facts, request = session.known, session.known.example()
    objects = facts.agent.objects
    prediction = facts.outlook(request, facts.agent)
    before, after = SlowAnswers(objects, 1), SlowAnswers(objects, 2)
    snapshot = draw(prediction, objects, before, after)
    for index, panel in enumerate(snapshot.panels):
        prompt = panel.fact.prompt
        best = {o: max(before.p(prompt, o), after.p(prompt, o), prediction.questions[index].after[i]) for i, o in enumerate(objects)}
        must = {panel.fact.object} | ({request.target} if index == 0 else set())
        ranked = sorted((o for o in objects if o not in must), key=lambda o: -best[o])[:TOP - len(must)]
        assert {bar.object for bar in panel.bars[:-1]} == must | set(ranked)
        assert panel.bars[-1].object is None and len(panel.bars) == TOP + 1
        for column in ("p_agent", "p_agent_before"):
            assert sum(getattr(bar, column) for bar in panel.bars) == pytest.approx(1)
    for name, (a, b) in snapshot.logic.errors.items():
        for state, value in ((0, a), (1, b)):
            p = {key: row[state] for key, row in snapshot.logic.p.items()}
            expected = {"true_false": p["stated"] - p["A"], "negation": p["A"] - 1 + p["not A"],
                        "conjunction": p["A and B"] - p["A"] * p["B"], "commutation": p["A and B"] - p["B and A"],
                        "disjunction": p["A or B"] - (p["A"] + p["B"] - p["A"] * p["B"])}[name]
            assert value == pytest.approx(abs(expected))
    for model, state in ((before, 0), (after, 1)):
        prompt = f'"not {request.requested}" is'
        true, false = model.p(prompt, "true"), model.p(prompt, "false")
        assert snapshot.logic.p["not A"][state] == pytest.approx(true / (true + false))
    alone = draw(prediction, objects)
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
           "td", "caption", "ol", "li", "abbr", "details", "summary"}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text(session, name):
    facts = session.known
    fact = facts.fact(name, facts.relations_of[name][0])
    request = EditRequest(fact, next(o for o in facts.agent.objects if o != fact.object))
    snapshot = draw(session.outlook(request), facts.agent.objects)
    markup = (show.belief_bars(snapshot) + show.logic(snapshot.logic) + show.ripple(snapshot)
              + show.message(name, "problem"))
    seen = Tags(markup)
    assert {tag for tag, _ in seen.tags} <= ALLOWED
    assert not any(attribute.startswith("on") or attribute in ("href", "src") for _, names in seen.tags
                   for attribute in names)
    assert name in seen.text


CHANGES = {  # agent before, after, model before, after -> moved by the agent, by the model, follows, forgotten
    (0.0, 0.95, 0.0, 0.96): (True, True, True, False),
    (0.90, 0.902, 0.9, 0.1): (False, True, False, True),  # printed 0.90 -> 0.90
    (0.504, 0.506, 0.5, 0.5): (True, False, False, False),  # printed 0.50 -> 0.51
    (0.8, 0.1, 0.8, 0.0): (True, True, True, False),
    (0.0, 0.8, 0.0, 0.3): (True, True, False, False),
    (0.2, 0.8, 0.8, 0.2): (True, True, False, True)}


@pytest.mark.parametrize(("p", "expected"), CHANGES.items())
def test_changes_are_those_that_are_printed(p, expected):
    change = FactChange(Fact("ann", "r", "b"), "unchanged", *p)
    assert (change.agent_moves, change.model_moves, change.follows, change.forgotten) == expected


def test_the_ripple_has_the_largest_change_first_and_says_what_was_forgotten(session):
    facts, request = session.known, session.known.example()
    prediction = facts.outlook(request, facts.agent)
    objects = facts.agent.objects
    alone = ripple_of(draw(prediction, objects))
    n = sum(change.agent_moves for change in alone.moved) + alone.n_more
    assert alone.sentences() == [f"The Bayesian agent moves {n} beliefs.",
                                 "Press Edit to see which ones the language model moves."]
    snapshot = draw(prediction, objects, SlowAnswers(objects, 1), SlowAnswers(objects, 2))
    found = ripple_of(snapshot)
    sizes = [max(abs(change.by_agent), abs(change.by_model)) for change in found.moved]
    assert sizes == sorted(sizes, reverse=True) and len({change.fact for change in found.moved}) == len(sizes)
    assert found.request.fact == request.requested
    lost = [change for change in found.moved if change.true and change.forgotten]
    assert lost and all(facts.object_of[change.fact.subject, change.fact.relation] == change.fact.object
                        for change in lost)
    worst = min(lost, key=lambda change: change.by_model - change.by_agent)
    assert found.forgotten == worst
    assert f"The model forgot: {worst.fact} ({worst.p_before:.2f} → {worst.p_after:.2f}; agent " in found.sentences()[1]
    seen = Tags(show.ripple(snapshot))
    printed = [seen.text.index(f"agent {change.p_agent_before:.2f} → {change.p_agent:.2f}LM {change.p_before:.2f} → "
                               f"{change.p_after:.2f}") for change in found.moved]
    assert printed[0] == min(printed)


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
    write_record(recorded, open_tiny(playground_run).config)
    session, opened = open_run(be.Run(recorded, other.config, read_only=True))
    session.close()
    assert opened.config.pretraining.token_budget == 500_000, "the configuration that is recorded"
    assert runs_beside(recorded) == [recorded]


RUN_ALL = """
import sys, time
print("arguments", *sys.argv[1:], file=sys.stderr)
print("  3 s  cell 2/9: Training: 135k/0.3M [00:30<01:30, 2.51ktok/s]", file=sys.stderr, flush=True)
{}
"""


def test_the_agent_needs_no_torch(playground_run):
    """The page's first drawing imports neither torch nor transformers nor plotly."""
    code = f"""
import sys
import beliefedit as be
from beliefedit.playground import app, html
from beliefedit.playground.files import example_facts, open_agent
from beliefedit.playground.snapshot import draw
run = be.Run({str(playground_run / "runs" / "tiny")!r}, {str(playground_run / "params" / "tiny.yaml")!r}, read_only=True)
known, _ = open_agent(run)
assert example_facts(run)
snapshot = draw(known.outlook(known.example(), known.agent), known.agent.objects)
print(html.ripple(snapshot), html.belief_bars(snapshot))
assert not {{"torch", "transformers", "plotly"}} & sys.modules.keys()"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "The Bayesian agent moves" in shown.stdout


def test_the_command_to_create_a_run_works_in_any_folder(tmp_path, monkeypatch):
    """It names the script and both paths in full, whatever the working directory of the page is."""
    kit, elsewhere = tmp_path / "the kit's", tmp_path / "elsewhere"
    for folder in (kit / "params", kit / "notebooks", elsewhere):
        folder.mkdir(parents=True)
    (kit / "params" / "small.yaml").write_text("name: small\n")
    (kit / "run_all.py").write_text("import sys, pathlib\nprint(pathlib.Path(sys.argv[2]).read_text(), sys.argv[4])")
    monkeypatch.chdir(kit / "notebooks")
    command = run_command(Path("../params/small.yaml"), Path("../runs/small"))
    monkeypatch.undo()
    assert command.startswith("python ") and (ROOT / "run_all.py").exists()
    result = subprocess.run(f"{shlex.quote(sys.executable)}{command.removeprefix('python')}", shell=True,
                            cwd=elsewhere, capture_output=True, text=True)
    assert result.stdout == f"name: small\n {kit / 'runs' / 'small'}\n", result.stderr


def test_a_run_is_created_with_progress_and_can_be_stopped(tmp_path):
    params = tmp_path / "params" / "small.yaml"
    params.parent.mkdir()
    with pytest.raises(TrainingError, match="the run failed: .*to fix: choose one of params/"):  # of beliefedit run
        make_run(params, tmp_path / "run", silent)
    calls = []
    (tmp_path / "run_all.py").write_text(RUN_ALL.format(""))
    make_run(params, tmp_path / "run", lambda *arguments: calls.append(arguments))
    assert f"--params {params} --out {tmp_path / 'run'}" in calls[0][2] and calls[1][:2] == (2, 9)
    (tmp_path / "run_all.py").write_text(RUN_ALL.format("sys.exit('no room left')"))
    with pytest.raises(TrainingError, match="the run failed: no room left"):
        make_run(params, tmp_path / "run", silent)
    (tmp_path / "run_all.py").write_text(RUN_ALL.format("time.sleep(600)"))

    def stop(done, total, text):
        if done:
            raise Cancelled

    with pytest.raises(TrainingError, match="the run is stopped"):
        make_run(params, tmp_path / "run", stop)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_the_creation_of_a_run_ends_with_its_parent(tmp_path):
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
    pytest.fail("the run continues without its parent")


def test_examples_are_requests_of_the_run(playground_run, tmp_path):
    run = open_tiny(playground_run)
    requests = set(run.cases.cases.select("subject", "relation", "request").iter_rows())
    facts = example_facts(run)
    assert len(facts) == 10 and {(fact.subject, fact.relation, fact.object) for fact in facts} <= requests
    assert facts[0].subject != facts[1].subject
    shutil.copytree(playground_run / "runs" / "tiny", tmp_path / "run", ignore=shutil.ignore_patterns("cases"))
    assert example_facts(be.Run(tmp_path / "run", run.config, read_only=True)) == []


def test_jobs_run_in_order_and_can_be_stopped():
    worker, results, running = Worker(), [], threading.Event()

    def endless(progress):
        for step in range(10**9):
            progress(step, None, "")
            running.set()

    first = worker.run(endless, lambda *result: results.append(result))
    running.wait()
    worker.cancel()
    second = worker.run(lambda progress: 7, lambda *result: results.append(result))
    third = worker.run(lambda progress: 1 / 0, lambda *result: results.append(result))
    for work in (first, second, third):
        work.result()
    assert results[:2] == [(None, "Stopped. The session is as it was before."), (7, None)]
    assert results[2][0] is None and "ZeroDivisionError" in results[2][1]
    worker.close()


def test_errors_as_sentences():
    assert error_text(EvidenceError("it is so", hint="do this")) == "It is so. Do this."
    assert error_text(EditError("it is so")) == "It is so."
