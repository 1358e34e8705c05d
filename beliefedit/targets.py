"""What a rational agent believes before and after an edit, at the facts an edit case looks at (SPEC 6)."""

from __future__ import annotations

from dataclasses import dataclass

from beliefedit.agent import BayesAgent
from beliefedit.config import EditConfig
from beliefedit.language import Atom, atomic_prompt

PROBES = ("same_subject_same_relation", "same_subject_other_relation", "other_subject_same_relation",
          "other_subject_other_relation")


@dataclass(frozen=True)
class Edit:
    """A request and the facts it is judged by.

    Attributes:
        facts: the known fact of each of `PROBES` with its true object; None where nobody has such a fact.
        upstream: the true upstream object of each; None where the fact is independent.
        request: the object asked for at ``facts[0]``.
        downstream_relation: the relation downstream of the edited one, if the subject has it.
        other_has_both: one other subject serves both of its probes.
    """

    facts: tuple[Atom | None, ...]
    upstream: tuple[str | None, ...]
    request: str
    downstream_relation: str | None
    other_has_both: bool


def edit_targets(agent: BayesAgent, edit: Edit, config: EditConfig) -> tuple[dict, list[dict[str, list]]]:
    """The case's row, and columns of each probe with the agent's beliefs in every state and view."""
    fact = edit.facts[0]
    weight = evidence_weight(agent, fact, edit.request, config.target_probability)
    states = {"before": agent} | {
        state: agent.after(fact.subject, fact.relation, edit.request, w, as_published=config.as_published)
        for state, w in (("one_observation", 1.0), ("after", weight))}
    queries, answers = [], {}
    for probe, atom, upstream in zip(PROBES, edit.facts, edit.upstream, strict=True):
        if atom is not None:
            modal = states["after"].expected(atom.subject, atom.relation)
            answers[probe] = modal
            queries.append(_queries(states, edit, (probe, atom, upstream, modal)))
    return _case(agent, edit, weight, answers), queries


def evidence_weight(agent: BayesAgent, fact: Atom, request: str, probability: float) -> float:
    """Evidence that makes the request credible: to ``probability``, or half-way to 1 if it already is (SPEC 5).

    At least one observation: less would be evidence *against* certainty rather than for the request.
    """
    now = agent.probability(fact.subject, fact.relation, request, view="direct")
    goal = probability if now <= probability else now + (1 - now) / 2
    return max(1.0, agent.weight_for(fact.subject, fact.relation, request, goal))


def _case(agent: BayesAgent, edit: Edit, weight: float, answers: dict[str, str]) -> dict:
    fact, other, downstream = edit.facts[0], edit.facts[1], edit.downstream_relation
    changes = False
    if downstream is not None:
        changes = answers[PROBES[1]] != agent.expected(other.subject, other.relation)
    return {"subject": fact.subject, "relation": fact.relation, "object": fact.object, "request": edit.request,
            "weight": weight, "downstream_relation": downstream, "reinforces": edit.request == fact.object,
            "downstream_changes": changes, "is_downstream": edit.upstream[0] is not None,
            "other_is_downstream": downstream is not None, "other_has_both": edit.other_has_both,
            "all_independent": all(x is None for x in edit.upstream)}


def _queries(states: dict[str, BayesAgent], edit: Edit, probe: tuple[str, Atom, str | None, str]) -> dict[str, list]:
    """Columns, a row per tracked object: the original one, the requested one, what the agent expects after the edit."""
    name, atom, upstream, modal = probe
    objects = {"original": atom.object, "requested": edit.request, "modal": modal}
    same = {"probe": name, "prompt": atomic_prompt(atom.subject, atom.relation), "label": atom.object,
            "subject": atom.subject, "relation": atom.relation}
    columns = {"kind": list(objects), "target": list(objects.values())}
    columns |= {column: [value] * len(objects) for column, value in same.items()}
    distinct = list(dict.fromkeys(objects.values()))
    place = [distinct.index(target) for target in objects.values()]
    for state, agent in states.items():
        given = edit.request if state != "before" and _follows_from_request(edit, atom) else upstream
        if state == "before" or _is_reached(agent, edit, atom):
            views = agent.views(atom.subject, atom.relation, distinct, given)
        for view, beliefs in views.items():
            columns[f"p_{state}_{view}"] = beliefs[place].tolist()
    return columns


def _is_reached(agent: BayesAgent, edit: Edit, atom: Atom) -> bool:
    """Whether an edit can change what is believed about a fact: its own row, or its relation's conditional."""
    edited = edit.facts[0]
    if (atom.subject, atom.relation) == (edited.subject, edited.relation):
        return True
    return atom.relation in agent.pairs and edited.relation in (atom.relation, agent.pairs[atom.relation])


def _follows_from_request(edit: Edit, atom: Atom) -> bool:
    """Whether the edited fact is the very upstream fact of this one."""
    return atom.subject == edit.facts[0].subject and atom.relation == edit.downstream_relation
