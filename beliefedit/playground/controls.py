"""Where a request is made: names, searched while typing, and the strength of the evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ipywidgets as ipw

from beliefedit.agent.agent import BayesAgent
from beliefedit.editors.base import EditRequest
from beliefedit.playground import html as show
from beliefedit.playground.agent_view import EvidenceStrength, Known

CUSTOM = "custom weight"
STRENGTHS = {"one observation": EvidenceStrength(None, 1.0),
             **{f"P = {p:g}": EvidenceStrength(p) for p in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)}}
"""Strengths to choose from, besides a custom weight."""

N_SUGGESTED = 12
"""Suggestions on the page at once."""

LABEL = {"description_width": "90px"}


class _Settling:
    """Keeps widgets from answering to changes that the program makes itself."""

    _settled = True

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        self._settled = False
        try:
            yield
        finally:
            self._settled = True


class Finder(_Settling, ipw.VBox):
    """A field to type in, above the names that match, to choose from by mouse or arrow keys.

    Args:
        suggest: names for what has been typed; "" gives those to start with.
        resolve: the name meant by a text, or None.
        changed: called with the text after every change.
    """

    def __init__(self, name: str, suggest: Callable[[str], list[str]],
                 resolve: Callable[[str], str | None], changed: Callable[[str], None]) -> None:
        self.suggest, self.resolve, self.changed = suggest, resolve, changed
        self.text = ipw.Text(description=name, placeholder="type a part of it",
                             tooltip=f"{name}: type a part of it", continuous_update=True,
                             style={"description_width": "auto"},
                             layout={"width": "100%", "margin": "0 0 2px 0"})
        self.list = ipw.Select(options=[], rows=5, tooltip=f"{name}: suggestions",
                               layout={"width": "100%", "margin": "0"})
        self.text.observe(self._typed, "value")
        self.list.observe(self._chosen, "value")
        super().__init__([self.text, self.list], layout={
            "flex": "1 1 240px", "min_width": "0", "margin": "0 8px 0 0"})

    def put(self, value: str) -> None:
        """Show a name and what else there is, without a call to ``changed``."""
        with self._quietly():
            self.text.value = value
            name, found = self.resolve(value), self.suggest(value)
            if name is not None:  # nothing is being looked for: show what else there is
                found = [*dict.fromkeys([name, *found, *self.suggest("")])][:N_SUGGESTED]
            self.list.options = found
            self.list.value = name if name in found else None

    def _typed(self, change: dict) -> None:
        if self._settled:
            self.put(change["new"])
            self.changed(change["new"])

    def _chosen(self, change: dict) -> None:
        """The list stays as it is, so that further arrow keys move in it."""
        if self._settled and change["new"] is not None:
            with self._quietly():
                self.text.value = change["new"]
            self.changed(change["new"])


class Pickers(_Settling, ipw.VBox):
    """The controls of a request; ``changed`` is called after every change."""

    def __init__(self, known: Known, changed: Callable[[], None]) -> None:
        self.known, self.changed = known, changed
        self.subject = self._finder("subject", "Subject", self._subject_chosen)
        self.relation = self._finder("relation", "Relation", self._relation_chosen)
        self.object = self._finder("object", "New object", self._changed)
        self.strength = ipw.Dropdown(description="Evidence", options=[*STRENGTHS, CUSTOM],
                                     value="P = 0.95", tooltip="How strong the evidence is",
                                     style=LABEL, layout={"width": "250px"})
        self.weight = ipw.FloatText(description="Observations", value=1.0, disabled=True,
                                    tooltip="How many observations the evidence counts for",
                                    style=LABEL, layout={"width": "190px"})
        self.hint = ipw.HTML(layout={"flex": "1 1 300px"})
        self.strength.observe(self._changed, "value")
        self.weight.observe(self._changed, "value")
        finders = ipw.HBox([self.subject, self.relation, self.object],
                           layout={"flex_flow": "row wrap"})
        super().__init__([finders, row(self.strength, self.weight, self.hint)])

    def fill(self, request: EditRequest, agent: BayesAgent) -> None:
        """Put a request into the controls; the evidence is what has its weight for the agent."""
        fact = request.requested
        with self._quietly():
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
        self.hint.value = show.message(
            f"Evidence: {show.evidence(self._strength(), request.weight)}.")

    def _strength(self) -> EvidenceStrength:
        return STRENGTHS.get(self.strength.value) or EvidenceStrength(None, self.weight.value)

    def _finder(self, kind: str, name: str, changed: Callable[[str], None]) -> Finder:
        def suggest(text: str) -> list[str]:
            return self.known.suggest(kind, text, self.subject.text.value,
                                      self.relation.text.value, n=N_SUGGESTED)

        return Finder(name, suggest, self.known.names[kind].resolve, changed)

    def _subject_chosen(self, text: str) -> None:
        name = self.known.names["subject"].resolve(text)
        if name is not None:  # the relation stays if the subject has it
            relation, own = self.relation.text.value, self.known.relations_of[name]
            self.relation.put(relation if relation in own else own[0])
            self._fit_object(name)
        self._changed()

    def _relation_chosen(self, text: str) -> None:
        if text in self.known.names["relation"]:
            self._fit_object(self.subject.text.value)
        self._changed()

    def _fit_object(self, subject: str) -> None:
        """A new object that makes sense with the relation."""
        self.object.put(self.known.fitting(subject, self.relation.text.value,
                                           self.object.text.value))

    def _changed(self, _: object = None) -> None:
        if self._settled:
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
