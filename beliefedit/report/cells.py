"""The cells of an executed notebook as HTML: prose, folded code, figures, tables, errors.

This module escapes every output that is not HTML. Scripts inside outputs never run: the content
security policy of the page allows only the page's own scripts.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup, escape
from nbconvert.filters import ansi2html
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import Python3Lexer

from beliefedit.formatting import MESSAGE

PLOTLY = "application/vnd.plotly.v1+json"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
PICTURES = ("image/png", "image/jpeg", "image/gif")
HIDDEN_TAGS = {"papermill-error-cell-tag", "remove-cell"}
FOLDED = "fold"  # tag of cells whose output is folded in a report
IN_HEAD = "remove-output"  # tag of cells whose output repeats the head of a report
PROGRESS_BAR = re.compile(r"\d+%\|.*\||\d+(/\d+)?\s?\w* \[\d+:\d+(:\d+)?(<|,|&lt;)")
_VALUE = r"(?:\"[^\"]*\"|'[^']*'|[^\s\"'<>][^\s<>]*)"
_TAG = re.compile(rf"<script\b.*?(?:</script\s*>|\Z)|<([a-z][^\s/>]*)(?:=\s*{_VALUE}|[^<>])*+>",
                  re.IGNORECASE | re.DOTALL)
"""A script with its content, or a start tag with its name."""
_ATTRIBUTE = re.compile(rf"[\s/]+([^\s=>/]+)(?:\s*=\s*({_VALUE}))?", re.IGNORECASE)
"""An attribute of a tag: its name and value."""
_OUTSIDE_TAGS = {"script", "link", "iframe", "object", "embed", "base"}
_OUTSIDE_ATTRIBUTES = {"src", "srcset", "poster"}
PLAYGROUND = Markup("<code>beliefedit playground --run .</code> in the folder of the run, which "
                    "holds <code>index.html</code>")
"""The command that opens the playground; a page does not know the path of its run."""
INTERACTIVE_NOTE = Markup(
    '<p class="note">Interactive part: to use it, {}open the notebook in JupyterLab. '
    "This page shows its state at the end of the run.</p>")


def without_outside(text: str) -> str:
    """HTML without tags and attributes that load something from another address.

    The policy of a page forbids to load it. Text and the values of other attributes stay as they
    are, also where they look like a tag.
    """
    def attribute(match: re.Match[str]) -> str:
        name, value = match[1].lower(), (match[2] or "").strip("\"'").lower()
        drop = name in _OUTSIDE_ATTRIBUTES and not value.startswith("data:")
        return "" if drop else match[0]

    def tag(match: re.Match[str]) -> str:
        if match[1] is None or match[1].lower() in _OUTSIDE_TAGS:
            return ""
        return f"<{match[1]}{_ATTRIBUTE.sub(attribute, match[0][1 + len(match[1]):])}"

    return _TAG.sub(tag, text)


@dataclass(frozen=True)
class Heading:
    """An entry of the table of contents; text is plain."""

    level: int
    text: str
    anchor: str


@dataclass
class ReportPage:
    """The cells of one notebook, filled while they are rendered.

    Attributes:
        title, description: of the notebook: its first heading and its first paragraph, as text.
        window_title: title of the browser's window, if it is not the title.
        prefix: of all anchors, for notebooks that share a page.
        file_prefix: of the names of files that are saved from the page.
    """

    title: str = ""
    description: str = ""
    window_title: str = ""
    prefix: str = ""
    file_prefix: str = ""
    cells: list[dict[str, Any]] = field(default_factory=list)
    headings: list[Heading] = field(default_factory=list)
    n_figures: int = 0
    failure: str = ""
    widgets: Mapping[str, Any] = field(default_factory=dict)


def render_cells(notebook: Mapping[str, Any], *, has_head: bool = False, name: str = "",
                 prefix: str = "") -> ReportPage:
    """All cells of a notebook (nbformat 4) as HTML, with its headings and its failure.

    Args:
        has_head: the page describes the run; outputs of cells tagged `IN_HEAD` are left out.
        name: of the notebook, for the names of files that are saved from the page.
        prefix: of all anchors.
    """
    widgets = notebook["metadata"].get("widgets", {}).get(WIDGET_STATE, {})
    page = ReportPage(widgets=widgets.get("state", {}), prefix=prefix,
                      file_prefix=f"{name}-" if name else "")
    for cell in notebook["cells"]:
        tags = set(cell["metadata"].get("tags", ()))
        if HIDDEN_TAGS & tags or not cell["source"].strip():
            continue
        if cell["cell_type"] == "markdown":
            text = _markdown(cell["source"], page, cell.get("attachments"))
            title = re.match(r"\s*<h1 [^>]*>.*?</h1>", text, flags=re.DOTALL)
            if title and not page.cells:
                page.title, text = page.headings.pop(0).text, Markup(text[title.end():])
                page.description = first_paragraph(text)
            if text.strip():
                page.cells.append({"kind": "prose", "html": text})
        elif cell["cell_type"] == "code":
            code = Markup(highlight(cell["source"], Python3Lexer(), HtmlFormatter(nowrap=True)))
            if not page.cells or page.cells[-1]["kind"] != "code" or page.cells[-1]["outputs"]:
                page.cells.append({"kind": "code", "code": []})
            # A cell without outputs shares a fold with the next one.
            page.cells[-1]["code"].append(code)
            page.cells[-1]["folded"] = FOLDED in tags
            skipped = has_head and IN_HEAD in tags
            page.cells[-1]["outputs"] = _outputs(
                (output for output in cell["outputs"]
                 if not skipped or output["output_type"] == "error"), page)
    return page


def first_paragraph(text: str) -> str:
    """The first paragraph of HTML as text; empty if there is none."""
    found = re.search(r"<p>(.*?)</p>", text, flags=re.DOTALL)
    return _plain(found[1]) if found else ""


def notebook_description(source: str) -> str:
    """The first paragraph of a Markdown cell as text."""
    return first_paragraph(_markdown(source, ReportPage()))


def slug(text: str) -> str:
    """A name for anchors and files: words in lower case, joined by hyphens."""
    return re.sub(r"\W+", "-", text.lower()).strip("-")[:60].rstrip("-")


def _plain(text: str) -> str:
    """The text of trusted HTML in one line."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", text)).split())


class _Renderer(IPythonRenderer):
    """nbconvert's renderer; formulas stay LaTeX, pictures from other addresses are left out."""

    def __init__(self, page: ReportPage, *, from_data: bool, attachments: Mapping | None) -> None:
        super().__init__(escape=from_data, allow_harmful_protocols=None, attachments=attachments)
        self.page, self.from_data = page, from_data

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        """A heading with an anchor that is unique on the page; in outputs, without one."""
        if self.from_data:
            return f"<h{level}>{text}</h{level}>\n"
        plain = _plain(text)
        first = anchor = self.page.prefix + (slug(plain) or "section")
        taken, n = {heading.anchor for heading in self.page.headings}, 1
        while anchor in taken:
            n += 1
            anchor = f"{first}-{n}"
        self.page.headings.append(Heading(level, plain, anchor))
        link = Markup(' <a class="permalink" href="#{}" aria-label="Link to this section">#</a>'
                      ).format(anchor)
        return f'<h{level} id="{escape(anchor)}">{text}{link}</h{level}>\n'

    def image(self, text: str, url: str, title: str | None = None) -> str:
        """An attached picture; for one from another address, its description."""
        attached = url.partition(":")[2] in self.attachments
        source = self._embed_image_or_attachment(url) if attached else url
        text = html.unescape(text)
        if source.startswith("data:image/"):
            return f'<img src="{escape(source)}" alt="{escape(text)}">'
        return f'<span class="note">[picture not included: {escape(text or url)}]</span>'

    def inline_math(self, body: str) -> str:
        """$...$ and $$...$$"""
        return _formula(body)

    block_math = inline_math

    def latex_environment(self, name: str, body: str) -> str:
        r"""\begin{name}...\end{name}"""
        return _formula(f"\\begin{{{name}}}{body}\\end{{{name}}}")


def _formula(latex: str) -> Markup:
    """LaTeX source as code."""
    return Markup('<code class="formula">{}</code>').format(latex.strip("$\n "))


def _markdown(source: str, page: ReportPage, attachments: Mapping | None = None, *,
              from_data: bool = False) -> Markup:
    """Markdown as HTML; raw HTML is kept in Markdown cells and escaped in outputs."""
    renderer = _Renderer(page, from_data=from_data, attachments=attachments)
    return Markup(without_outside(MarkdownWithMath(renderer=renderer).render(source)))


def _outputs(outputs: Iterable[Mapping[str, Any]], page: ReportPage) -> list[dict[str, Any]]:
    """Outputs as {kind, html}: figure, html, prose, picture, text, messages, widget or error."""
    merged: list[Mapping[str, Any]] = []
    for output in outputs:
        if output.get("metadata", {}).get(MESSAGE):
            output = {"output_type": "stream", "name": "stderr",
                      "text": f"{output['data']['text/plain']}\n"}
        last = merged[-1] if merged else {}
        if output["output_type"] == "stream" and last.get("name") == output["name"]:
            merged[-1] = {**last, "text": last["text"] + output["text"]}
        else:
            merged.append(output)
    return [shown for output in merged if (shown := _output(output, page)) and shown["html"]]


def _output(output: Mapping[str, Any], page: ReportPage) -> dict[str, Any]:
    if output["output_type"] == "stream":
        kind = "messages" if output["name"] == "stderr" else "text"
        return {"kind": kind, "html": Markup(ansi2html(_without_progress(output["text"])))}
    if output["output_type"] == "error":
        page.failure = page.failure or f"{output['ename']}: {output['evalue']}"
        return {"kind": "error", "html": Markup(ansi2html("\n".join(output["traceback"]))),
                "title": output["ename"], "message": output["evalue"]}
    data = output["data"]
    if WIDGET_VIEW in data:
        return _widget(data, page)
    if PLOTLY in data:
        return {"kind": "figure", **figure_json(data[PLOTLY], page)}
    return _still(data, page)


def _still(data: Mapping[str, Any], page: ReportPage) -> dict[str, Any]:
    """The richest representation that needs no script."""
    if "text/html" in data:
        return {"kind": "html", "html": Markup(without_outside(data["text/html"]))}
    if "text/markdown" in data:
        return {"kind": "prose", "html": _markdown(data["text/markdown"], page, from_data=True)}
    sources = [f"data:{kind};base64,{data[kind].strip()}".replace("\n", "")
               for kind in PICTURES if kind in data]
    if "image/svg+xml" in data:
        code = "".join(f"%{byte:02x}" for byte in data["image/svg+xml"].encode())
        sources = [f"data:image/svg+xml,{code}"]
    if sources:
        return {"kind": "picture", "html": Markup('<img src="{}" alt="">').format(sources[0])}
    if "text/latex" in data:
        return {"kind": "prose", "html": _formula(data["text/latex"])}
    return {"kind": "text", "html": Markup(ansi2html(data.get("text/plain", "")))}


def _widget(data: Mapping[str, Any], page: ReportPage) -> dict[str, Any]:
    """A widget as a note and its last state; empty for a progress bar."""
    if PROGRESS_BAR.search(data.get("text/plain", "")):
        return {}
    still = {kind: data[kind] for kind in data if kind not in (WIDGET_VIEW, "text/plain")}
    parts, settings = [_display(still)] if still else [], []
    for item in _inside(data[WIDGET_VIEW]["model_id"], page.widgets):
        if isinstance(item, str):
            settings.append(item)
            continue
        parts += [_settings(settings), item] if settings else [item]
        settings = []
    if not parts and settings:  # controls below all outputs have set nothing of what is shown
        parts = [_settings(settings)]
    is_playground = any("be-page" in record.get("state", {}).get("_dom_classes", ())
                        for record in page.widgets.values())
    command = Markup("run {}, or ").format(PLAYGROUND) if is_playground else ""
    return {"kind": "widget", "html": INTERACTIVE_NOTE.format(command),
            "parts": _outputs(parts, page)}


def _settings(settings: Iterable[str]) -> Mapping[str, Any]:
    return _display({"text/html": f'<p class="note">{" · ".join(map(html.escape, settings))}</p>'})


def _inside(model: str, widgets: Mapping[str, Any], parents: frozenset[str] = frozenset()
            ) -> Iterator[Mapping[str, Any] | str]:
    """Outputs of a widget and of its children, in order; the setting of a control is text.

    Hidden and empty widgets, disabled controls, progress bars and lists without a name are left
    out.
    """
    record = widgets.get(model, {})
    state = record.get("state", {})
    name = state.get("_model_name", "")
    layout = widgets.get(str(state.get("layout", "")).removeprefix("IPY_MODEL_"), {})
    if layout.get("state", {}).get("display") == "none" or "ProgressModel" in name:
        return
    if name == "OutputModel":
        yield from state.get("outputs", ())
    elif name in ("HTMLModel", "HTMLMathModel"):
        if state.get("value"):
            yield _display({"text/html": state["value"]})
    elif name == "ImageModel":
        yield from (_display({f"image/{state.get('format', 'png')}": buffer["data"]})
                    for buffer in record.get("buffers") or () if buffer.get("path") == ["value"])
    elif not state.get("disabled") and (setting := _setting(state)):
        yield setting
    for child in () if model in parents else state.get("children", ()):
        yield from _inside(child.removeprefix("IPY_MODEL_"), widgets, parents | {model})


def _display(data: dict[str, Any]) -> dict[str, Any]:
    return {"output_type": "display_data", "data": data, "metadata": {}}


def _setting(state: Mapping[str, Any]) -> str:
    """'subject: Ann' of a control or label; empty for one without a value, or a nameless list."""
    options, index, value = state.get("_options_labels"), state.get("index"), state.get("value")
    if options is not None:
        if not state.get("description"):
            return ""
        value = options[index] if isinstance(index, int) and index < len(options) else "–"
    elif isinstance(value, bool):
        value = "yes" if value else "no"
    elif not isinstance(value, str | int | float):
        return ""
    return f"{state['description']}: {value}" if state.get("description") else str(value)


def _without_progress(text: str) -> str:
    """Text without progress bars, and of each line only what is after its last carriage return."""
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return "\n".join(line for line in lines if not PROGRESS_BAR.search(line)).strip("\n")


def figure_json(plot: Mapping[str, Any], page: ReportPage) -> dict[str, Any]:
    """A plotly figure: title and subtitle as text, and JSON that cannot end a script element."""
    page.n_figures += 1
    layout = dict(plot.get("layout") or {})
    title = layout.pop("title", None)
    title = title.get("text") if isinstance(title, Mapping) else title
    tags = re.compile(r"</?(b|i|u|s|em|strong|sub|sup|span|a)(\s[^>]*)?>")
    caption, *rest = (html.unescape(tags.sub("", line)).strip()
                      for line in re.split(r"<br\s*/?>", title or ""))
    content = {"data": plot.get("data", []), "layout": layout, "frames": plot.get("frames", [])}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return {"html": Markup(text), "title": caption, "subtitle": " ".join(rest),
            "height": layout.get("height") or 450, "file": slug(caption) or f"{page.n_figures:02d}"}
