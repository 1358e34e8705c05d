"""A slider over named stops that keyboards and screen readers can use; that of ipywidgets has no name for them."""

from __future__ import annotations

import anywidget
import traitlets


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
