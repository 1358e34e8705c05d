"""Index, links, print, contrast and files of the pages of a run, in a browser."""

import bisect
import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from beliefedit.report import write_bundle

from .test_reports import NOTEBOOKS, overflow, visit  # noqa: F401 - visit is a fixture

PAGES = ["index.html", *(f"reports/{name}.html" for name in NOTEBOOKS)]


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_the_first_screen_has_question_headline_and_chart(visit, smoke_run, width, height):  # noqa: F811
    page = visit(smoke_run / "index.html", width)
    page.set_viewport_size({"width": width, "height": height})
    record = json.loads((smoke_run / "summary.json").read_text())
    assert page.locator("h1").inner_text() == record["verdict"][0]
    for selector in (".question", "h1", ".headline-chart"):
        box = page.locator(selector).bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= height, selector
        assert box["x"] >= 0 and box["x"] + box["width"] <= width, selector
    chart = page.locator(".headline-chart")
    for row in record["outcomes"]:
        assert row["outcome"] in chart.text_content()
    texts = chart.locator("text").evaluate_all(
        "all => all.map(one => one.getBoundingClientRect()).map(box => [box.left, box.top, box.right, box.bottom])")
    assert all(0 <= left and right <= width for left, _, right, _ in texts)
    assert not [(a, b) for i, a in enumerate(texts) for b in texts[:i] if overlap(a, b)]  # nothing overprints


def overlap(a, b, slack=1.5) -> bool:
    return (min(a[2], b[2]) - max(a[0], b[0]) > slack) and (min(a[3], b[3]) - max(a[1], b[1]) > slack)


def test_the_verdict_shows_five_findings_and_folds_the_rest(visit, smoke_run):  # noqa: F811
    page = visit(smoke_run / "index.html")
    table = page.locator(".table-box > .belief-table")
    assert 1 <= table.locator("tbody tr").count() <= 5
    assert all("is better" in cell for cell in table.locator("tbody td:nth-last-child(2)").all_inner_texts())
    more = page.locator(".table-box details")
    assert not more.get_attribute("open") and more.locator("tbody tr").count() >= 5
    about = page.get_by_role("heading", name="About this run")
    assert about.bounding_box()["y"] > page.get_by_role("heading", name="Key figures").bounding_box()["y"]


def test_one_can_walk_through_all_pages(visit, smoke_run):  # noqa: F811
    page = visit(smoke_run / "index.html")
    seen = [Path(page.url).name]
    while page.locator("a[rel=next]").count():
        page.locator("a[rel=next]").click()
        page.wait_for_load_state()
        seen.append(Path(page.url).name)
        assert page.locator("meta[property='og:title']").get_attribute("content") == page.locator("h1").inner_text()
        assert page.locator("meta[property='og:description']").get_attribute("content")
        image = page.locator("meta[property='og:image']").get_attribute("content")
        assert (smoke_run / "reports" / image).resolve().read_bytes().startswith(b"\x89PNG")
    assert seen == ["index.html", *(f"{name}.html" for name in NOTEBOOKS)]
    page.locator("a[rel=prev]").click()
    assert Path(page.url).name == f"{NOTEBOOKS[-2]}.html"
    page.locator("h2 .permalink").first.click(force=True)
    anchor = page.url.partition("#")[2]
    assert anchor and page.locator(f"h2[id='{anchor}']").count() == 1
    page.get_by_role("navigation", name="Run").get_by_role("link").click()
    assert Path(page.url).name == "index.html"
    assert "beliefedit 0." in page.locator("footer").inner_text() and "2406.19354" in page.locator("footer").inner_text()


CONTRAST = """() => {
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return text.startsWith("color(srgb") ? [255 * r, 255 * g, 255 * b, a] : [r, g, b, a];
  };
  const over = (top, under) => top.slice(0, 3).map((value, i) => value * top[3] + under[i] * (1 - top[3]));
  const channel = (value) => (value /= 255) <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4;
  const light = (rgb) => [.2126, .7152, .0722].reduce((sum, weight, i) => sum + weight * channel(rgb[i]), 0);
  const background = (element) => {
    const layers = [];
    for (let one = element; one; one = one.parentElement) layers.push(parse(getComputedStyle(one).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
  };
  const opacity = (element) => {
    let product = 1;
    for (let one = element; one; one = one.parentElement) product *= getComputedStyle(one).opacity;
    return product;
  };
  const bad = {};
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    const seen = opacity(element);
    if (!/[\\p{L}\\p{N}]/u.test(node.textContent) || /SCRIPT|STYLE|TITLE/i.test(element.tagName) || !seen) continue;
    if (!element.checkVisibility() || element.closest(".permalink, .modebar, .hoverlayer")) continue;
    const style = getComputedStyle(element);
    const under = background(element);
    const colour = parse(element instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(over([...colour.slice(0, 3), colour[3] * seen], under)), light(under)].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) bad[`${element.className?.baseVal ?? element.className} ${style.color}`] =
      `${ratio.toFixed(2)} ${node.textContent.trim().slice(0, 30)}`;
  }
  return bad;
}"""


@pytest.mark.parametrize("name", PAGES)
def test_contrast_files_and_print_of_every_page(visit, smoke_run, tmp_path, name):  # noqa: F811
    page = visit(smoke_run / name)
    check_files(page, name)
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        check_contrast(page)
    check_width_of_paper(page)
    for paper in PAPERS if name in ("index.html", "reports/04_analysis.html") else ("A4",):
        check_print(page, tmp_path / "page.pdf", paper)


def check_contrast(page: Page) -> None:
    """All text has a contrast of 4.5; figures follow a change of the colour scheme a moment later."""
    for _ in range(50):
        if not (found := page.evaluate(CONTRAST)):
            return
        page.wait_for_timeout(200)
    assert found == {}


@pytest.mark.parametrize("name", ["index.html", "reports/04_analysis.html"])
def test_keyboard_error_bars_and_intervals(visit, smoke_run, name):  # noqa: F811
    page = visit(smoke_run / name, 1280, "dark")
    assert page.locator(".modebar-btn:not([tabindex='-1'])").count() == 0
    ink = page.evaluate("getComputedStyle(document.body).color")
    bars = page.locator(".js-plotly-plot .errorbars path").evaluate_all("all => all.map(one => getComputedStyle(one).stroke)")
    assert set(bars) <= {ink} and (bars or name == "index.html")
    larger = page.locator("td :is(small, .interval)").evaluate_all(
        "all => all.filter(one => parseFloat(getComputedStyle(one).fontSize) > "
        "parseFloat(getComputedStyle(one.closest('td')).fontSize)).length")
    assert larger == 0


def check_files(page: Page, name: str) -> None:
    """Every table and figure has a link that saves it under a telling name."""
    without = page.evaluate("""[...document.querySelectorAll('main table')].filter(table => {
      for (let one = table; one && one.tagName !== 'SECTION' && one.tagName !== 'ARTICLE'; one = one.parentElement)
        if (one.querySelector('a[download$=".csv"]') || one.parentElement?.querySelector(':scope > .downloads')) return false;
      return true;
    }).map(table => table.textContent.slice(0, 60))""")
    assert without == []
    names = page.locator("a[download]").evaluate_all("all => all.map(link => link.download)")
    assert all(re.fullmatch(r"[^\W_][\w,=%~+. -]*\.(csv|tex|svg)", file) for file in names), names
    figures = page.locator("figure.plot")
    if name != "index.html" and figures.count():
        with page.expect_download() as download:
            figures.first.get_by_text("save as SVG").click()
        file = figures.first.get_attribute("data-file")
        assert download.value.suggested_filename == f"{file}.svg" and file.startswith(Path(name).stem)
        assert "<svg" in download.value.path().read_text()[:200]


def test_tables_are_copied_with_their_intervals(visit, smoke_run):  # noqa: F811
    page = visit(smoke_run / "reports" / "04_analysis.html")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy updating-by-editor.tex").click()
    page.get_by_role("button", name="Copy updating-by-editor.tex").get_by_text("copied").wait_for()
    assert r"\toprule" in page.evaluate("navigator.clipboard.readText()")
    text = page.evaluate("""() => {
      const table = document.querySelector(".main-table table");
      getSelection().selectAllChildren(table);
      return getSelection().toString();
    }""")
    lora = next(line for line in text.splitlines() if line.startswith("lora"))
    assert re.search(r"0\.\d\d \[0\.\d\d, [01]\.\d\d\] Δ.[+−]?\d\.\d\d \[", lora) and lora.count("\t") == 5


@pytest.mark.parametrize("width", [1280, 390])
def test_no_value_of_the_main_table_breaks(visit, smoke_run, width):  # noqa: F811
    page = visit(smoke_run / "reports" / "04_analysis.html", width)
    broken = "all => all.filter(one => one.getClientRects().length > 1).map(one => one.textContent)"
    table = page.locator(".main-table:visible")
    for event in ("beforeprint", "afterprint"):
        page.evaluate(f"dispatchEvent(new Event('{event}'))")
        assert table.locator(".interval").count() > 30 and table.locator(".interval").evaluate_all(broken) == []
    wide = table.locator(".belief-table").evaluate_all("all => all.map(one => one.scrollWidth - one.clientWidth)")
    assert [one > 0 for one in wide] == [width == 390] * 2, "the table scrolls in its box on a phone only"
    captions = table.locator("caption").evaluate_all("all => all.map(one => one.getBoundingClientRect().right)")
    assert overflow(page) <= 0 and max(captions) <= width


PAPERS = {"A4": (595, 842), "Letter": (612, 792)}


def check_print(page: Page, path: Path, paper: str) -> None:
    """The PDF has all text of the page inside its sheets, and no heading at the foot of a sheet."""
    from pypdf import PdfReader

    expected, headings = printed_text(page)
    page.pdf(path=path, format=paper)
    sheets = PdfReader(path).pages
    assert [round(float(side)) for side in sheets[0].mediabox[2:]] == pytest.approx(PAPERS[paper], abs=1)
    texts = [sheet.extract_text() for sheet in sheets]
    printed = [letters(text) for text in texts]
    missing = [text for text in expected if not is_printed(letters(text), printed)]
    assert missing == []
    last = [letters(text)[-len(letters(heading)):] == letters(heading) for text in texts[:-1] for heading in headings]
    assert not any(last)
    outside = [(text, x, y) for sheet in sheets for text, x, y in placed(sheet) if not 0 <= x <= PAPERS[paper][0] - 20]
    assert outside == []


def is_printed(text: str, sheets: list[str]) -> bool:
    """Whether a text is on one sheet, or begins on one and ends on the next."""
    for sheet, following in zip(sheets, [*sheets[1:], ""], strict=True):
        length = bisect.bisect_left(range(1, len(text) + 1), True, key=lambda n, sheet=sheet: text[:n] not in sheet)
        if length == len(text) or text[length:] in following:
            return True
    return False


def letters(text: str) -> str:
    """The letters and digits of a text without spaces, which a PDF does not keep; ligatures are split."""
    for ligature, split in (("ﬁ", "fi"), ("ﬂ", "fl"), ("ﬀ", "ff"), ("ﬃ", "ffi"), ("ﬄ", "ffl")):
        text = text.replace(ligature, split)
    return re.sub(r"[^a-zA-Z0-9]", "", text)


def printed_text(page: Page) -> tuple[list[str], list[str]]:
    """The texts of cells, paragraphs, headings and legends that a page shows, and its headings."""
    shown = page.evaluate("""() => [...document.querySelectorAll(
        'main :is(h1, h2, h3, h4, p, li, td, th, dt, dd, caption), .legendtext, .xtick text, .ytick text')].filter(
        one => one.checkVisibility() && !one.closest('.tools, nav, .messages, .code, .downloads'))
        .map(one => [one.tagName, one.childElementCount ? [...one.childNodes].filter(
            node => node.nodeType === 3).map(node => node.textContent).join('\\n') : one.textContent])""")
    texts = [line for _, text in shown for line in text.splitlines()
             if len(letters(line)) > 2 and not re.search("[\u202a-\u202e\u2066-\u2069]", line)]  # other order in a PDF
    return texts, [text for tag, text in shown if re.fullmatch("H[234]", tag) and letters(text)]


def placed(sheet) -> list[tuple[str, float, float]]:
    """The pieces of text of a sheet with their positions in points."""
    found = []

    def note(text, user, text_matrix, *_):
        if text.strip():
            x = user[0] * text_matrix[4] + user[2] * text_matrix[5] + user[4]
            found.append((text.strip(), x, text_matrix[5]))

    sheet.extract_text(visitor_text=note)
    return found


def check_width_of_paper(page: Page) -> None:
    """Nothing is wider than the paper or scrolls while the page is printed."""
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    wide = page.evaluate("""[...document.querySelectorAll('main *')].filter(one => one.checkVisibility() &&
        !one.closest('.modebar, .hoverlayer') && (one instanceof HTMLElement || one.tagName === 'text') && one.getBoundingClientRect().right > 681.5)
        .map(one => `${one.tagName} ${one.className} ${one.getBoundingClientRect().right}`)""")
    assert wide == []
    scrolled = page.evaluate("""[...document.querySelectorAll('main *')].filter(one => one.checkVisibility() &&
        one instanceof HTMLElement && !one.closest('.drawing') &&
        /auto|scroll/.test(getComputedStyle(one).overflow)).map(one => `${one.tagName} ${one.className}`)""")
    assert scrolled == []
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert overflow(page) <= 0 and page.locator(".printing").count() == 0


def test_the_bundle_shows_one_page_at_a_time_and_needs_no_other_file(browser, smoke_run, tmp_path):
    bundle = write_bundle(smoke_run)
    alone = bundle.rename(tmp_path / "alone.html")
    assert alone.stat().st_size < 12_000_000 and alone.read_text().count("plotly.js v") == 1
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
    page, problems = context.new_page(), []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(alone.as_uri())
    article = page.locator("article:visible")
    assert article.count() == 1 and article.get_attribute("id") == "result"
    page.get_by_role("navigation", name="Contents").get_by_role("link", name=re.compile("Editing")).click()
    assert article.count() == 1 and article.get_attribute("id") == "03_editing"
    expect(article.locator(".js-plotly-plot > .plot-container")).to_have_count(article.locator("figure.plot").count())
    page.go_back()
    expect(page.locator("#result")).to_be_visible()
    assert overflow(page) <= 0 and problems == []
    context.close()
