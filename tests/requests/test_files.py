"""Reading requests: every layout and file type, and errors that name the item and the key."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

import beliefedit as be
from beliefedit.corpus.language import Fact
from beliefedit.errors import EditError
from beliefedit.requests.layouts import LAYOUTS
from beliefedit.requests.request import Probe, RequestCase, edit_request
from tests.hostile import NAMES

DATA = Path(__file__).parents[1] / "data" / "requests"
ADA = edit_request("Ada Ölund works as", "poet", "Ada Ölund", "cook")
BO = edit_request("Bo Berg is a citizen of", "New Norway", "Bo Berg", "Old Norway")
PLAIN = [
    RequestCase(ADA, ("bard", "poetess"), ("Ada Ölund earns a living as", "The occupation of Ada Ölund is"),
                (Probe("Bo Berg works as", ("cook",)), Probe("Cy speaks")), (Probe("Ada Ölund writes", ("poems",)),)),
    RequestCase(edit_request('The painter of "Dawn, again" is', "Cy"))]
MQUAKE = RequestCase(BO, (), ("What is the citizenship of Bo Berg?",), (), tuple(Probe(question, ("Newtown", "New Town")) for question in (
    "What is the capital of the country of Bo Berg?", "Which city governs the country of Bo Berg?",
    "Bo Berg's country has which capital?")))
CITIZEN = "The name of the country of citizenship of"
EXPECTED = {
    "plain.csv": PLAIN, "plain.jsonl": PLAIN,
    "counterfact.json": [RequestCase(
        ADA, (), ("The sun rose. Ada Ölund earns a living as", "Ada Ölund, by trade a"),
        (Probe("Bo Berg works as", ("cook",)), Probe("Cy earns a living as", ("cook",))))],
    "mquake.json": [MQUAKE, *(RequestCase(request, (), (question,), (Probe("The mother of Cy is", ("Di", "Diana")),))
                              for request, question in (
        (edit_request("Cy speaks", "Norwegian", "Cy", "Danish"), "Which language does Cy speak?"),
        (edit_request("Norwegian is spoken in", "New Norway", "Norwegian", "Old Norway"), "Where is Norwegian spoken?")))],
    "mquake_remastered.json": [MQUAKE],
    "zsre.json": [
        RequestCase(edit_request("What does Ada Ölund work as?", "poet", "Ada Ölund", "cook"), (),
                    ("Which occupation has Ada Ölund?",), (Probe("nq question: who painted dawn again", ("Cy",)),)),
        RequestCase(edit_request("What does Cy speak?", "Norwegian", "Cy", "Danish"), (), ("The language of Cy is what?",),
                    (Probe("nq question: what is old", ("Oldtown",)),),
                    (Probe("Where is the language of Cy spoken?", ("New Norway",)),))],
    "knowedit.json": [
        RequestCase(edit_request(f"{CITIZEN} Bo Berg is", "New Norway", "Bo Berg", "Old Norway"), (), ("Bo Berg is a national of",),
                    (Probe("The gender of Bo Berg is", ("male",)),
                     Probe(f"{CITIZEN} Bo Berg, which is not New Norway, is", ("Old Norway",))),
                    (Probe("The capital of the country of citizenship of Bo Berg is", ("Newtown", "New Town")),
                     Probe(f"{CITIZEN} B. Berg is", ("New Norway",)))),
        RequestCase(edit_request("This is a Wikipedia passage about ada ölund. Ada Ölund is a cook.", "She wrote poems.", "ada ölund"),
                    locality=(Probe("The gender of ada ölund is", ("female",)),))],
    "rippleedits.json": [
        RequestCase(edit_request(f"{CITIZEN} Bo Berg is", "New Norway", "", "New Denmark"), (), (),
                    (Probe("The gender of Bo Berg is", ("male", "man")),
                     Probe(f"{CITIZEN} Bo Berg, which is not New Norway, is", ("New Denmark",))),
                    (Probe("The capital of the country of citizenship of Bo Berg is", ("Newtown", "New Town")),)),
        RequestCase(edit_request(f"{CITIZEN} This Is It is", "The Land that is Far"),
                    portability=(Probe("The home of This Is It is", ("The Land that is Far", "Far Land")),)),
        RequestCase(edit_request(f"{CITIZEN} What Is Left is", "Where it is"),
                    portability=(Probe(f"{CITIZEN} What Is Left is", ("Where it is",)),))]}


@pytest.mark.parametrize("name", EXPECTED)
def test_layouts_are_recognised_and_read(name):
    assert be.read_requests(DATA / name) == EXPECTED[name]
    layout = name.partition(".")[0].partition("_")[0]
    assert be.read_requests(DATA / name, format=layout) == EXPECTED[name]


def test_every_layout_has_a_sample():
    assert {name.partition(".")[0] for name in EXPECTED} >= set(LAYOUTS)


def test_the_same_items_in_other_files_and_in_python(tmp_path):
    items = json.loads((DATA / "mquake.json").read_text(encoding="utf-8"))
    assert be.read_requests(items) == EXPECTED["mquake.json"]
    frame = pl.DataFrame(json.loads((DATA / "counterfact.json").read_text(encoding="utf-8")))
    frame.write_parquet(tmp_path / "a.parquet")
    for source in (frame, tmp_path / "a.parquet", str(tmp_path / "a.parquet")):
        assert be.read_requests(source) == EXPECTED["counterfact.json"]
    table = pl.read_csv(DATA / "plain.csv")
    table.write_csv(tmp_path / "a.tsv", separator="\t")
    with_mark = tmp_path / "b.csv"  # spreadsheets write a byte order mark
    with_mark.write_text((DATA / "plain.csv").read_text(encoding="utf-8"), encoding="utf-8-sig")
    for source in (table, tmp_path / "a.tsv", with_mark):
        assert be.read_requests(source) == PLAIN
    requests = be.read_requests(DATA / "plain.csv")
    assert be.read_requests(requests) == requests
    assert be.read_requests([requests[0].request]) == [RequestCase(ADA)]
    assert be.read_requests(DATA / "plain.csv", limit=1) == PLAIN[:1]


def test_lists_in_cells_may_be_json():
    row = {"prompt": "x|y is", "target": "z", "locality": '[{"prompt": "a | b ->", "answer": "c"}, "d"]', "paraphrases": '["x | y"]'}
    [case] = be.read_requests(pl.DataFrame([row]))
    assert case.locality == (Probe("a | b ->", ("c",)), Probe("d")) and case.paraphrases == ("x | y",)


def test_hostile_texts_are_kept():
    texts = [text for text in NAMES.values() if text.strip()]
    cases = be.read_requests([{"prompt": f"{text} is", "target": text, "locality": [text]} for text in texts])
    assert [case.request.target for case in cases] == [text.strip() for text in texts]
    assert [case.request.fact for case in cases[:1]] == [Fact("", f"{texts[0]} is".strip(), "")]


def changed(name: str, *keys, value=None, remove=False):
    """The items of a sample, one of them changed."""
    items = json.loads((DATA / name).read_text(encoding="utf-8"))
    inner = items
    for key in keys[:-1]:
        inner = inner[key]
    if remove:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    return items


@pytest.mark.parametrize(("items", "problem", "where"), [
    (changed("counterfact.json", 0, "requested_rewrite", "target_new", "str", remove=True), "the key 'str' is missing",
     "item 1, requested_rewrite, target_new"),
    (changed("counterfact.json", 0, "requested_rewrite", "prompt", value="works as"), "expected one {} for the subject",
     "item 1, requested_rewrite, prompt"),
    (changed("counterfact.json", 0, "neighborhood_prompts", value=["a", 3]), "expected text, not 3", "item 1, neighborhood_prompts[1]"),
    (changed("counterfact.json", 0, "neighborhood_prompts", value=7), "expected a list of texts, not 7", "item 1, neighborhood_prompts"),
    (changed("mquake.json", 1, "requested_rewrite", 1, "subject", value=" "), "the text is empty",
     "item 2, requested_rewrite[1], subject"),
    (changed("mquake.json", 1, "requested_rewrite", value=[]), "the list is empty", "item 2, requested_rewrite"),
    (changed("mquake.json", 0, "new_answer", remove=True), "the key 'new_answer' is missing; is it 'new_answer_alias'", "item 1"),
    (changed("mquake.json", 1, value="x"), "expected keys with values, not 'x'", "item 2"),
    (changed("zsre.json", 2, "src", remove=True), "the key 'src' is missing", "item 3"),
    (changed("zsre.json", 2, "subject", value="Di"), "'Di' is not in the prompt", "item 3, subject"),
    (changed("zsre.json", 0, "loc_ans", value=None), "the key 'loc_ans' is missing", "item 1"),
    (changed("knowedit.json", 0, "locality", "Relation_Specificity", 0, "ground_truth", value=[[4]]), "lists of texts, not 4",
     "item 1, locality, Relation_Specificity[0], ground_truth"),
    (changed("rippleedits.json", 0, "Compositionality_I", 0, "test_queries", 0, "prompt", remove=True), "the key 'prompt' is missing",
     "item 1, Compositionality_I[0], test_queries[0]"),
    (changed("rippleedits.json", 1, "Logical_Generalization", value=[]), "cannot tell the prompt from the target",
     "item 2, edit, prompt"),
    ([{"prompt": "a", "target": "b"}, {"prompt": "a", "taget": "b"}], "unknown key 'taget'", "item 2, taget"),
    ([{"prompt": "a", "target": "b"}, {"prompt": "a"}], "the key 'target' is missing; the item has prompt", "item 2"),
    ([{"prompt": "a", "target": "b", "portability": ["c"]}], "the prompt 'c' has no answer", "item 1, portability[0]"),
    ([{"prompt": "a", "target": "b", "locality": [{"promt": "c"}]}], "unknown key 'promt'", "item 1, locality[0], promt"),
    ([{"prompt": "a", "target": "\ud800"}], "is not Unicode", "item 1, target"),
    ([{"prompt": "art", "target": "b", "subject": "ar"}], "'ar' is not in the prompt", "item 1, subject"),
    ([{"question": "a"}], "no known layout of requests", "item 1"), ([[1]], "no known layout of requests", "item 1"),
    (pl.DataFrame({"prompt": ["a"], "target": ["b"], "locality": ["[1"]}), "not a list in JSON", "item 1, locality"),
])
def test_errors_name_the_item_and_the_key(items, problem, where):
    with pytest.raises(EditError) as caught:
        be.read_requests(items)
    assert problem in caught.value.problem and caught.value.where == f"the requests, {where}"


def test_files_that_cannot_be_read(tmp_path):
    def file(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    folder = tmp_path / "folder.json"
    folder.mkdir()
    for source, problem in (
            (tmp_path / "none.json", "no such file"), (file("a.txt", b"x"), "unknown kind of file: .txt"),
            (file("a.json", b'{"prompt": "a"}'), "expected a list of items"), (file("b.json", b"[1,"), "not valid JSON"),
            (file("c.json", b"[" * 100_000), "not valid JSON"), (file("d.json", b"\xff[]"), "cannot read the requests"),
            (file("e.jsonl", b'{"prompt": "a", "target": "b"}\n{'), "(?s)not valid JSON.*e.jsonl, line 2"),
            (file("f.csv", b"prompt,target\na,b,c,d\n"), "cannot read the requests"), (file("g.csv", b""), "cannot read the requests"),
            (file("h.csv", b"prompt,target\n"), "no requests"), (file("i.parquet", b"PAR1"), "cannot read the requests"),
            (folder, "cannot read the requests"), ([], "no requests"), ({"prompt": "a"}, "expected a list of requests, not one"),
            (5, "no requests: 5")):
        with pytest.raises(EditError, match=problem):
            be.read_requests(source)
    with pytest.raises(EditError, match="unknown format 'csv'"):
        be.read_requests(DATA / "plain.csv", format="csv")
    with pytest.raises(EditError, match="unknown key 'src'"):
        be.read_requests(DATA / "zsre.json", format="plain")


def test_items_without_a_new_answer_are_counted(caplog):
    be.read_requests(DATA / "zsre.json")
    assert "1 of 3 items have no new answer and are left out" in caplog.text
