"""Edit cases: the rules of the specification, section 6, and targets against the dense agent."""

import hashlib

import numpy as np
import polars as pl
import pytest

from beliefedit.agent.agent import BayesAgent
from beliefedit.config import CorpusConfig, EditConfig
from beliefedit.corpus.corpus import sample_corpus
from beliefedit.corpus.language import Fact, atomic_prompt
from beliefedit.corpus.world import build_world
from beliefedit.editors.request import EditRequest
from beliefedit.evaluation.cases import (
    FORMS,
    PROBES,
    build_cases,
    build_probes,
    evidence_weight,
    load,
    save,
)
from tests.oracles import DenseAgent, Parser
from tests.worlds import graph_of, random_graph, small_demo

LOGIC = ("logic_a", "logic_b", "logic_a_and_b", "logic_b_and_a", "logic_a_or_b", "logic_not_a")


class Setting:
    """A world, its corpus, the agent fitted to the corpus, and the true objects by (subject, relation)."""

    def __init__(self, graph, n_facts=None, as_published=False, p_downstream_stated=1.0):
        self.world = build_world(graph)
        self.corpus = sample_corpus(self.world, CorpusConfig(n_facts=n_facts or graph.ids.height,
                                                             p_downstream_stated=p_downstream_stated), documents=False)
        self.agent = BayesAgent.fit(self.corpus.evidence, pairs=self.world.pairs, objects=self.world.objects,
                                    as_published=as_published)
        names = self.world.subjects, self.world.relations, self.world.objects
        rows = self.corpus.facts.select("subject", "relation", "object").rows()
        self.true = {(names[0][s], names[1][r]): names[2][o] for s, r, o in rows}
        self.cases_by_config = {}
        self.by_prompt = {atomic_prompt(*fact): fact for fact in self.true}
        self.relations: dict[str, set[str]] = {}
        for s, r in self.true:
            self.relations.setdefault(s, set()).add(r)
        self.parser = Parser(*names)
        self.downstream = {u: d for d, u in self.world.pairs.items()}

    def cases(self, seed=0, **config):
        key = seed, tuple(config.items())
        if key not in self.cases_by_config:
            self.cases_by_config[key] = build_cases(self.world, self.corpus, self.agent, EditConfig(**config), seed)
            check_shape(self, self.cases_by_config[key])
        return self.cases_by_config[key]

    def relations_of(self, subject):
        return self.relations[subject]

    def is_dependent(self, subject, relation):
        return (subject, self.world.pairs.get(relation)) in self.true

    def expected(self, relation, x):
        return self.world.objects[int(self.agent.conditional(relation, x).argmax())]


def check_shape(setting, cases):
    """Flags, probes, labels and logic prompts of the cases of any configuration."""
    by_case = cases.queries.partition_by("case")
    for case, queries in zip(cases.cases.rows(named=True), by_case, strict=True):
        by_probe = queries.partition_by("probe", as_dict=True)
        probes = {probe: by_probe.get((probe,), queries.clear()) for probe in PROBES}
        facts = [fact_of(setting, probe) for probe in probes.values()]
        check_flags(setting, case, facts, probes)
        check_logic(setting, case, queries)
        check_forms(setting, case, queries, facts[1])
        for rows, fact in zip(probes.values(), facts, strict=True):
            if fact:
                assert rows["kind"].to_list() == ["true_object", "requested", "agent_mode"]
                assert set(rows["label"]) == {setting.true[fact]} and rows["target"][0] == setting.true[fact]
                assert rows["target"][1] == case["request"]


def fact_of(setting, probe):
    """(subject, relation) of a probe; None for a missing probe."""
    if probe.is_empty():
        return None
    assert probe["prompt"].n_unique() == 1
    return setting.by_prompt[probe["prompt"][0]]


def check_flags(setting, case, facts, probes):
    s, r = case["subject"], case["relation"]
    first, second, third, fourth = facts
    assert first == (s, r) and case["object"] == setting.true[s, r]
    d = setting.downstream.get(r)
    d = d if (s, d) in setting.true else None
    assert case["downstream_relation"] == d and case["has_downstream_fact"] == (d is not None)
    other = d or (second[1] if second else None)
    assert (second is None) == (setting.relations_of(s) == {r})
    assert second is None or second[0] == s and second[1] == other != r
    for fact, relation in ((third, r), (fourth, other)):
        subjects = [subject for subject, of_subject in setting.true if of_subject == relation and subject != s]
        assert fact is None if not subjects else fact[1] == relation and fact[0] in subjects
    has_both = any({r, other} <= relations for subject, relations in setting.relations.items() if subject != s)
    assert case["other_has_both"] == has_both and (not has_both or third[0] == fourth[0])
    assert case["confirms_truth"] == (case["request"] == case["object"])
    assert case["is_downstream"] == setting.is_dependent(s, r)
    assert case["all_independent"] == (not any(setting.is_dependent(*fact) for fact in facts if fact))
    after = probes[PROBES[1]]["target"]
    before = setting.agent.distribution(s, d).argmax() if d else None
    assert case["downstream_changes"] == (d is not None and after[2] != setting.world.objects[int(before)])


def check_forms(setting, case, queries, downstream):
    """True/false statements about the old and the new object of the downstream fact, with the labels after the edit."""
    rows = queries.filter(pl.col("probe").is_in(FORMS))
    assert case["downstream_changes"] or rows.is_empty()
    if not case["downstream_changes"]:
        return
    objects = dict(queries.filter(probe=PROBES[1]).select("kind", "target").iter_rows())
    other_subjects = {s for s, r in setting.true if r == downstream[1] and s != downstream[0]}
    about = {"new": objects["agent_mode"], "old": objects["true_object"]}
    kinds = ["new"] if about["old"] == about["new"] else ["new", "old"]
    assert sorted(rows["kind"].unique()) == sorted(kind + ending for kind in kinds for ending in ("", "_false"))
    assert len(rows) == 2 * len(kinds) * (4 if other_subjects else 2)
    for row in rows.rows(named=True):
        kind, word = row["kind"].removesuffix("_false"), "false" if row["kind"].endswith("_false") else "true"
        statement = setting.parser.parse(f"{row['prompt']} true")
        probed = [atom for atom in statement.atoms if (atom.subject, atom.relation) == downstream]
        rest = [setting.true[atom.subject, atom.relation] == atom.object for atom in statement.atoms if atom not in probed]
        assert [atom.object for atom in probed] == [about[kind]]
        truth = [kind == "new", *rest]
        right = {"atomic": all, "not": lambda x: not all(x), "and": all, "or": any}[statement.form](truth)
        assert FORMS[("atomic", "not", "and", "or").index(statement.form)] == row["probe"]
        assert row["label"] == str(right).lower() and row["target"] == word
        assert not rest or rest == [statement.form == "and"]


def check_logic(setting, case, queries):
    """Labels of the logic prompts, recomputed from their sentences."""
    rows = queries.filter(~pl.col("probe").is_in((*PROBES, *FORMS)))
    by_probe = {row["probe"]: row for row in rows.filter(pl.col("kind") != "false").rows(named=True)}
    columns = ["probe", "prompt", "label", "published_label"]  # equal for both words
    assert rows.filter(kind="true").select(columns).rows() == rows.filter(kind="false").select(columns).rows()
    assert rows.filter(kind="false")["target"].to_list() == ["false"] * len(LOGIC)
    assert set(by_probe) == {*LOGIC, "atomic_a"}
    statements = {probe: setting.parser.parse(by_probe[probe]["prompt"] + " true") for probe in LOGIC}
    (a,), (b,) = statements["logic_a"].atoms, statements["logic_b"].atoms
    assert (a.subject, a.relation) == (case["subject"], case["relation"]) and (b.subject, b.relation) in setting.true
    assert [(statements[p].form, statements[p].atoms) for p in LOGIC[2:]] == [
        ("and", (a, b)), ("and", (b, a)), ("or", (a, b)), ("not", (a,))]
    a_true, b_true = (setting.true[atom.subject, atom.relation] == atom.object for atom in (a, b))
    right = [a_true, b_true, a_true and b_true, a_true and b_true, a_true or b_true, not a_true]
    assert [by_probe[p]["label"] for p in LOGIC] == ["true" if label else "false" for label in right]
    assert {(by_probe[p]["kind"], by_probe[p]["target"]) for p in LOGIC} == {("true", "true")}
    assert case["as_published"] or all(by_probe[p]["published_label"] == by_probe[p]["label"] for p in LOGIC)
    atomic = by_probe["atomic_a"]
    assert (atomic["prompt"], atomic["target"], atomic["label"], atomic["kind"]) == (
        atomic_prompt(a.subject, a.relation), a.object, case["object"], "stated")
    assert all(row[column] is None for row in by_probe.values() for column in row if column.startswith("p_"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return Setting(small_demo(tmp_path_factory.mktemp("graph"), n_subjects=80), n_facts=240)


def test_subjects_are_sampled_with_all_their_facts(demo):
    cases = demo.cases(n_cases=60).cases
    assert len(cases) == 60 and cases["case"].to_list() == list(range(60))
    *whole, last = cases["subject"].unique(maintain_order=True)
    for subject in [*whole, last]:
        relations = cases.filter(pl.col("subject") == subject)["relation"]
        assert relations.is_unique().all()
        missing = demo.relations_of(subject) - set(relations)
        assert set(relations) <= demo.relations_of(subject) and (subject == last or not missing)
    assert cases["subject"].rle_id().n_unique() == len(whole) + 1
    assert whole != [s for s in demo.world.subjects if s in whole]  # sampled, not in order
    # true and false statements are sampled for A and for B
    logic = demo.cases(n_cases=60).queries.filter(pl.col("probe").is_in(["logic_a", "logic_b"]))
    assert logic.group_by("probe", "label").len()["len"].min() > 15


def test_fewer_facts_than_cases_give_fewer_cases(demo):
    cases = demo.cases(n_cases=100_000).cases
    assert {(s, r) for s, r in cases.select("subject", "relation").rows()} == set(demo.true)


@pytest.mark.parametrize(("p_downstream", "p_reinforce"), [(1, 1), (0, 0), (1, 0), (0, 1)])
def test_kinds_of_requests(demo, p_downstream, p_reinforce):
    cases = demo.cases(n_cases=150, p_downstream=p_downstream, p_reinforce=p_reinforce).cases
    n_upstream = 0
    for case in cases.rows(named=True):
        d = case["downstream_relation"]
        if d is None:
            assert case["confirms_truth"] == bool(p_reinforce)
            continue
        n_upstream += 1
        assert not case["confirms_truth"]
        if p_downstream:  # the agent's downstream mode changes
            assert demo.expected(d, case["request"]) != demo.expected(d, case["object"])
            assert case["request"] in demo.agent.map_downstream(d)
    assert 30 < n_upstream < 120
    if p_downstream:
        dependent = cases.filter(pl.col("downstream_relation").is_not_null())
        assert dependent["downstream_changes"].mean() > 0.9  # the evidence for the request is strong


def test_false_requests_are_the_distractor_of_independent_facts(demo):
    cases = demo.cases(n_cases=150, p_downstream=0, p_reinforce=0).cases
    facts = demo.corpus.facts
    names = demo.world
    distractor = {(names.subjects[s], names.relations[r]): names.objects[o]
                  for s, r, o in facts.select("subject", "relation", "distractor").rows()}
    independent = [case for case in cases.rows(named=True) if not case["is_downstream"]]
    assert len(independent) > 50
    assert all(case["request"] == distractor[case["subject"], case["relation"]] for case in independent)


def test_shares_of_requests(demo):
    cases = pl.concat([demo.cases(seed, n_cases=100_000).cases for seed in range(2)])
    independent = cases.filter(pl.col("downstream_relation").is_null())["confirms_truth"]
    assert len(independent) > 200 and abs(independent.mean() - 0.6) < 4.5 * (0.24 / len(independent)) ** 0.5


def test_as_published_samples_from_all_observed_objects(demo):
    cases = demo.cases(n_cases=150, p_downstream=1, as_published=True).cases
    drawn = cases.filter(pl.col("downstream_relation").is_not_null())
    for case in drawn.rows(named=True):
        assert case["request"] in demo.agent.map_downstream(case["downstream_relation"])
    same = [demo.expected(case["downstream_relation"], case["request"])
            == demo.expected(case["downstream_relation"], case["object"]) for case in drawn.rows(named=True)]
    assert any(same) and not all(same)


def test_the_evidence_weight_reaches_the_target_probability(demo):
    for case in demo.cases(n_cases=80, target_probability=0.9, p_reinforce=1).cases.rows(named=True):
        fact = case["subject"], case["relation"], case["request"]
        before = demo.agent.probability(*fact, view="direct")
        goal = 0.9 if before <= 0.9 else before + (1 - before) / 2
        reached = demo.agent.after(*fact, weight=case["weight"]).probability(*fact, view="direct")
        assert reached >= goal - 1e-9 and case["weight"] >= 1
        if case["weight"] >= 2:
            assert demo.agent.after(*fact, weight=case["weight"] - 1).probability(*fact, view="direct") < goal


def test_generative_probabilities(demo):
    queries = demo.cases(n_cases=60).queries.filter(pl.col("probe").is_in(PROBES))
    true_objects = queries.filter(pl.col("kind") == "true_object")
    assert true_objects["p_generative"].min() >= 0.6
    assert queries["p_generative"].is_between(0, 1).all() and queries["p_generative"].min() < 0.4


TINY = [("ann", "speaks", "french"), ("ann", "from", "france"), ("ann", "likes", "tea"),
        ("bob", "speaks", "german"), ("bob", "from", "austria"), ("bob", "plays", "chess"),
        ("cid", "speaks", "german"), ("cid", "from", "germany"), ("cid", "likes", "milk"), ("cid", "plays", "go"),
        ("dot", "speaks", "french"), ("dot", "from", "france"), ("eve", "from", "germany"), ("eve", "likes", "tea"),
        ("fay", "speaks", "german")]


def probabilities(agent, fact, o, given):
    """Probabilities of one object in all views, from the distributions of the dense agent."""
    by_view = {}
    for frequency, suffix in ((False, ""), (True, "_frequency")):
        for view in ("direct", "predictive"):
            by_view[view + suffix] = agent.distribution(*fact, view, frequency)[agent.objects.index(o)]
        by_view["given_upstream" + suffix] = None if given is None else agent.conditional(fact[1], frequency)[
            agent.objects.index(given), agent.objects.index(o)]
    return by_view


@pytest.mark.parametrize("as_published", [False, True])
def test_targets_equal_the_dense_agents(as_published):
    setting = Setting(graph_of(TINY), as_published=as_published)
    rows = setting.corpus.evidence.with_columns(pl.col(pl.Enum).cast(str)).rows()
    dense = DenseAgent([row[:4] for row in rows for _ in range(row[4])], setting.world.pairs, setting.world.objects)
    cases = setting.cases(as_published=as_published)
    n_given = n_revised = 0
    for case in cases.cases.rows(named=True)[::2]:
        fact = case["subject"], case["relation"], case["request"]
        states = {"before": dense, "single_observation": dense.after(*fact, 1.0, as_published),
                  "after": dense.after(*fact, case["weight"], as_published)}
        queries = cases.queries.filter(pl.col("case") == case["case"], pl.col("probe").is_in(PROBES))
        for query in queries.rows(named=True):
            s, r = fact_of(setting, pl.DataFrame([query]))
            if query["kind"] == "agent_mode":
                belief = states["after"].distribution(s, r, "predictive")
                assert belief[dense.objects.index(query["target"])] == pytest.approx(belief.max(), abs=1e-12)
            for state, agent in states.items():
                is_downstream = state != "before" and (s, r) == (case["subject"], case["downstream_relation"])
                true = setting.true.get((s, setting.world.pairs.get(r)))
                given = case["request"] if is_downstream and not as_published else true
                n_given, n_revised = n_given + (given is not None), n_revised + (is_downstream and true != case["request"])
                for view, p in probabilities(agent, (s, r), query["target"], given).items():
                    assert query[f"p_{state}_{view}"] == pytest.approx(p, abs=1e-12), (query, state, view)
    assert n_given > 20 and n_revised > 5


def test_a_high_belief_rises_half_way_to_one():
    rows = pl.DataFrame({"subject": "a", "relation": "r", "object": "x", "weight": [1.0], "count": 500})
    agent = BayesAgent.fit(rows, pairs={}, objects=["x", "y"])
    fact = Fact("a", "r", "x")
    before = agent.probability("a", "r", "x", view="direct")
    weight = evidence_weight(agent, fact, "x", 0.95)
    after = [agent.after("a", "r", "x", w).probability("a", "r", "x", view="direct") for w in (weight, weight - 1)]
    assert after[0] >= before + (1 - before) / 2 > after[1]


def test_the_seed_decides_the_cases(demo):
    first, second = (demo.cases(seed, n_cases=20) for seed in (1, 2))
    same = build_cases(demo.world, demo.corpus, demo.agent, EditConfig(n_cases=20), 1)
    assert first.cases.equals(same.cases) and first.queries.equals(same.queries)
    assert not first.cases.equals(second.cases)


@pytest.mark.parametrize("facts", [
    [("ann", "speaks", "french"), ("ann", "from", "france")],                                  # no other subject
    [("ann", "speaks", "french"), ("bob", "from", "france")],                                  # no shared relation
    [("ann", "speaks", "french"), ("ann", "from", "france"), ("bob", "plays", "chess")],       # an unpaired relation
    [("ann", "speaks", "french"), ("ann", "from", "france"), ("bob", "from", "france")],
])
def test_missing_probes(facts):
    setting = Setting(graph_of(facts))
    cases = setting.cases()
    assert len(cases.cases) == len(facts)
    assert cases.queries.filter(pl.col("probe") == PROBES[0]).height == 3 * len(facts)


@pytest.mark.parametrize("seed", range(8))
def test_rules_hold_in_random_worlds(seed):
    setting = Setting(random_graph(seed, n_subjects=6, n_relations=4 + seed % 3))
    queries = setting.cases(seed).queries.filter(pl.col("probe").is_in(PROBES)).select(pl.col("^p_.*$"))
    assert not queries.select(pl.exclude("^p_.*given_upstream.*$")).null_count().sum_horizontal().item()
    p = queries.fill_null(0.5).to_numpy()
    assert np.isfinite(p).all() and p.min() >= -1e-12 and p.max() <= 1 + 1e-12


def test_probes_of_pretraining(demo):
    probes = build_probes(demo.world, demo.corpus, demo.agent, n_facts=30)
    assert probes.group_by("kind").len().sort("kind").rows() == [
        (kind, 30) for kind in ("and", "atomic", "not", "or", "true_false")]
    atomic = probes.filter(pl.col("kind") == "atomic")
    facts = {atomic_prompt(*fact): (fact, o) for fact, o in demo.true.items()}
    for prompt, target, p in atomic.select("prompt", "target", "p_agent").rows():
        (s, r), o = facts[prompt]
        assert target == o and p == demo.agent.probability(s, r, o)
    true_false = probes.filter(pl.col("kind") != "atomic")
    assert set(true_false["target"]) == {"true", "false"} and true_false["p_agent"].null_count() == len(true_false)


def test_rows_are_edit_cases(demo):
    cases = demo.cases(n_cases=10)
    for case, row in zip(cases.edit_cases(), cases.cases.rows(named=True), strict=True):
        assert (case.number, case.downstream_relation) == (row["case"], row["downstream_relation"])
        assert case.request == EditRequest(Fact(row["subject"], row["relation"], row["object"]), row["request"],
                                           row["weight"])
        assert case.asking(target="x").request.requested == Fact(row["subject"], row["relation"], "x")


def test_saved_cases_are_loaded(demo, tmp_path):
    cases = demo.cases(n_cases=10)
    save(cases, tmp_path)
    loaded = load(tmp_path)
    assert loaded.cases.equals(cases.cases) and loaded.queries.equals(cases.queries)


def test_examples_are_of_different_subjects_and_their_requests_fit_the_relation(demo):
    cases = demo.cases(n_cases=150)
    frame = cases.cases
    objects = {(r, o) for r, o in frame.select("relation", "object").iter_rows()}

    def quality(row):
        fits = (row["relation"], row["request"]) in objects and not row["confirms_truth"]
        return 2 * fits + row["downstream_changes"]

    chosen = [frame.row(case, named=True) for case in cases.examples(6)]
    assert len({row["subject"] for row in chosen}) == 6
    assert [quality(row) for row in chosen] == sorted(map(quality, chosen), reverse=True)
    best = {subject: max(map(quality, rows.to_dicts())) for (subject,), rows in frame.group_by("subject")}
    assert all(quality(row) == best[row["subject"]] for row in chosen)
    first = {}  # the best case of each subject, the first one of several
    for row in frame.to_dicts():
        if row["subject"] not in first or quality(row) > quality(first[row["subject"]]):
            first[row["subject"]] = row
    top = [row for row in first.values() if quality(row) == quality(chosen[0])]
    relations = {row["relation"] for row in top}
    n = min(len(relations), 6)
    assert len({row["relation"] for row in chosen[:n]}) == n > 1  # relations alternate
    assert cases.examples(3) == cases.examples(6)[:3] and cases.examples(0) == []
    assert set(cases.examples(100, 9)) == set(range(9)) and cases.examples(5, 0) == []


@pytest.fixture(scope="module")
def unread(tmp_path_factory):
    """A setting in which the downstream facts of half of the subjects are in no sentence."""
    return Setting(small_demo(tmp_path_factory.mktemp("graph"), 200), n_facts=300, p_downstream_stated=0.5)


def test_without_unstated_facts_cases_are_those_of_earlier_versions(demo):
    cases = demo.cases(n_cases=40)
    assert cases.cases["downstream_stated"].is_null().equals(~cases.cases["has_downstream_fact"])
    assert cases.cases["downstream_stated"].all()
    rows = cases.queries.select(pl.exclude("fact", "^p_.*$"))
    text = cases.cases.drop("downstream_stated", "weight").write_csv() + rows.write_csv() + build_probes(
        demo.world, demo.corpus, demo.agent, n_facts=20).drop("p_agent").write_csv()
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "a50ddd577010a3e8"


def test_cases_say_whether_the_downstream_fact_is_stated(unread):
    evidence = set(unread.corpus.evidence.select(pl.col("subject", "relation").cast(str)).iter_rows())
    cases = unread.cases(n_cases=300).cases
    for case in cases.iter_rows(named=True):
        downstream = case["downstream_relation"]
        expected = None if downstream is None else (case["subject"], downstream) in evidence
        assert case["downstream_stated"] is expected
    changing = cases.filter("downstream_changes", ~pl.col("downstream_stated"))
    assert len(changing) > 20  # the interesting requests: about the upstream fact of an unstated fact
    # the agent's new answer on an unstated fact is the one that belongs to the requested object
    modes = unread.cases(n_cases=300).queries.filter(probe=PROBES[1], kind="agent_mode")
    answers = dict(modes.select("case", "target").iter_rows())
    right = [answers[case["case"]] == unread.expected(case["downstream_relation"], case["request"])
             for case in changing.iter_rows(named=True)]
    assert np.mean(right) > 0.9


def test_statements_beside_the_probed_one_are_about_stated_facts(unread):
    stated = set(unread.corpus.evidence.select(pl.col("subject", "relation").cast(str)).iter_rows())
    queries, n = unread.cases(n_cases=300).queries, 0
    facts = queries.filter(pl.col("probe") == "logic_b", pl.col("fact").is_not_null())["fact"].to_list()
    assert {(fact["subject"], fact["relation"]) for fact in facts} <= stated
    for case, rows in queries.filter(pl.col("probe").is_in(FORMS[2:]), kind="new").group_by("case"):
        subject = unread.cases(n_cases=300).cases["subject"][case[0]]
        for row in rows.iter_rows(named=True):
            atoms = unread.parser.parse(f"{row['prompt']} true").atoms
            others = [(atom.subject, atom.relation) for atom in atoms if atom.subject != subject]
            assert set(others) <= stated
            n += len(others)
    assert n > 50


def test_probes_of_pretraining_tell_recall_from_inference(unread):
    probes = build_probes(unread.world, unread.corpus, unread.agent, n_facts=50)
    stated = set(unread.corpus.evidence.select(pl.col("subject", "relation").cast(str)).iter_rows())
    assert dict(probes.group_by("kind").len().iter_rows()) == dict.fromkeys(
        ("and", "atomic", "inference", "not", "or", "true_false"), 50)
    for kind, prompt, target, p in probes.drop_nulls("p_agent").iter_rows():
        s, r = unread.by_prompt[prompt]
        assert ((s, r) in stated) == (kind == "atomic") and p == unread.agent.probability(s, r, target)
        assert target == (unread.true[s, r] if kind == "atomic" else unread.agent.map_object(s, r))
        assert kind == "atomic" or unread.is_dependent(s, r)
    for prompt in probes.filter(~pl.col("kind").is_in(["atomic", "inference"]))["prompt"]:
        assert {(atom.subject, atom.relation) for atom in unread.parser.parse(f"{prompt} true").atoms} <= stated


def test_requests_may_have_only_clear_consequences(unread):
    kinds = {}
    for least in (0.0, 0.6):
        cases = unread.cases(n_cases=300, min_downstream_belief=least, p_downstream=1.0).cases
        rows = cases.filter("has_downstream_fact")
        kinds[least] = {(row["relation"], row["request"]): unread.agent.conditional(
            row["downstream_relation"], row["request"]).max() for row in rows.iter_rows(named=True)}
        assert rows["downstream_changes"].mean() > 0.9
    assert min(kinds[0.0].values()) < 0.6 <= min(kinds[0.6].values()) and len(kinds[0.6]) > 3
