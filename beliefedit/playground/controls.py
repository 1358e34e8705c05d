"""Where a request is made: names, searched while typing, and the strength of the evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ipywidgets as ipw

from beliefedit.agent.agent import BayesAgent
from beliefedit.editors.base import EditRequest
from beliefedit.playground import html as show
from beliefedit.playground.agent_view import EvidenceStrength, FactIndex

CUSTOM = "custom weight"
STRENGTHS = {"one observation": EvidenceStrength(None, 1.0),
             **{f"P = {p:g}": EvidenceStrength(p) for p in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)}}
N_SUGGESTED = 12  # names in a list at once
LABEL = {"description_width": "90px"}


class Settling:
    """Keeps widgets from answering to changes that the program makes itself."""

    settled = True

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """Changes within are the program's."""
        self.settled = False
        try:
            yield
        finally:
            self.settled = True


class Finder(Settling, ipw.VBox):
    """A field to type in, above the names that match, to choose from by mouse or arrow keys;
    ``changed`` is called with the text after every change."""

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

    def put(self, value: str) -> None:
        """Show a name and what else there is, without a call to ``changed``."""
        with self.quietly():
            self.text.value = value
            name, found = self.resolve(value), self.suggest(value)
            if name is not None:  # nothing is looked for: show what else there is
                found = [*dict.fromkeys([name, *found, *self.suggest("")])][:N_SUGGESTED]
            self.list.options = found
            self.list.value = name if name in found else None

    def _typed(self, change: dict) -> None:
        if self.settled:
            self.put(change["new"])
            self.changed(change["new"])

    def _chosen(self, change: dict) -> None:
        """The list stays as it is, so that further arrow keys move in it."""
        if self.settled and change["new"] is not None:
            with self.quietly():
                self.text.value = change["new"]
            self.changed(change["new"])


class RequestForm(Settling, ipw.VBox):
    """The controls of a request; ``changed`` is called after every change."""

    def __init__(self, known: FactIndex, changed: Callable[[], None]) -> None:
        self.known, self.changed = known, changed
        self.subject = self._finder("subject", "Subject", self._subject_chosen)
        self.relation = self._finder("relation", "Relation", self._relation_chosen)
        self.object = self._finder("object", "New object", self._changed)
        self.strength = ipw.Dropdown(
            description="Evidence", options=[*STRENGTHS, CUSTOM], value="P = 0.95", style=LABEL,
            tooltip="How strong the evidence is", layout={"width": "250px"})
        self.weight = ipw.FloatText(
            description="Observations", value=1.0, disabled=True, style=LABEL,
            tooltip="How many observations the evidence counts for", layout={"width": "190px"})
        self.hint = ipw.HTML(layout={"flex": "1 1 300px"})
        self.strength.observe(self._changed, "value")
        self.weight.observe(self._changed, "value")
        super().__init__([
            ipw.HBox([self.subject, self.relation, self.object], layout={"flex_flow": "row wrap"}),
            row(self.strength, self.weight, self.hint)])

    def fill(self, request: EditRequest, agent: BayesAgent) -> None:
        """Put a request into the controls; the evidence is what has its weight for the agent."""
        fact = request.requested
        with self.quietly():
            self.subject.put(fact.subject)
            self.relation.put(fact.relation)
            self.object.put(fact.object)
            self.strength.value = next(
                (name for name, strength in STRENGTHS.items()
                 if strength.observations(agent, fact) == request.weight), CUSTOM)
            if self.strength.value == CUSTOM:
                self.weight.value = request.weight
        self._changed()

    def request(self, agent: BayesAgent) -> EditRequest:
        """What the controls ask for; EditError for unknown names or evidence that is none."""
        fact = self.known.named(self.subject.text.value, self.relation.text.value,
                                self.object.text.value)
        return self.known.request(fact, self._strength(), agent)

    def say(self, request: EditRequest) -> None:
        """Show the evidence of a request beside its control."""
        words = show.evidence(request.weight, self._strength().probability)
        self.hint.value = show.message(f"Evidence: {words}.")

    def _strength(self) -> EvidenceStrength:
        return STRENGTHS.get(self.strength.value) or EvidenceStrength(None, self.weight.value)

    def _finder(self, kind: str, name: str, changed: Callable[[str], None]) -> Finder:
        def suggest(text: str) -> list[str]:
            return self.known.suggest(kind, text, self.subject.text.value,
                                      self.relation.text.value, n=N_SUGGESTED)

        return Finder(name, suggest, self.known.names[kind].resolve, changed)

    def _subject_chosen(self, text: str) -> None:
        if name := self.known.names["subject"].resolve(text):
            relation, own = self.relation.text.value, self.known.relations_of[name]
            self.relation.put(relation if relation in own else own[0])
            self._fit_object(name, self.relation.text.value)
        self._changed()

    def _relation_chosen(self, text: str) -> None:
        if text in self.known.subjects_of:
            self._fit_object(self.subject.text.value, text)
        self._changed()

    def _fit_object(self, subject: str, relation: str) -> None:
        self.object.put(self.known.fitting(subject, relation, self.object.text.value))

    def _changed(self, _: object = None) -> None:
        if self.settled:
            self.weight.disabled = self.strength.value != CUSTOM
            self.changed()


def row(*children: ipw.Widget) -> ipw.HBox:
    """Widgets beside each other, on as many lines as they need."""
    return ipw.HBox(children, layout={"flex_flow": "row wrap", "align_items": "center",
                                      "grid_gap": "2px 10px"})


def columns(*children: ipw.Widget) -> ipw.HBox:
    """Widgets side by side, equally wide where there is room, else below each other."""
    for child in children:
        child.layout = {"flex": "1 1 520px", "min_width": "0", "margin": "0 12px 0 0"}
    return ipw.HBox(children, layout={"flex_flow": "row wrap"})
