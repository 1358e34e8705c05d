"""Where a wish is put together: subject, relation and new object found while one types, and the evidence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anywidget
import ipywidgets as ipw
import traitlets

from beliefedit.playground import html as show
from beliefedit.playground.agent_view import Known, Strength, Wish


class Stops(anywidget.AnyWidget):
    """A labelled slider; its value is the name of a stop.

    Args:
        label: what is chosen, trusted text.
        options: names of the stops, in order.
        value: the one chosen.
    """

    label = traitlets.Unicode().tag(sync=True)
    options = traitlets.List(traitlets.Unicode()).tag(sync=True)
    value = traitlets.Unicode().tag(sync=True)
    disabled = traitlets.Bool(False).tag(sync=True)

    _esm = """
    export default { render({ model, el }) {
      el.classList.add("be-stops");
      const label = document.createElement("label"), name = document.createElement("span");
      const slider = document.createElement("input"), shown = document.createElement("output");
      slider.type = "range"; slider.min = 0; slider.step = 1;
      label.append(name, slider, shown); el.append(label);
      const draw = () => {
        const options = model.get("options"), value = model.get("value");
        name.textContent = model.get("label"); shown.textContent = value;
        slider.max = options.length - 1; slider.value = options.indexOf(value);
        slider.setAttribute("aria-valuetext", value); slider.setAttribute("aria-label", model.get("label"));
        slider.disabled = model.get("disabled");
      };
      slider.addEventListener("input", () => {
        model.set("value", model.get("options")[Number(slider.value)]); model.save_changes(); draw();
      });
      for (const trait of ["label", "options", "value", "disabled"]) model.on("change:" + trait, draw);
      draw();
    } };
    """
    _css = """
    .be-stops label { display: flex; align-items: center; gap: 8px; font-size: var(--jp-widgets-font-size, 13px); }
    .be-stops input { width: 190px; } .be-stops output { min-width: 8em; }
    """

STRENGTHS = {"one observation": Strength("one observation", 1.0),
             **{f"P = {p:g}": Strength("probability", p) for p in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)},
             "custom weight": None}
"""Stops of the evidence slider."""

N_SUGGESTED = 12
"""Suggestions on the page at once."""

LABEL = {"description_width": "90px"}


class Finder(ipw.VBox):
    """A field to type in, and below it the names that fit, to choose from by mouse or arrow keys.

    Args:
        name: what is looked for.
        suggest: names for what has been typed; "" gives those to start with.
        resolve: the name meant by a text, or None.
        changed: called with the text after every change.
    """

    def __init__(self, name: str, suggest: Callable[[str], list[str]], resolve: Callable[[str], str | None],
                 changed: Callable[[str], None]) -> None:
        self.suggest, self.resolve, self.changed = suggest, resolve, changed
        self._settled = True
        self.text = ipw.Text(description=name, placeholder="type a part of it", continuous_update=True,
                             tooltip=f"{name}: type a part of it", style={"description_width": "auto"},
                             layout={"width": "100%", "margin": "0 0 2px 0"})
        self.list = ipw.Select(options=[], rows=5, tooltip=f"{name}: suggestions", layout={
            "width": "100%", "margin": "0"})
        self.text.observe(self._typed, "value")
        self.list.observe(self._chosen, "value")
        super().__init__([self.text, self.list], layout={"flex": "1 1 240px", "min_width": "0", "margin": "0 8px 0 0"})

    def put(self, value: str) -> None:
        """Show a name and what else there is, without a call to ``changed``."""
        self._settled = False
        self.text.value = value
        name = self.resolve(value)
        found = self.suggest(value)
        if name is not None:  # nothing is being looked for: show what else there is
            found = [*dict.fromkeys([name, *found, *self.suggest("")])][:N_SUGGESTED]
        self.list.options = found
        self.list.value = name if name in found else None
        self._settled = True

    def _typed(self, change: dict) -> None:
        if self._settled:
            self.put(change["new"])
            self.changed(change["new"])

    def _chosen(self, change: dict) -> None:
        """The list stays as it is, so that arrow keys can go on."""
        if self._settled and change["new"] is not None:
            self._settled = False
            self.text.value = change["new"]
            self._settled = True
            self.changed(change["new"])


class Pickers(ipw.VBox):
    """The controls that say what is to be believed.

    Args:
        known: the names, and what goes with what.
        changed: called after every change.
    """

    def __init__(self, known: Known, changed: Callable[[], None]) -> None:
        self.known, self.changed = known, changed
        self._settled = True

        def finder(kind: str, name: str, changed: Callable[[str], Any]) -> Finder:
            return Finder(name, lambda text: self._suggest(kind, text), known.names[kind].resolve, changed)

        self.subject = finder("subject", "Subject", self._subject_chosen)
        self.relation = finder("relation", "Relation", self._relation_chosen)
        self.object = finder("object", "New object", self._changed)
        self.strength = Stops(label="Evidence", options=list(STRENGTHS), value="P = 0.95")
        self.weight = ipw.FloatText(description="Observations", value=1.0, disabled=True, style=LABEL,
                                    tooltip="How many observations the evidence counts for", layout={"width": "190px"})
        self.hint = ipw.HTML(layout={"flex": "1 1 300px"})
        self.strength.observe(self._changed, "value")
        self.weight.observe(self._changed, "value")
        finders = ipw.HBox([self.subject, self.relation, self.object], layout={"flex_flow": "row wrap"})
        super().__init__([finders, row(self.strength, self.weight, self.hint)])

    def fill(self, wish: Wish) -> None:
        """Put a wish into the controls, and say so."""
        self._settled = False
        for finder, value in ((self.subject, wish.subject), (self.relation, wish.relation),
                              (self.object, wish.object)):
            finder.put(value)
        stops = [name for name, strength in STRENGTHS.items() if strength == wish.strength]
        self.strength.value = stops[0] if stops else "custom weight"
        if not stops:
            self.weight.value = wish.strength.value
        self._settled = True
        self._changed()

    def wish(self) -> Wish:
        """What the controls say.

        Raises:
            EditError: a name that is not known.
        """
        strength = STRENGTHS[self.strength.value] or Strength("weight", self.weight.value)
        return self.known.wish(self.subject.text.value, self.relation.text.value, self.object.text.value, strength)

    def say(self, text: str) -> None:
        """A line beside the evidence."""
        self.hint.value = show.message(text)

    def _suggest(self, kind: str, text: str) -> list[str]:
        return self.known.suggest(kind, text, self.subject.text.value, self.relation.text.value, n=N_SUGGESTED)

    def _subject_chosen(self, text: str) -> None:
        name = self.known.subjects.resolve(text)
        if name is not None:  # the relation stays if the subject has it
            relation = self.relation.text.value
            own = self.known.relations_of[name]
            self.relation.put(relation if relation in own else own[0])
            self._fit_object(name)
        self._changed()

    def _relation_chosen(self, text: str) -> None:
        if text in self.known.relations:
            self._fit_object(self.subject.text.value)
        self._changed()

    def _fit_object(self, subject: str) -> None:
        """A new object that makes sense with the relation."""
        self.object.put(self.known.fitting(subject, self.relation.text.value, self.object.text.value))

    def _changed(self, _: object = None) -> None:
        if self._settled:
            self.weight.disabled = STRENGTHS[self.strength.value] is not None
            self.changed()


def row(*children: ipw.Widget) -> ipw.HBox:
    """Widgets beside each other, on as many lines as they need."""
    return ipw.HBox(children, layout={"flex_flow": "row wrap", "align_items": "center", "grid_gap": "2px 10px"})


def columns(*children: ipw.Widget) -> ipw.HBox:
    """Widgets side by side, equally wide where there is room, else below each other."""
    for child in children:
        child.layout = {"flex": "1 1 520px", "min_width": "0", "margin": "0 12px 0 0"}
    return ipw.HBox(children, layout={"flex_flow": "row wrap"})
