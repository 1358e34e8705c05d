"""The cells of an executed notebook as HTML: prose, maths, folded code, figures, tables, errors (REPORTS.md).

Everything that is not HTML by its own type is escaped here; scripts inside outputs never run, because the
page's content security policy allows only the page's own.
"""

from __future__ import annotations

import html
import json
import logging
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from latex2mathml.converter import convert
from markupsafe import Markup, escape
from nbconvert.filters import ansi2html
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import Python3Lexer

log = logging.getLogger(__name__)

PREFIX = "IPY_MODEL_"


def shown(model: str, widgets: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Outputs (nbformat 4) that stand for a widget and those inside it, in their order; controls become their settings.

    Args:
        model: the widget's id.
        widgets: the notebook's widget state, id to {state, buffers}.
    """
    outputs: list[dict[str, Any]] = []
    settings: list[str] = []
    for part in _parts(model, widgets, frozenset()):
        if isinstance(part, str):
            settings.append(part)
            continue
        outputs += _told(settings)
        settings = []
        outputs.append(part)
    return outputs + _told(settings)


def _told(settings: list[str]) -> list[dict[str, Any]]:
    return [_display({"text/plain": " · ".join(settings)})] if settings else []


def _display(data: dict[str, Any]) -> dict[str, Any]:
    return {"output_type": "display_data", "data": data, "metadata": {}}


def _parts(model: str, widgets: Mapping[str, Any], above: frozenset[str]) -> Iterator[dict[str, Any] | str]:
    """Outputs, and the settings of controls as text, of a widget and what it holds."""
    record = widgets.get(model, {})
    state = record.get("state", {})
    name = state.get("_model_name")
    if name == "OutputModel":
        yield from state.get("outputs", ())
    elif name in ("HTMLModel", "HTMLMathModel"):
        yield _display({"text/html": state.get("value", "")})
    elif name == "ImageModel":
        yield from (_display({f"image/{state.get('format', 'png')}": buffer["data"]})
                    for buffer in record.get("buffers") or () if buffer.get("path") == ["value"])
    elif (setting := _setting(state)) is not None:
        yield setting
    for child in () if model in above else state.get("children", ()):
        yield from _parts(child.removeprefix(PREFIX), widgets, above | {model})


def _setting(state: Mapping[str, Any]) -> str | None:
    """'Subject: Ann' of a control or label; None for what has no value of its own."""
    options, index, value = state.get("_options_labels"), state.get("index"), state.get("value")
    if options is not None:
        value = options[index] if isinstance(index, int) and index < len(options) else "–"
    elif isinstance(value, bool):
        value = "yes" if value else "no"
    elif not isinstance(value, str | int | float):
        return None
    described = state.get("description") or ""
    return f"{described}: {value}" if described else str(value) or None


PLOTLY = "application/vnd.plotly.v1+json"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
PICTURES = ("image/png", "image/jpeg", "image/gif")
HIDDEN_TAGS = {"papermill-error-cell-tag", "remove-cell"}
TOLD_BY_HEAD = "remove-output"
"""Tag of cells whose output repeats what the head of a run's report says: a page without that head shows it."""

PROGRESS_BAR = re.compile(r"\d+%\|.*\||\d+(/\d+)?\s?\w* \[\d+:\d+(:\d+)?(<|,|&lt;)")
MATHML_TAGS = frozenset(
    "math mrow mi mo mn ms mtext mspace mfrac msqrt mroot msub msup msubsup munder mover munderover mtable mtr mtd "
    "mstyle mpadded mphantom menclose mfenced mmultiscripts mprescripts none merror".split())
OUTSIDE = re.compile(
    r"<script\b.*?</script\s*>|<(?:script|link|iframe|object|embed|base)\b[^>]*>"
    r"|(?<=\s)(?:src|srcset|poster)\s*=\s*(?!['\"]?data:)(?:\"[^\"]*\"|'[^']*'|[^\s>]+)(?=[^<>]*>)",
    re.IGNORECASE | re.DOTALL)
INTERACTIVE_NOTE = Markup('<p class="note">Interactive part: open the notebook in JupyterLab to use it. '
                          "Shown here as it stood when the notebook was run.</p>")


@dataclass(frozen=True)
class Heading:
    """An entry of the table of contents; text is plain."""

    level: int
    text: str
    anchor: str


@dataclass
class Page:
    """What the cells of one notebook come to; grows while they are rendered."""

    title: str = ""
    cells: list[dict[str, Any]] = field(default_factory=list)
    headings: list[Heading] = field(default_factory=list)
    n_figures: int = 0
    failure: str = ""
    widgets: Mapping[str, Any] = field(default_factory=dict)


def render(notebook: Mapping[str, Any], *, has_head: bool = False) -> Page:
    """All cells of a notebook (nbformat 4) as HTML, with its headings, figures counted and its failure.

    Args:
        has_head: whether the page will say what was run, so that cells tagged `TOLD_BY_HEAD` need not.
    """
    widgets = notebook["metadata"].get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    page = Page(widgets=widgets)
    for cell in notebook["cells"]:
        if HIDDEN_TAGS & set(cell["metadata"].get("tags", ())) or not cell["source"].strip():
            continue
        if cell["cell_type"] == "markdown":
            text = _markdown(cell["source"], page, cell.get("attachments"))
            text = _take_title(text, page)
            if text.strip():
                page.cells.append({"kind": "prose", "html": text})
        elif cell["cell_type"] == "code":
            code = Markup(highlight(cell["source"], Python3Lexer(), HtmlFormatter(nowrap=True)))
            told = has_head and TOLD_BY_HEAD in cell["metadata"].get("tags", ())
            kept = [output for output in cell["outputs"] if not told or output["output_type"] == "error"]
            _add_code(code, _outputs(kept, page), page)
    return page


def _add_code(code: Markup, outputs: list[dict[str, Any]], page: Page) -> None:
    """A code cell; cells that show nothing join the one after them, so that a page is not a list of folds."""
    last = page.cells[-1] if page.cells else {}
    if last.get("kind") == "code" and not last["outputs"]:
        last["code"].append(code)
        last["outputs"] = outputs
    else:
        page.cells.append({"kind": "code", "code": [code], "outputs": outputs})


def _take_title(text: Markup, page: Page) -> Markup:
    """Move the level 1 heading that opens a notebook from the cell into the page's head."""
    opening = re.match(r"\s*<h1 [^>]*>.*?</h1>", text, flags=re.DOTALL)
    if page.cells or not opening:
        return text
    page.title = page.headings.pop(0).text
    return Markup(text[opening.end():])


class _Renderer(IPythonRenderer):
    """nbconvert's renderer, with maths as MathML, plain heading anchors and no picture from another address."""

    def __init__(self, page: Page, *, escape: bool, attachments: Mapping | None) -> None:
        super().__init__(escape=escape, allow_harmful_protocols=None, attachments=attachments or {})
        self.page = page
        self.collect = not escape

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        """A heading with an anchor that is unique on the page."""
        plain = html.unescape(re.sub(r"<[^>]+>", "", text)).strip()
        if not self.collect:
            return f"<h{level}>{text}</h{level}>\n"
        slug = re.sub(r"[^\w]+", "-", plain.lower()).strip("-") or "section"
        taken = {heading.anchor for heading in self.page.headings}
        anchor = next(name for n in range(1, 10_000) if (name := slug if n == 1 else f"{slug}-{n}") not in taken)
        self.page.headings.append(Heading(level, plain, anchor))
        return f'<h{level} id="{escape(anchor)}">{text}</h{level}>\n'

    def image(self, text: str, url: str, title: str | None = None) -> str:
        """An attached picture; one from elsewhere becomes its own description, so the page stays self-contained."""
        source = self._embed_image_or_attachment(url) if url.partition(":")[2] in self.attachments else url
        if source.startswith("data:image/"):
            return f'<img src="{escape(source)}" alt="{escape(html.unescape(text))}">'
        return f'<span class="note">[picture not included: {escape(html.unescape(text) or url)}]</span>'

    def block_html(self, html: str) -> str:
        """Raw HTML of the author."""
        return _without_outside(super().block_html(html))

    def inline_html(self, html: str) -> str:
        """Raw HTML of the author."""
        return _without_outside(super().inline_html(html))

    def inline_math(self, body: str) -> str:
        """$...$"""
        return mathml(body)

    def block_math(self, body: str) -> str:
        """$$...$$"""
        return mathml(body, block=True)

    def latex_environment(self, name: str, body: str) -> str:
        r"""\begin{name}...\end{name}"""
        return mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", block=True)


def _markdown(source: str, page: Page, attachments: Mapping | None = None, *, from_data: bool = False) -> Markup:
    """Markdown to HTML; raw HTML in it is kept for the author's cells and escaped for what code printed."""
    renderer = _Renderer(page, escape=from_data, attachments=attachments)
    return Markup(MarkdownWithMath(renderer=renderer).render(source))


def mathml(latex: str, *, block: bool = False) -> str:
    """LaTeX as MathML, which browsers draw without a script; what cannot be converted is shown as written."""
    latex = latex.strip()
    aligned = re.sub(r"\\(begin|end)\{(aligned|align\*?|split|equation\*?|gathered)\}", _plain_environment, latex)
    try:
        markup = convert(aligned, display="block" if block else "inline")
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(markup).iter()}
    except Exception as error:  # noqa: BLE001  the converter raises many kinds, and none may lose a report
        log.warning("formula shown as written (%s): %s", error, latex)
        tags = {"unreadable"}
    if not tags <= MATHML_TAGS:
        return f'<code class="formula">{escape(latex)}</code>'
    return f'<div class="formula">{markup}</div>' if block else markup


def _plain_environment(match: re.Match) -> str:
    """Environments the converter does not align, as the array they are."""
    if match[2].startswith("equation"):
        return ""
    return r"\begin{array}{rl}" if match[1] == "begin" else r"\end{array}"


def _outputs(outputs: Iterable[Mapping[str, Any]], page: Page) -> list[dict[str, Any]]:
    """Outputs as {kind, html}: figure, html, prose, picture, text, messages, note or error; noise is dropped."""
    rendered = [_output(output, page) for output in _merge_streams(outputs)]
    return [output for output in rendered if output and output["html"]]


def _merge_streams(outputs: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    merged: list[Mapping[str, Any]] = []
    for output in outputs:
        last = merged[-1] if merged else {}
        if output["output_type"] == "stream" and last.get("name") == output["name"]:
            merged[-1] = {**last, "text": last["text"] + output["text"]}
        else:
            merged.append(output)
    return merged


def _output(output: Mapping[str, Any], page: Page) -> dict[str, Any]:
    if output["output_type"] == "stream":
        kind = "messages" if output["name"] == "stderr" else "text"
        return {"kind": kind, "html": Markup(ansi2html(_without_progress(output["text"])))}
    if output["output_type"] == "error":
        return _error(output, page)
    data = output["data"]
    if WIDGET_VIEW in data:
        return _widget(data, page)
    if PLOTLY in data:
        return {"kind": "figure", **figure(data[PLOTLY], page)}
    return _still(data, page)


def _still(data: Mapping[str, Any], page: Page) -> dict[str, Any]:
    """The richest representation that needs no script."""
    if "text/html" in data:
        return {"kind": "html", "html": Markup(_without_outside(data["text/html"]))}
    if "text/markdown" in data:
        return {"kind": "prose", "html": _markdown(data["text/markdown"], page, from_data=True)}
    if "image/svg+xml" in data:
        source = "data:image/svg+xml," + "".join(f"%{byte:02x}" for byte in data["image/svg+xml"].encode())
        return {"kind": "picture", "html": Markup('<img src="{}" alt="">').format(source)}
    for kind in PICTURES:
        if kind in data:
            source = f"data:{kind};base64,{data[kind].strip()}".replace("\n", "")
            return {"kind": "picture", "html": Markup('<img src="{}" alt="">').format(source)}
    if "text/latex" in data:
        return {"kind": "prose", "html": Markup(mathml(data["text/latex"].strip("$\n "), block=True))}
    return {"kind": "text", "html": Markup(ansi2html(data.get("text/plain", "")))}


def _without_outside(markup: str) -> str:
    """HTML without what would load from elsewhere: it would only fail, as the page's policy forbids it."""
    return OUTSIDE.sub("", markup)


def _widget(data: Mapping[str, Any], page: Page) -> dict[str, Any]:
    """A widget as a note and what it showed; a progress bar as nothing."""
    if PROGRESS_BAR.search(data.get("text/plain", "")):
        return {}
    still = {kind: value for kind, value in data.items() if kind not in (WIDGET_VIEW, "text/plain")}
    outputs = [{"output_type": "display_data", "data": still}] if still else []
    return {"kind": "widget", "html": INTERACTIVE_NOTE,
            "parts": _outputs([*outputs, *shown(data[WIDGET_VIEW]["model_id"], page.widgets)], page)}


def _error(output: Mapping[str, Any], page: Page) -> dict[str, Any]:
    page.failure = page.failure or f"{output['ename']}: {output['evalue']}"
    traceback = Markup(ansi2html("\n".join(output["traceback"])))
    return {"kind": "error", "html": traceback, "title": output["ename"], "message": output["evalue"]}


def _without_progress(text: str) -> str:
    """Text as a terminal would leave it: after a carriage return the line starts anew; progress bars are gone."""
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return "\n".join(line for line in lines if not PROGRESS_BAR.search(line)).strip("\n")


def figure(plot: Mapping[str, Any], page: Page) -> dict[str, Any]:
    """A plotly figure: its title as caption, and its JSON, escaped so that no text in it can end the script."""
    page.n_figures += 1
    layout = dict(plot.get("layout") or {})
    title = layout.pop("title", None)
    lines = _plain_lines(title.get("text") if isinstance(title, Mapping) else title)
    content = {"data": plot.get("data", []), "layout": layout, "frames": plot.get("frames", [])}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return {"html": Markup(text), "title": lines[0], "subtitle": " ".join(lines[1:]),
            "height": layout.get("height") or 450}


def _plain_lines(text: str | None) -> list[str]:
    """Lines of a plotly label without its markup."""
    parts = re.split(r"<br\s*/?>", text or "")
    tags = re.compile(r"</?(b|i|u|s|em|strong|sub|sup|span|a)(\s[^>]*)?>")
    return [html.unescape(tags.sub("", part)).strip() for part in parts]
