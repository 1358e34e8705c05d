"""The controls of a request: names, with search while typing, and the evidence's strength."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import anywidget
import ipywidgets as ipw

from beliefedit.agent.agent import BayesAgent
from beliefedit.corpus.language import Fact
from beliefedit.editors.request import EditRequest
from beliefedit.playground import html as show
from beliefedit.playground.agent_view import EvidenceStrength, FactIndex

CUSTOM = "custom weight"
STRENGTHS = {"one observation": EvidenceStrength(None, 1.0),
             **{f"P = {p:g}": EvidenceStrength(p) for p in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)}}
N_SUGGESTED = 12  # names in a list at once
LABEL = {"description_width": "90px"}


class Settling:
    """Lets widgets ignore changes that the program makes itself."""

    settled = True

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """Ignore the changes made in this context."""
        self.settled = False
        try:
            yield
        finally:
            self.settled = True


class Keys(anywidget.AnyWidget):
    """Lets arrow-down and Enter in the field of a `Finder` choose a name; shows nothing."""

    _esm = Path(__file__).with_name("keys.js")


class Finder(Settling, ipw.VBox):
    """A text field above a list of matching names, for the mouse or the arrow keys.

    ``changed`` is called with the text after every change.
    """

    def __init__(self, name: str, suggest: Callable[[str], list[str]],
                 resolve: Callable[[str], str | None], changed: Callable[[str], None]) -> None:
        self.suggest, self.resolve, self.changed = suggest, resolve, changed
        self.text = ipw.Text(
            description=name, placeholder="type a part of it", tooltip=f"{name}: type a part of it",
            style={"description_width": "auto"}, layout={"width": "100%", "margin": "0 0 2px 0"})
        self.list = ipw.Select(options=[], rows=5, tooltip=f"{name}: suggestions",
                               layout={"width": "100%", "margin": "0"})
        self.text.observe(self._typed, "value")
        self.list.observe(self._chosen, "value")
        layout = {"flex": "1 1 240px", "min_width": "0", "margin": "0 8px 0 0"}
        super().__init__([self.text, self.list], layout=layout)
        self.add_class("be-finder")

    def put(self, value: str) -> None:
        """Show a name and other suggestions, without a call to ``changed``."""
        with self.quietly():
            self.text.value = value
            name, options = self.resolve(value), self.suggest(value)
            if name is not None:  # a full name: show other names as well
                options = [*dict.fromkeys([name, *options, *self.suggest("")])][:N_SUGGESTED]
            self.list.options = options
            self.list.value = name if name in options else None

    def _typed(self, change: dict) -> None:
        if self.settled:
            self.put(change["new"])
            self.changed(change["new"])

    def _chosen(self, change: dict) -> None:
        """Keep the list, so that further arrow keys move in it."""
        if self.settled and change["new"] is not None:
            with self.quietly():
                self.text.value = change["new"]
            self.changed(change["new"])


class RequestForm(Settling, ipw.VBox):
    """The controls of a request; ``changed`` is called after every change.

    ``examples`` are requested facts, in a list that fills the fields.
    """

    def __init__(self, facts: FactIndex, changed: Callable[[], None],
                 examples: Sequence[Fact]) -> None:
        self.facts, self.changed = facts, changed
        self.example = ipw.Dropdown(
            description="Example", options=[("choose an edit", ""), *(
                (str(fact), fact) for fact in dict.fromkeys(examples))],
            tooltip="Fill the fields with an example", style={"description_width": "auto"},
            layout={"width": "min(600px, 100%)"})
        self.subject = self._finder("subject", "Subject", self._subject_chosen)
        self.relation = self._finder("relation", "Relation", self._relation_chosen)
        self.object = self._finder("object", "New object", self._changed)
        self.strength = ipw.Dropdown(
            description="Evidence", options=[*STRENGTHS, CUSTOM], value="P = 0.95", style=LABEL,
            tooltip="Strength of the evidence", layout={"width": "250px"})
        self.weight = ipw.FloatText(
            description="Observations", value=1.0, disabled=True, style=LABEL,
            tooltip="Weight of the evidence in observations", layout={"width": "190px"})
        self.hint = ipw.HTML(layout={"flex": "1 1 300px"})
        self.hint.add_class("be-hint")
        self.example.observe(self._example_chosen, "value")
        self.strength.observe(self._changed, "value")
        self.weight.observe(self._changed, "value")
        super().__init__([
            self.example,
            ipw.HBox([self.subject, self.relation, self.object], layout={"flex_flow": "row wrap"}),
            row(self.strength, self.weight, self.hint)])

    def fill(self, request: EditRequest, agent: BayesAgent) -> None:
        """Put a request into the controls, with the evidence strength of its weight."""
        fact = request.requested
        with self.quietly():
            self._put(fact)
            present = {name: STRENGTHS[name] for name in [self.strength.value] if name != CUSTOM}
            self.strength.value = next(
                (name for name, strength in (present | STRENGTHS).items()
                 if strength.observations(agent, fact) == request.weight), CUSTOM)
            if self.strength.value == CUSTOM:
                self.weight.value = request.weight
        self._changed()

    def request(self, agent: BayesAgent) -> EditRequest:
        """The request in the controls; EditError for unknown names or invalid evidence."""
        fact = self.facts.named(self.subject.text.value, self.relation.text.value,
                                self.object.text.value)
        return self.facts.request(fact, self._strength(), agent)

    def say(self, request: EditRequest, p_before: float) -> None:
        """Show the evidence of a request, whose belief is p_before, beside its control."""
        text = show.evidence(request.weight, self._strength().probability, p_before)
        self.hint.value = show.message(f"Evidence: {text}.")

    def _strength(self) -> EvidenceStrength:
        return STRENGTHS.get(self.strength.value) or EvidenceStrength(None, self.weight.value)

    def _finder(self, kind: str, name: str, changed: Callable[[str], None]) -> Finder:
        def suggest(text: str) -> list[str]:
            return self.facts.suggest(kind, text, self.subject.text.value,
                                      self.relation.text.value, n=N_SUGGESTED)

        return Finder(name, suggest, self.facts.names[kind].resolve, changed)

    def _put(self, fact: Fact) -> None:
        self.subject.put(fact.subject)
        self.relation.put(fact.relation)
        self.object.put(fact.object)

    def _example_chosen(self, change: dict) -> None:
        if self.settled and change["new"]:
            self._put(change["new"])
            self._changed()

    def _subject_chosen(self, text: str) -> None:
        if name := self.facts.names["subject"].resolve(text):
            relation, relations = self.relation.text.value, self.facts.relations_of[name]
            self.relation.put(relation if relation in relations else relations[0])
            self._fit_object(name, self.relation.text.value)
        self._changed()

    def _relation_chosen(self, text: str) -> None:
        if text in self.facts.subjects_of:
            self._fit_object(self.subject.text.value, text)
        self._changed()

    def _fit_object(self, subject: str, relation: str) -> None:
        self.object.put(self.facts.fitting(subject, relation, self.object.text.value))

    def _changed(self, _: object = None) -> None:
        if self.settled:
            self.weight.disabled = self.strength.value != CUSTOM
            typed = Fact(self.subject.text.value, self.relation.text.value, self.object.text.value)
            with self.quietly():
                self.example.value = typed if typed in dict(self.example.options).values() else ""
            self.changed()


def row(*children: ipw.Widget) -> ipw.HBox:
    """Widgets side by side, wrapped on a narrow page."""
    return ipw.HBox(children, layout={"flex_flow": "row wrap", "align_items": "center",
                                      "grid_gap": "2px 10px"})


def columns(*children: ipw.Widget) -> ipw.HBox:
    """Widgets in columns of equal width, one below the other on a narrow page."""
    for child in children:
        child.layout = {"flex": "1 1 520px", "min_width": "0", "margin": "0 12px 0 0"}
    return ipw.HBox(children, layout={"flex_flow": "row wrap"})
