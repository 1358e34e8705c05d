"""Small real notebooks for the tests of reports and of run_all: built here, run by a real kernel."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

HOSTILE = ['<script>alert(1)</script>', '"><img src=x onerror=alert(2)>', "שלום עולם", "👩🏽‍🔬 émigré",
           "</script><b>bold</b>", "${7*7}{{7*7}}", "a&lt;b"]
PARAMETERS = 'params_file = "params.yaml"\nrun_folder = "run"\noverrides = {}'


def write(path: Path, *cells: str | tuple[str, str], parameters: str | None = PARAMETERS) -> Path:
    """A notebook from prose ('# ...' opens a Markdown cell) and code; ``parameters`` None leaves that cell out."""
    built = [new_markdown_cell(cell) if cell.startswith(("#", "Prose")) else new_code_cell(cell) for cell in cells]
    if parameters is not None:
        built.insert(1, new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
              "language_info": {"name": "python"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=built, metadata=kernel), path)
    return path


RICH = (
    """# Do edited models revise their beliefs?

A model that adopts *one* new fact should also change its **downstream** facts. The agent's belief in object $o$ is

$$p(o \\mid s, r) = \\frac{n_o + \\alpha\\, q(o \\mid x)}{\\sum_{o'} n_{o'} + \\alpha}$$

and the error of the model is $|p_{\\mathrm{LM}} - p_{\\text{agent}}|$, below $0.05$ when $x < y$.""",
    "import plotly.graph_objects as go\nimport polars as pl\nfrom IPython.display import HTML, Markdown, display\n"
    "from plotly.subplots import make_subplots\nfrom tqdm.auto import tqdm\nimport sys, numpy as np\n"
    f"hostile = {HOSTILE!r}",
    "## Learning curves\n\nAccuracy is measured every 20 thousand tokens.",
    """for step in tqdm(range(20), desc="Training"):  # a progress bar must not show
    pass
print("500 facts, 20 evaluations")
print("  5%|5         | 1/20 [00:00<00:10,  1.0it/s]\\r 10%|#         | 2/20 [00:00<00:10,  1.0it/s]",
      file=sys.stderr)
print("one warning worth reading", file=sys.stderr)""",
    """tokens = np.arange(1, 21) * 1e5
figure = go.Figure(layout=dict(template="plotly_white", height=460,
    title="Accuracy rises with the number of tokens seen<br><sub>smoke run, one seed</sub>",
    xaxis_title="Tokens", yaxis_title="Accuracy (share of prompts)"))
for i, name in enumerate(["Facts", "True/false", "Not", "And", "Or"]):
    figure.add_scatter(x=tokens, y=1 - np.exp(-tokens / (4e5 * (i + 1))), name=name)
figure""",
    "### Calibration",
    """z = np.random.default_rng(0).random((6, len(hostile)))
heat = go.Figure(go.Heatmap(z=z, x=hostile, y=[f"relation {i}" for i in range(6)], colorscale="Blues",
                            colorbar_title="share"))
heat.update_layout(height=520, title="Names from data stay text: " + hostile[0].replace("<", "&lt;"))
heat.show()""",
    """from beliefedit.plots import style
loss = style.figure("Loss falls while the model learns", x="tokens", y="nats per token")
for name, colour in [("training loss", style.BEFORE), ("evaluation loss", style.AFTER), ("agent", style.AGENT)]:
    loss.add_scatter(x=tokens, y=np.exp(-tokens / 1e6) + len(name) / 30, name=name, line_color=colour)
loss""",
    """names = ["same subject, same relation", "same subject, other relation", "other subject, same relation", "others"]
four = style.panels("Four probes of one edit", [style.escape(name) for name in names])
for i in range(4):
    for name, colour in [("LM after", style.AFTER), ("Bayesian agent after the edit", style.AGENT)]:
        four.add_scatter(y=np.linspace(0, 1, 40) ** (i + len(name) / 9), name=name, legendgroup=name,
                         showlegend=i == 0, line_color=colour, row=i // 2 + 1, col=i % 2 + 1)
four""",
    "## Trajectories",
    """panels = ["Same subject, same relation", "Same subject", "Same relation", "Others",
          "T/F", "Negation", "And", "Or"]
grid = make_subplots(2, 4, subplot_titles=panels, shared_yaxes=True)
for i in range(8):
    row, col = divmod(i, 4)
    grid.add_scatter(y=np.linspace(0, 1, 40) ** (i + 1), name="LM", legendgroup="LM", showlegend=i == 0,
                     line_color="#0072B2", row=row + 1, col=col + 1)
    grid.add_hline(y=0.9, line_dash="dot", line_color="#7f7f7f", row=row + 1, col=col + 1)
grid.update_layout(height=560, title="Eight panels of one edit")
grid""",
    "## Tables\n\n| symbol | meaning |\n|---|---|\n| $p$ | probability |\n| $q$ | prior |",
    """frame = pl.DataFrame({"entity": hostile, "n": [12, 7, 120, 33, 1500, 2, 9],
                      "probability": [0.512, 0.25, 0.125, 0.9, 0.05, 0.33, 0.99]})
frame""",
    """head = ("<thead><tr><th rowspan=2>Editor</th><th colspan=3>p(request)</th><th colspan=3>Coherence</th></tr>"
        "<tr><th>before</th><th>after</th><th>difference</th><th>before</th><th>after</th><th>difference</th></tr></thead>")
rows = "".join(f"<tr><td>{name}</td>" + "".join(f"<td>{v:.3f} [{v-.03:.3f}, {v+.03:.3f}]</td>"
               for v in np.random.default_rng(i).random(6)) + "</tr>"
               for i, name in enumerate(["lora", "rome", "memit", "grace"]))
caption = "<caption>Updating: requests that contradict the model's answer</caption>"
HTML(f"<table>{caption}{head}<tbody>{rows}</tbody></table>")""",
    "## Verdict",
    "Markdown('The claim **holds** for ' + hostile[0] + ' and ' + hostile[1] + ', by 0.21 [0.18, 0.25].')",
    "## Playground",
    """import ipywidgets as widgets
shown = widgets.Output()
panel = widgets.VBox([widgets.FloatSlider(description="evidence"), shown])
with shown:
    display(go.Figure(go.Bar(x=[0.2, 0.7, 0.9], y=["LM before", "LM after", "agent"], orientation="h"),
                      layout=dict(title="Beliefs about one fact", height=300)))
panel""",
)
RICH_FIGURES = 6
"""One of them inside a widget."""


def write_rich(path: Path) -> Path:
    """A notebook with every kind of output of a report, and hostile text in all of them."""
    return write(path, *RICH)
