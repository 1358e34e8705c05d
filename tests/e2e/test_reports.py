"""Reports in a browser, opened from disk, without a network."""

import json
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from playwright.sync_api import Browser, Locator, Page, TimeoutError, expect

import beliefedit as be
from beliefedit.report.cells import PLOTLY

from ..conftest import ROOT, run_all
from ..sample_notebooks import HOSTILE, RICH_FIGURES, write_rich

NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
SMOKE_PAGES = [*(f"reports/{name}.html" for name in NOTEBOOKS), "index.html"]
DOWNLOAD = "Download plot"
VIEWS = [(1280, "light"), (390, "dark"), (390, "light")]


@pytest.fixture(scope="session")
def sample_run(tmp_path_factory) -> Path:
    """A run of one notebook with all kinds of output, including hostile text."""
    folder = tmp_path_factory.mktemp("sample")
    write_rich(folder / "notebooks" / "01_rich.ipynb")
    (folder / "tiny.yaml").write_text("seed: 1\n")
    return run_all(folder / "run", "--params", str(folder / "tiny.yaml"), "--notebooks", str(folder / "notebooks"))


class Visit:
    """A page opened from disk, with its problems."""

    def __init__(self, browser: Browser, path: Path, width: int = 1280, scheme: str = "light") -> None:
        self.context = browser.new_context(offline=True, color_scheme=scheme, viewport={"width": width, "height": 900})
        self.page: Page = self.context.new_page()
        self.problems: list[str] = []
        note = self.problems.append
        self.context.route("**/*", lambda route: route.continue_() if route.request.url.startswith("file:")
                           else (note(f"request {route.request.url}"), route.abort()))
        self.page.on("console", lambda message: note(message.text) if message.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: note(str(error)))
        self.page.on("requestfailed", lambda request: note(f"failed {request.url}"))
        self.page.on("dialog", lambda dialog: (note(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.goto(path.as_uri())
        self.page.wait_for_function("[...document.querySelectorAll('figure.plot')].every("
                                    "box => box.querySelector('.js-plotly-plot .main-svg'))")


@pytest.fixture
def visit(browser):
    """Opens pages, and checks at the end that none has a problem."""
    visits = []

    def opened(*arguments) -> Page:
        visits.append(Visit(browser, *arguments))
        return visits[-1].page

    yield opened
    for opened_page in visits:
        opened_page.context.close()
    assert [problem for opened_page in visits for problem in opened_page.problems] == []


def unsafe(page: Page) -> list[str]:
    """Elements that could run or load something: handlers, links to scripts, frames, forms, foreign addresses."""
    return page.evaluate("""() => [...document.querySelectorAll('*')].filter(element =>
        ['IFRAME', 'FRAME', 'OBJECT', 'EMBED', 'FORM', 'BASE', 'APPLET'].includes(element.tagName)
        || [...element.attributes].some(({name, value}) => /^on/i.test(name)
            || /^(xlink:)?href$|^src|^action$|^data$/i.test(name) && /^\\s*(javascript|vbscript|data:text\\/html)/i.test(value)
            || /^src|^xlink:href$/i.test(name) && /^\\s*(https?:)?\\/\\/(?!localhost)/i.test(value))
    ).map(element => element.outerHTML.slice(0, 200))""")


def buttons(page: Page) -> set[str]:
    """The names of the buttons of all figures on a page."""
    return set(page.locator(".modebar-btn").evaluate_all("found => found.map(button => button.dataset.title)"))


def overflow(page: Page) -> int:
    """Pixels by which a page is wider than its window."""
    return page.evaluate("document.scrollingElement.scrollWidth - innerWidth")


def figures_of(notebook: Path) -> int:
    """Figures a notebook shows, in its cells or inside widgets, counted in its file."""
    def count(value) -> int:
        if isinstance(value, dict):
            return (PLOTLY in value) + sum(map(count, value.values()))
        return sum(map(count, value)) if isinstance(value, list) else 0

    return count(json.loads(json.dumps(nbformat.read(notebook, 4))))


def look(page: Page, path: Path) -> None:
    page.screenshot(path=path, full_page=True)


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
@pytest.mark.parametrize("name", ["reports/01_rich.html", "index.html"])
def test_the_sample_fits_and_draws_everything(visit, sample_run, artifacts, name, width, scheme):
    page = visit(sample_run / name, width, scheme)
    assert overflow(page) <= 0
    if name != "index.html":
        assert figures_of(sample_run / "notebooks" / "01_rich.ipynb") == RICH_FIGURES
        assert page.locator(".js-plotly-plot").count() == RICH_FIGURES
        assert page.locator(".modebar-btn").count() == RICH_FIGURES and buttons(page) == {DOWNLOAD}
    look(page, artifacts / f"sample-{Path(name).stem}-{width}-{scheme}.png")


@pytest.mark.parametrize("name", SMOKE_PAGES)
def test_every_report_of_a_run_fits_and_draws_everything(visit, smoke_run, artifacts, name):
    for width, scheme in VIEWS[:2]:
        page = visit(smoke_run / name, width, scheme)
        assert overflow(page) <= 0
        look(page, artifacts / f"{Path(name).stem}-{width}-{scheme}.png")
        assert page.locator("main :is(img, script:not([type='application/json']))").count() == 0  # names stay text
        assert unsafe(page) == []
        assert buttons(page) <= {DOWNLOAD}
        if name != "index.html":
            expected = figures_of(smoke_run / "notebooks" / f"{Path(name).stem}.ipynb")
            assert page.locator(".js-plotly-plot").count() == expected


@pytest.mark.parametrize("name", SMOKE_PAGES)
def test_contents_hover_and_legend_of_every_report(visit, smoke_run, name):
    page = visit(smoke_run / name)
    for link in page.get_by_role("navigation", name="Contents").get_by_role("link").all():
        link.click()
        expect(page.locator(f"[id='{unquote(link.get_attribute('href')[1:])}']")).to_be_in_viewport()
    for fold in page.locator("section.cell > details.fold > summary").all():
        fold.click()  # what is folded is drawn when it is opened
    for figure in page.locator(".js-plotly-plot").all():
        figure.scroll_into_view_if_needed()
        assert hovers(page, figure), figure.get_attribute("aria-label")
        toggles = figure.locator(".legendtoggle")
        if toggles.count() > 1:
            toggles.first.click()
            expect(figure.locator(".legend .traces").first).to_have_css("opacity", "0.5")


@pytest.mark.parametrize(("name", "learned_here"), [("01_corpus", False), ("02_pretraining", True),
                                                    ("03_editing", True), ("04_analysis", True), ("index", True)])
def test_a_model_that_has_not_learned_is_flagged_in_red(visit, smoke_run, name, learned_here):
    assert json.loads((smoke_run / "summary.json").read_text())["learned"] is False
    page = visit(smoke_run / ("index.html" if name == "index" else f"reports/{name}.html"))
    banner = page.get_by_role("alert").filter(has_text="has not learned its corpus")
    assert banner.count() == learned_here
    if learned_here:
        expect(banner).to_be_in_viewport()
        expect(banner).to_have_css("color", "rgb(179, 38, 30)")


def test_tables_are_saved_from_the_page(visit, smoke_run):
    page = visit(smoke_run / "reports" / "04_analysis.html")
    page.locator("summary", has_text="Updating").last.click()
    with page.expect_download() as download:
        page.get_by_title("updating.csv", exact=True).click()
    saved = Path(download.value.path()).read_text(encoding="utf-8")
    table = be.Run.open(smoke_run, read_only=True).path("tables") / "updating.csv"
    assert saved == table.read_text(encoding="utf-8")


def hovers(page: Page, figure: Locator) -> bool:
    """Whether a label appears somewhere when the mouse goes over the figure's points."""
    places = figure.evaluate("""figure => [...figure.querySelectorAll('.point, .points path, .hm image, .js-line')].map(
        mark => mark.getBoundingClientRect()).filter(box => box.top > 0 && box.bottom < innerHeight).sort(
        (a, b) => (b.height > 1) - (a.height > 1)).map(  // empty bars and flat lines, which have no label, come last
        box => [box.left + box.width * (box.width > 100 ? 0.33 : 0.5), box.top + box.height / 2])""")  # off a diagonal
    for x, y in places[:: max(1, len(places) // 6)]:
        page.mouse.move(x, y, steps=2)
        try:
            figure.locator(".hoverlayer .hovertext").first.wait_for(timeout=3000)
        except TimeoutError:
            continue
        return True
    return False


def test_figures_answer_the_mouse(visit, sample_run):
    page = visit(sample_run / "reports" / "01_rich.html")
    curves, heat = page.locator(".js-plotly-plot").first, page.locator(".js-plotly-plot").nth(1)
    heat.locator(".nsewdrag").hover()
    expect(heat.locator(".hoverlayer .hovertext").first).to_be_visible()
    lines = curves.locator(".scatterlayer .trace")
    assert lines.count() == 5
    curves.locator(".legendtoggle").first.click()
    expect(lines).to_have_count(4)


def test_contents_jump_and_code_unfolds(visit, sample_run):
    page = visit(sample_run / "reports" / "01_rich.html")
    page.get_by_role("navigation", name="Contents").get_by_role("link", name="Verdict").click()
    heading = page.get_by_role("heading", name="Verdict")
    expect(heading).to_be_in_viewport()
    assert page.url.endswith("#verdict")
    code = page.get_by_text("import plotly.graph_objects")
    expect(code).to_be_hidden()
    page.get_by_role("button", name="Show all code").click()
    expect(code).to_be_visible()


def test_tables_sort_by_a_click(visit, sample_run):
    page = visit(sample_run / "reports" / "01_rich.html")
    table = page.locator("table.dataframe")
    numbers = table.locator("tbody td:nth-child(2)")
    table.locator("th").nth(1).click()
    assert numbers.all_inner_texts() == ["1500", "120", "33", "12", "9", "7", "2"]
    table.locator("th").nth(1).press("Enter")
    assert numbers.all_inner_texts() == ["2", "7", "9", "12", "33", "120", "1500"]
    two_headed = page.locator("table", has_text="Updating")
    two_headed.locator("th", has_text="after").nth(1).click()
    values = [float(text.split()[0]) for text in two_headed.locator("tbody td:nth-child(6)").all_inner_texts()]
    assert values == sorted(values, reverse=True)


def test_figures_follow_the_colour_scheme(visit, sample_run):
    page = visit(sample_run / "reports" / "01_rich.html")
    label = page.locator(".js-plotly-plot .xtick text").first
    light = label.evaluate("element => element.style.fill")
    page.emulate_media(color_scheme="dark")
    expect(page.locator(".js-plotly-plot .xtick text").first).not_to_have_css("fill", light)


def test_hostile_names_are_seen_and_inert(visit, sample_run):
    page = visit(sample_run / "reports" / "01_rich.html")
    cells = page.locator("table.dataframe tbody td:first-child").all_inner_texts()
    assert [cell.strip('"') for cell in cells] == [text.strip('"') for text in HOSTILE]
    assert page.locator("img").count() == 0
    assert page.locator("main script:not([type='application/json'])").count() == 0
    ticks = page.locator(".js-plotly-plot").nth(1).locator(".xtick text").all_text_contents()
    assert any("<script>alert(1)</script>" in tick for tick in ticks)


def test_scripts_in_outputs_cannot_run(browser, tmp_path):
    """The last line of defence: even HTML that was not escaped runs nothing and asks for nothing."""
    from nbformat.v4 import new_code_cell, new_notebook, new_output

    from beliefedit.report.pages import export

    raw = "<svg onload='document.title=1'></svg><a id=x href='javascript:document.title=2'>x</a><b onclick='x()'>b</b>"
    output = new_output("display_data", data={"text/html": raw})
    nbformat.write(new_notebook(cells=[new_code_cell("x", outputs=[output])]), tmp_path / "raw.ipynb")
    visit = Visit(browser, export(tmp_path / "raw.ipynb", tmp_path / "raw.html"))
    visit.page.locator("#x").click()
    assert visit.page.title() == "raw"
    assert not any(problem.startswith(("request", "dialog")) for problem in visit.problems)
    visit.context.close()
