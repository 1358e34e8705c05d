"""The playground as a user sees it: on its own page and in JupyterLab, in a browser without a network."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import nbformat
import pytest
from playwright.sync_api import Browser, Page, expect

import beliefedit as be
from beliefedit.config import BUILT_IN_EDITORS
from beliefedit.corpus.corpus import corpus_facts
from beliefedit.editors.registry import editor_class
from beliefedit.playground.server import POLICY

from ..conftest import ROOT
from ..hostile import NAMES, label
from ..sample_notebooks import HOSTILE, write
from .test_reports import buttons, overflow, unsafe

pytestmark = pytest.mark.in_order

NAME = "05_playground.ipynb"
WAIT = 120_000  # milliseconds; kernels and edits are slow when other processes use the CPU


@pytest.fixture(scope="module")
def folder(playground_run, tmp_path_factory) -> Path:
    """A checkout's notebook beside a tiny run, and a notebook with figures."""
    base = tmp_path_factory.mktemp("visit") / "kit"
    shutil.copytree(playground_run, base)
    (base / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "voila.json", base / "notebooks")
    notebook = nbformat.read(ROOT / "notebooks" / NAME, 4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            cell.source = 'params_file = "../params/tiny.yaml"\nrun_folder = "../runs/tiny"\noverrides = {}'
    nbformat.write(notebook, base / "notebooks" / NAME)
    write(base / "notebooks" / "figures.ipynb", "# Figures", FIGURES, "figure", "live_figure(lambda _: figure)(None)",
          parameters=None)
    return base


FIGURES = """from beliefedit.notebook import live_figure
from beliefedit.plots import style
figure = style.figure("A figure").add_scatter(y=[1, 2, 3])"""


@contextmanager
def served(command: list[str], port: int, folder: Path) -> Iterator[str]:
    """A running server of the folder, and its address."""
    environment = os.environ | {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "HF_HUB_OFFLINE": "1",
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with open(folder / f"{command[0]}-{port}.log", "w") as log:
        server = subprocess.Popen([sys.executable, "-m", *command], cwd=folder, env=environment, stdout=log, stderr=log)
        address = f"http://localhost:{port}"
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"{address}/api", timeout=5).close()
                    break
                except urllib.error.HTTPError:
                    break
                except OSError:
                    assert server.poll() is None, Path(log.name).read_text()
                    time.sleep(0.2)
            yield address
        finally:
            server.terminate()
            server.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


class Visit:
    """An open page with its problems."""

    def __init__(self, browser: Browser, address: str) -> None:
        self.context = browser.new_context(viewport={"width": 1280, "height": 900})
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.problems: list[str] = []
        note = self.problems.append
        self.page.on("console", lambda message: note(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: note(str(error)))
        self.page.on("dialog", lambda dialog: (note(f"dialog {dialog.message}"), dialog.dismiss()))
        self.context.route(lambda url: not url.startswith((address, address.replace("http", "ws"), "data:", "blob:")),
                           lambda route: (note(f"outside {route.request.url}"), route.abort()))


FIRST: dict[str, Any] = {}
"""The page at its first drawing: seconds since the request, its text, whether Edit is enabled."""


@contextmanager
def playground(run: Path, params: Path | None, elsewhere: Path) -> Iterator[str]:
    """The page of a run, served by the command from another folder, and its address."""
    port = free_port()
    command = ["beliefedit", "playground", "--run", str(run), "--no-browser", "--port", str(port),
               *(["--params", str(params)] if params else [])]
    with served(command, port, elsewhere) as address:
        yield f"{address}/"


@pytest.fixture(scope="module")
def voila(browser, folder, tmp_path_factory) -> Iterator[Page]:
    """The page with the model's first answers; the tests below share it, in order."""
    expect.set_options(timeout=30_000)  # Python redraws the page after every key
    with playground(folder / "runs" / "tiny", folder / "params" / "tiny.yaml", tmp_path_factory.mktemp("any")) as address:
        visit = Visit(browser, address)
        started = time.perf_counter()
        visit.page.goto(address, wait_until="commit")
        visit.page.locator(".be-move").first.wait_for(timeout=WAIT)
        FIRST["seconds"] = time.perf_counter() - started
        FIRST["edit"] = visit.page.get_by_role("button", name="Edit", exact=True).is_enabled()
        FIRST["text"] = visit.page.locator(".be-page").inner_text()
        expect(visit.page.get_by_role("heading", name="Change one belief").first).to_be_visible(timeout=WAIT)
        expect(visit.page.locator(".be-panel")).to_have_count(3, timeout=WAIT)
        has_bars(visit.page, "before")
        yield visit.page
        visit.context.close()
        assert visit.problems == []


@pytest.fixture(scope="module")
def no_run(folder, tmp_path_factory) -> Iterator[str]:
    """The address of a page whose run is missing."""
    with playground(folder / "runs" / "none", folder / "params" / "tiny.yaml", tmp_path_factory.mktemp("any")) as address:
        yield address


def numbers(page: Page, role: str) -> list[str]:
    """The numbers beside the bars of one role."""
    return page.locator(f'[data-bar="{role}"] em').all_inner_texts()


def has_bars(page: Page, role: str, yes: bool = True) -> None:
    """Wait until a role's bars have numbers, or none."""
    page.wait_for_function("([role, yes]) => [...document.querySelectorAll(`[data-bar=${role}] em`)]"
                           ".every(number => (number.textContent != '–') == yes)", arg=[role, yes], timeout=WAIT)


def wait_for_message(page: Page, text: str | re.Pattern) -> None:
    """Wait until the page shows a message."""
    expect(page.locator(".be-message").filter(has_text=text)).to_be_visible(timeout=WAIT)


def press(page: Page, name: str) -> None:
    """Press a button. The message that the page shows before is not taken for that of a new job."""
    if name in ("Edit", "Make card", "Compare editors", "Replay session"):
        page.evaluate("document.querySelectorAll('.be-message').forEach(one => one.classList.remove('be-message'))")
    page.get_by_role("button", name=name, exact=True).click()


def field(page: Page, name: str):
    return page.get_by_label(name, exact=True)


def look(page: Page, artifacts: Path, name: str, width: int = 1280) -> None:
    """A screenshot of all of a page that scrolls inside."""
    page.set_viewport_size({"width": width, "height": 2300 if width > 600 else 4200})
    assert overflow(page) <= 0
    page.screenshot(path=artifacts / f"playground-{name}.png")
    page.set_viewport_size({"width": 1280, "height": 900})


def test_the_page_opens_with_an_example(voila, artifacts):
    assert overflow(voila) <= 0
    assert voila.get_by_text("import beliefedit").count() == 0, "code is hidden"
    assert field(voila, "Subject").input_value() and field(voila, "New object").input_value()
    has_bars(voila, "agent")
    has_bars(voila, "after", False)
    expect(voila.get_by_role("button", name="Undo")).to_have_class(OFF)
    look(voila, artifacts, "voila-1-open")


def test_the_agent_is_drawn_before_the_model_is_loaded(voila):
    print(f"\nfirst drawing after {FIRST['seconds']:.1f} s")
    assert "The Bayesian agent moves" in FIRST["text"] and "The language model loads" in FIRST["text"]
    assert not FIRST["edit"], "there is no model to edit"
    wait_for_message(voila, "The language model is loaded.")
    expect(voila.get_by_role("button", name="Edit", exact=True)).to_be_enabled()
    expect(field(voila, "Editor").locator("option").first).to_have_text(editor_class("lora").label)


def test_an_example_fills_the_fields(voila):
    example, fields = field(voila, "Example"), [field(voila, name) for name in ("Subject", "Relation", "New object")]

    def shows(text: str) -> None:
        request = voila.locator(".be-move").filter(has_text="the request").locator("bdi")
        expect(request).to_have_text(text)
        assert " ".join(each.input_value() for each in fields) == text
        expect(example.locator("option:checked")).to_have_text(text)

    options = example.locator("option").all_inner_texts()
    none, first, second = (" ".join(text.split()) for text in options[:3])
    shows(first)
    example.select_option(index=2)
    shows(second)
    voila.get_by_title("Relation: suggestions").select_option(index=1)
    expect(example.locator("option:checked")).to_have_text(none)
    example.select_option(index=1)
    shows(first)
    has_bars(voila, "before")


OFF = re.compile("be-off")


TOPS = """() => {
    const edit = [...document.querySelectorAll("button")].find(each => each.textContent.trim() === "Edit");
    const parts = [".be-status", ".be-ripple", ".be-panels", ".be-history"].map(each => document.querySelector(each));
    const boxes = [edit, ...parts].map(each => each?.getBoundingClientRect());
    return boxes.every(box => box?.width) && boxes.map(box => box.top + window.scrollY);
}"""


def tops(page: Page) -> list[float]:
    """Where the controls and the parts of the page begin, in pixels.

    They are read together, once all are drawn: a drawing that arrives meanwhile replaces elements.
    """
    return page.wait_for_function(TOPS).json_value()


def focused(page: Page) -> str:
    return page.evaluate("document.activeElement.textContent || document.activeElement.tagName")


def test_an_edit_moves_the_bars_and_undo_restores_them(voila, artifacts):
    before, place = voila.locator(".be-panels").inner_html(), tops(voila)
    press(voila, "Edit")
    wait_for_message(voila, "Edited in")
    assert focused(voila) == "Edit", "the keyboard stays where it was"
    assert tops(voila)[:3] == place[:3], "nothing above the result moves"
    has_bars(voila, "after")
    assert numbers(voila, "after") != numbers(voila, "before")
    expect(voila.locator(".be-history li")).to_have_count(1)
    assert overflow(voila) <= 0
    look(voila, artifacts, "voila-2-edited")
    look(voila, artifacts, "voila-2-edited-phone", width=390)
    for scheme in ("light", "dark"):
        voila.emulate_media(color_scheme=scheme)
        pale = voila.evaluate(PALE)
        assert pale == [], scheme
        background = voila.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall("[0-9]+", background)[:3])) > 380) == (scheme == "light"), background
    look(voila, artifacts, "voila-2-edited-dark")
    look(voila, artifacts, "voila-2-edited-dark-phone", width=390)
    voila.emulate_media(color_scheme="light")
    press(voila, "Undo")
    wait_for_message(voila, "The last edit is undone")
    assert focused(voila) == "Undo"
    has_bars(voila, "after", False)
    has_bars(voila, "before")
    assert voila.locator(".be-panels").inner_html() == before
    expect(voila.locator(".be-history li")).to_have_count(0)


PALE = """() => {  // texts whose contrast with their background is below 4.5
    const context = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d");
    const read = colour => {
        context.clearRect(0, 0, 1, 1);
        context.fillStyle = colour;
        context.fillRect(0, 0, 1, 1);
        return [...context.getImageData(0, 0, 1, 1).data];
    };
    const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] / 255 + below[i] * (1 - top[3] / 255));
    const ground = element => {
        const below = element.parentElement ? ground(element.parentElement) : [255, 255, 255];
        return over(read(getComputedStyle(element).backgroundColor), below);
    };
    const light = rgb => rgb.map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
    const pale = [];
    for (const element of document.querySelectorAll(".be-page *")) {
        const text = [...element.childNodes].some(node => node.nodeType == 3 && node.data.trim());
        const control = element.matches("input, select") && !element.disabled;
        if (!text && !control || element.matches("style, option") || element.closest(".be-off")
            || !element.checkVisibility({visibilityProperty: true, contentVisibilityAuto: true})) continue;
        const back = ground(element), ink = over(read(getComputedStyle(element).color), back);
        const [low, high] = [light(ink), light(back)].sort((a, b) => a - b);
        const contrast = (high + .05) / (low + .05);
        if (contrast < 4.5) pale.push(`${element.tagName}.${element.className} ${contrast.toFixed(2)}`);
    }
    return [...new Set(pale)];
}"""


def test_the_ripple_leads_with_the_largest_change(voila):
    press(voila, "Edit")
    wait_for_message(voila, "Edited in")
    first, *_ = voila.locator(".be-ripple .be-lead p").all_inner_texts()
    assert re.fullmatch(r"The Bayesian agent moves \d+ beliefs?. The edit moves \d+ of them at least half as far, "
                        r"and \d+ beliefs? that the agent leaves alone.", first)
    assert tops(voila)[2] < tops(voila)[3]
    labels = voila.locator(".be-move").evaluate_all("rows => rows.map(row => row.getAttribute('aria-label'))")
    sizes, n_agent = [], 0
    for text in labels:
        changes = re.findall(r"(agent|LM) ([0-9.]+) → ([0-9.]+)", text)
        agent, model = (abs(float(after) - float(before)) for _, before, after in changes[-2:])
        sizes.append(max(agent, model))
        n_agent += agent > 0
    assert len(sizes) > 3 and all(a >= b - 0.011 for a, b in zip(sizes, sizes[1:], strict=False))
    assert f"moves {n_agent} belief" in first, "counted by what is printed"


def test_a_card_is_made_downloaded_and_read(voila, browser, folder, artifacts, tmp_path):
    press(voila, "Edit")
    wait_for_message(voila, "Edited in")
    press(voila, "Make card")
    wait_for_message(voila, "Saved: ")
    links = voila.locator(".be-card a")
    names = ["card-001.png", "card-001.html", "card-001.json"]
    assert links.all_inner_texts() == names
    for name in names:
        with voila.expect_download() as download:
            links.get_by_text(name, exact=True).click()
        download.value.save_as(tmp_path / name)
        saved = folder / "runs" / "tiny" / "playground" / name
        assert (tmp_path / name).read_bytes() == saved.read_bytes()
    for scheme, width in (("light", 1280), ("dark", 390)):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = context.new_page()
        page.goto((tmp_path / "card-001.html").as_uri())
        assert page.title().startswith("Edit: ") and page.locator("strong").inner_text().startswith("The model forgot")
        assert overflow(page) <= 0
        page.screenshot(path=artifacts / f"playground-card-{scheme}-{width}.png", full_page=True)
        context.close()
    field(voila, "Session file").fill("card-001.json")
    press(voila, "Replay session")
    wait_for_message(voila, "Replayed 1 edits; all numbers are the same.")
    request = field(voila, "Evidence").input_value()
    field(voila, "Evidence").select_option("P = 0.8")
    expect(links).to_have_count(0)
    field(voila, "Evidence").select_option(request)
    field(voila, "Session file").fill("session.json")
    press(voila, "Undo")
    wait_for_message(voila, "The last edit is undone")


def test_a_name_is_found_while_typing_and_chosen_by_keyboard(voila):
    subject = field(voila, "Subject")
    subject.fill("")
    subject.press_sequentially("agnes", delay=20)
    suggestions = voila.get_by_title("Subject: suggestions")
    expect(suggestions.locator("option").first).to_have_text(re.compile("Agnes"))
    assert suggestions.locator("option").count() <= 12
    subject.press("ArrowDown")
    expect(subject).to_have_value(re.compile("^Agnes "))
    expect(suggestions).to_be_focused()
    expect(voila.locator(".be-panel").first).to_contain_text("Agnes")
    suggestions.press("Enter")
    expect(subject).to_be_focused()
    subject.fill("")
    subject.press_sequentially("SVEN")
    subject.press("Enter")  # at once: the list still has the names of a shorter text
    expect(subject).to_have_value(re.compile("^Sven "))
    expect(subject).to_be_focused()
    expect(voila.locator(".be-panel").first).to_contain_text("Sven")
    has_bars(voila, "before")
    place = tops(voila)
    subject.press_sequentially(" of a name that nobody has, so that the message needs more than one line of the page")
    expect(voila.locator(".be-page")).to_have_class(re.compile("be-stale"))
    assert tops(voila) == place
    subject.press("Control+a")
    subject.press_sequentially("agnes", delay=20)
    expect(suggestions.locator("option")).to_have_count(1)
    subject.press("ArrowDown")
    expect(subject).to_have_value(re.compile("^Agnes "))
    expect(voila.locator(".be-page")).not_to_have_class(re.compile("be-stale"))
    has_bars(voila, "before")


def test_the_evidence_is_chosen_by_keyboard(voila):
    strength = field(voila, "Evidence")
    strength.press("Home")
    expect(voila.get_by_text("Evidence: 1 observation.")).to_be_visible()
    first = numbers(voila, "agent")
    strength.press("ArrowDown")
    expect(voila.get_by_text("believes it with P = 0.5:")).to_be_visible()
    assert numbers(voila, "agent") != first
    wanted = field(voila, "New object").input_value()
    true = re.search("True in the corpus: (.*?)[.] ", voila.locator(".be-panel .be-fact").first.inner_text())[1]
    field(voila, "New object").fill(true)
    expect(voila.get_by_text("already, so evidence for P = 0.5 adds nothing")).to_be_visible()
    expect(voila.locator(".be-lead")).to_contain_text("The Bayesian agent moves 0 beliefs.")
    field(voila, "New object").fill(wanted)
    strength.press("End")
    field(voila, "Observations").fill("-3")
    field(voila, "Observations").press("Enter")
    wait_for_message(voila, "-3 observations are no evidence. Give a weight above 0")
    field(voila, "Observations").fill("20")
    field(voila, "Observations").press("Enter")
    expect(voila.get_by_text("Evidence: 20 observations.")).to_be_visible()


def test_an_impossible_request_is_explained_and_the_page_keeps_working(voila):
    name = field(voila, "New object").input_value()
    field(voila, "New object").fill("Nobody & <b>Sons</b>")
    wait_for_message(voila, "No object is called 'Nobody & <b>Sons</b>'. Pick a suggestion")
    press(voila, "Edit")
    expect(voila.get_by_role("alert")).to_contain_text("No object is called 'Nobody & <b>Sons</b>'")
    field(voila, "New object").fill(name)
    field(voila, "lr").fill("-1")
    press(voila, "Edit")
    wait_for_message(voila, "lr: Input should be greater than 0")
    field(voila, "lr").fill("0.02")


def test_an_edit_can_be_cancelled(voila):
    field(voila, "steps").fill("1000000")
    press(voila, "Edit")
    wait_for_message(voila, re.compile("step [0-9]+ of 1000000"))
    press(voila, "Cancel")
    wait_for_message(voila, "Stopped. The session is as it was before.")
    field(voila, "steps").fill("25")
    expect(voila.locator(".be-history li")).to_have_count(0)
    expect(voila.get_by_role("button", name="Edit", exact=True)).to_be_enabled()


def test_sequential_edits_are_saved_and_replayed(voila, folder):
    press(voila, "sequential edits")
    press(voila, "Edit")
    expect(voila.locator(".be-history li")).to_have_count(1)
    wait_for_message(voila, "Edited in")
    relations = voila.get_by_title("Relation: suggestions")
    relations.select_option(index=1)
    press(voila, "Edit")
    expect(voila.locator(".be-history li")).to_have_count(2)
    expect(voila.locator(".be-history li").nth(1)).to_contain_text("after the earlier edits")
    saved = folder / "runs" / "tiny" / "playground"
    for kind in ("adapter", "delta", "model"):
        field(voila, "Save the edit as").select_option(kind)
        press(voila, "Save edit")
        wait_for_message(voila, re.compile(f"Saved: .*edit-002-{kind}"))
    assert (saved / "edit-002-adapter" / "adapter_config.json").exists()
    assert (saved / "edit-002-delta.safetensors").exists() and (saved / "edit-002-model" / "config.json").exists()
    press(voila, "Save session")
    wait_for_message(voila, re.compile(r"Saved: .*session\.json"))
    shown = voila.locator(".be-panels").inner_html()
    press(voila, "Replay session")
    wait_for_message(voila, "Replayed 2 edits; all numbers are the same.")
    has_bars(voila, "after")
    assert voila.locator(".be-panels").inner_html() == shown


def test_editors_are_compared(voila, artifacts):
    press(voila, "Compare editors")
    wait_for_message(voila, "Compared; the history stays as it is.")
    rows = voila.locator(".be-compare tbody td:first-child").all_inner_texts()
    editors = [name.replace("\xa0", " ") for name in field(voila, "Editor").locator("option").all_inner_texts()]
    trained = {choice.label for choice in map(editor_class, BUILT_IN_EDITORS) if choice.learns}
    assert trained and trained < set(editors) and len(editors) >= 12
    assert rows == ["Bayesian agent", "LM before", *(name for name in editors if name not in trained)]
    request = voila.locator(".be-move").filter(has_text="the request").locator("bdi").inner_text()
    expect(voila.locator(".be-compare p").first).to_contain_text(request)
    assert overflow(voila) <= 0
    look(voila, artifacts, "voila-3-compared")
    field(voila, "Evidence").select_option("P = 0.8")
    expect(voila.locator(".be-compare")).to_have_count(0)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_seen_and_inert(voila, name, artifacts):
    field(voila, "Subject").fill(name)
    fact = voila.locator(".be-panel .be-fact").first
    expect(fact).to_contain_text(name)
    has_bars(voila, "before")
    page = voila.locator(".be-page")
    assert page.locator("img, script, iframe, a").count() == 0 and unsafe(voila) == []
    assert name in voila.locator(".be-ripple").inner_text()
    assert overflow(voila) <= 0
    if name == HOSTILE[1]:
        look(voila, artifacts, "voila-4-hostile")


CONTROLS = "input:visible, select:visible, button:visible, [tabindex='0']:visible"


def test_every_control_has_a_name_and_the_keyboard_reaches_it(voila):
    page = voila.locator(".be-page")
    unnamed = page.locator(CONTROLS).evaluate_all(
        "controls => controls.filter(control => ![control.getAttribute('aria-label'), control.title, "
        "control.textContent.trim(), ...[...(control.labels || [])].map(label => label.textContent.trim())]"
        ".some(Boolean)).map(control => control.outerHTML)")
    assert unnamed == []
    controls = page.locator("input:visible:enabled, select:visible:enabled, button:visible:enabled")
    controls.evaluate_all("controls => controls.forEach((control, index) => control.dataset.index = index)")
    n = controls.count()
    assert n > 15
    field(voila, "Subject").focus()
    reached = set()
    for _ in range(3 * n):
        reached.add(voila.evaluate("document.activeElement.dataset.index"))
        voila.keyboard.press("Tab")
    assert reached >= {str(index) for index in range(n)}


def test_without_a_run_the_page_offers_to_create_one(browser, no_run, folder, artifacts):
    visit = Visit(browser, no_run)
    visit.page.goto(no_run, wait_until="commit")
    expect(visit.page.get_by_text("The playground needs a trained model.")).to_be_visible(timeout=WAIT)
    command = visit.page.locator("pre").filter(has_text="beliefedit run").inner_text()
    assert f"--out {folder / 'runs' / 'none'}" in command and f"--params {folder / 'params' / 'tiny.yaml'}" in command
    assert overflow(visit.page) <= 0
    look(visit.page, artifacts, "voila-5-no-run")
    (folder / "runs" / "none").mkdir()
    (folder / "runs" / "none" / "graph").touch()  # a file in the way
    press(visit.page, "Create the smoke run (about a minute)")
    expect(visit.page.get_by_role("alert")).to_contain_text("The run failed", timeout=WAIT)
    shutil.rmtree(folder / "runs" / "none")
    visit.context.close()
    assert visit.problems == []


REQUESTS = """async address => {
    const blocked = new Set(), quietly = action => { try { return action(); } catch (error) {} };
    document.addEventListener("securitypolicyviolation", event => blocked.add(event.effectiveDirective));
    const add = (tag, attributes, parent = document.body) => {
        const element = Object.assign(document.createElement(tag), attributes);
        parent.append(element);
        return element;
    };
    quietly(() => new WebSocket(address.replace("http", "ws") + "socket"));
    quietly(() => fetch(address + "fetch", {mode: "no-cors"}).catch(() => {}));
    quietly(() => { const request = new XMLHttpRequest(); request.open("POST", address); request.send("x"); });
    quietly(() => navigator.sendBeacon(address + "beacon", "x"));
    quietly(() => new EventSource(address + "events"));
    quietly(() => new Worker(address + "worker"));
    quietly(() => import(address + "module").catch(() => {}));
    for (const tag of ["img", "script", "iframe", "embed", "video", "audio"]) add(tag, {src: address + tag});
    add("object", {data: address + "object"});
    for (const rel of ["stylesheet", "prefetch", "manifest", "icon"]) add("link", {rel, href: address + rel}, document.head);
    add("style", {textContent: `@import url(${address}import); @font-face { font-family: x; src: url(${address}font) }
        body { background: url(${address}background); font-family: x }`});
    add("base", {href: address}, document.head);
    add("a", {href: "#", ping: address + "ping"}).click();
    for (const method of ["get", "post"]) quietly(() => add("form", {method, action: address + "form"}).submit());
    await new Promise(done => setTimeout(done, 1500));
    return {blocked: [...blocked].sort(), base: document.baseURI};
}"""


def test_nothing_leaves_the_page(browser, no_run):
    """Even a script inside the page sends nothing elsewhere: nothing that `REQUESTS` tries arrives.

    For a frame or a form Chromium connects before it asks the policy, and then sends nothing.
    """
    received = b""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        port = listener.getsockname()[1]
        context = browser.new_context()
        page = context.new_page()
        page.goto(no_run, wait_until="commit")
        expect(page.get_by_text("The playground needs a trained model.")).to_be_visible(timeout=WAIT)
        result = page.evaluate(REQUESTS, f"http://127.0.0.1:{port}/")
        address, base = page.url.partition("#")[0], result["base"].partition("#")[0]
        context.close()
        with suppress(TimeoutError):
            while True:
                with listener.accept()[0] as connection, suppress(TimeoutError):
                    connection.settimeout(1)
                    received += connection.recv(100)
    assert received == b"" and address == base == no_run
    assert set(result["blocked"]) >= {"connect-src", "img-src", "script-src-elem", "frame-src", "object-src", "media-src",
                                      "style-src-elem", "font-src", "form-action", "base-uri"}


def test_voila_in_the_folder_of_the_notebooks_has_the_policy(folder):
    port = free_port()
    with served(["voila", NAME, "--no-browser", f"--port={port}"], port, folder / "notebooks") as address:
        connection = http.client.HTTPConnection(address.removeprefix("http://"))
        connection.request("GET", "/elsewhere")  # "/" starts a kernel
        assert connection.getresponse().headers["Content-Security-Policy"] == POLICY
        connection.close()


def test_hostile_names_of_every_entity_and_relation_are_inert(browser, smoke_run, tmp_path):
    run = be.Run.open(smoke_run, read_only=True)
    subjects = corpus_facts(run.corpus, run.world)["subject"].unique(maintain_order=True).to_list()
    objects = [next(o for o in run.agent.objects if label(name) in o) for name in NAMES.values()]
    with playground(smoke_run, None, tmp_path) as address:
        visit = Visit(browser, address)
        page = visit.page
        page.goto(address, wait_until="commit")
        expect(page.locator(".be-panel").first).to_be_visible(timeout=WAIT)
        markup = page.locator(".be-page").locator("img, script, iframe, a, form, object, embed, base, meta, link")
        for control, shown, names in (("Subject", ".be-panel .be-fact", subjects),
                                      ("New object", ".be-panel .be-name.request", objects)):
            for name in names:
                field(page, control).fill(name)
                expect(page.locator(shown).first).to_contain_text(name)
                assert markup.count() == 0 and unsafe(page) == [] and overflow(page) <= 0, name
        press(page, "Edit")
        wait_for_message(page, "Edited in")
        assert markup.count() == 0 and unsafe(page) == []
        assert page.locator(".modebar-btn").count() == 0
        visit.context.close()
        assert visit.problems == []


def run_in_lab(page: Page, address: str) -> None:
    """Open a notebook in JupyterLab and run all its cells."""
    page.goto(address, wait_until="commit")
    expect(page.locator(".jp-NotebookPanel .jp-CodeCell").last).to_be_visible(timeout=WAIT)
    expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible(timeout=WAIT)
    page.locator(".lm-MenuBar-item", has_text="Run").first.click()
    page.locator(".lm-Menu-item[data-command='runmenu:run-all']").click()


def test_the_notebook_in_jupyterlab(browser, folder, artifacts):
    port = free_port()
    command = ["jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--IdentityProvider.token=",
               "--ServerApp.port_retries=0"]
    with served(command, port, folder) as address:
        visit = Visit(browser, address)
        page = visit.page
        run_in_lab(page, f"{address}/lab/tree/notebooks/{NAME}")
        expect(page.locator(".be-history li")).to_have_count(1, timeout=WAIT)
        has_bars(page, "after")
        shown = page.locator(".be-panels").inner_html()
        look(page, artifacts, "lab-1-edited")
        assert overflow(page) <= 0
        assert page.evaluate("(box => box.scrollWidth - box.clientWidth)(document.querySelector('.be-page'))") <= 0
        press(page, "Undo")
        wait_for_message(page, "The last edit is undone")
        has_bars(page, "after", False)
        press(page, "Edit")
        wait_for_message(page, "Edited in")
        has_bars(page, "after")
        assert page.locator(".be-panels").inner_html() == shown
        visit.context.close()
        assert visit.problems == []
        visit = Visit(browser, address)
        page = visit.page
        run_in_lab(page, f"{address}/lab/tree/notebooks/figures.ipynb?reset")
        expect(page.locator(".js-plotly-plot .modebar-btn")).to_have_count(2, timeout=WAIT)
        assert buttons(page) == {"Download plot as a PNG"}
        visit.context.close()
        assert visit.problems == []
