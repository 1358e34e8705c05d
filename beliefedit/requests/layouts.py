"""Layouts of requests: the kit's own, and those in which data sets are distributed.

Each reader of `LAYOUTS` takes an item of a file and returns its requests. `layout_of` recognises
the layout from an item.
"""

from __future__ import annotations

import json
import os.path
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from beliefedit.editors.request import find_words
from beliefedit.errors import EditError
from beliefedit.formatting import short
from beliefedit.requests.request import Item, Probe, RequestCase, edit_request

_KEYS = ("prompt", "target", "subject", "old", "aliases", "paraphrases", "locality", "portability")
ARROW = "->"
"""Stands between the prompt and the answer of a probe in the cell of a table."""


def plain(item: Item) -> list[RequestCase]:
    """The kit's own layout: the keys prompt and target, and optionally the others of `_KEYS`.

    In a table, the cell of a list has values separated by ``|``; a probe is ``prompt -> answer``. A
    cell that begins with ``[`` is a list in JSON.
    """
    if unknown := [key for key in item.value if key not in _KEYS]:
        raise item.error(str(unknown[0]), f"unknown key {short(unknown[0])}",
                         hint=f"choose from {', '.join(_KEYS)}")
    item = Item({**item.value, **{key: _list(item, key) for key in _KEYS[4:]}}, item.where)
    prompt, subject = item.text("prompt"), item.text("subject", "")
    item.check_subject(prompt, subject)
    request = edit_request(prompt, item.text("target"), subject, item.text("old", ""))
    portability = tuple(_probes(item, "portability"))
    for n, probe in enumerate(portability):
        if not probe.answers:
            raise item.error(f"portability[{n}]", f"the prompt {probe.prompt!r} has no answer",
                             hint=f"write it as prompt {ARROW} answer, or with the key answer")
    return [RequestCase(request, item.texts("aliases"), item.texts("paraphrases"),
                        tuple(_probes(item, "locality")), portability)]


def _list(item: Item, key: str) -> Any:
    """The value of a key; the cell of a table as a list."""
    value = item.value.get(key)
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError as error:
            raise item.error(key, f"not a list in JSON: {error}") from None
    parts = [part.strip() for part in value.split("|")]
    if key in ("aliases", "paraphrases"):
        return parts
    pairs = [part.partition(ARROW) for part in parts]
    return [{"prompt": prompt, **({"answer": answer} if arrow else {})}
            for prompt, arrow, answer in pairs]


def _probes(item: Item, key: str) -> Iterator[Probe]:
    values = item.value.get(key) or ()
    if not isinstance(values, Sequence):
        raise item.error(key, f"expected a list of probes, not {short(values)}")
    for n, value in enumerate(values):
        if isinstance(value, str):
            value = {"prompt": value}
        probe = Item(value, f"{item.where}, {key}[{n}]")
        answer = "answers" if probe.has("answers") else "answer"
        if unknown := [name for name in probe.value if name not in ("prompt", answer)]:
            raise probe.error(str(unknown[0]), f"unknown key {short(unknown[0])}",
                              hint="a probe has the keys prompt and answer, or answers")
        yield Probe(probe.text("prompt"), probe.texts(answer))


def counterfact(item: Item) -> list[RequestCase]:
    """CounterFact (arXiv 2202.05262), counterfact.json of the ROME project.

    The neighbourhood prompts are the locality prompts, with the old answer.
    """
    rewrite = item.item("requested_rewrite")
    subject, old = rewrite.text("subject"), rewrite.item("target_true").text("str")
    request = edit_request(rewrite.filled("prompt", subject),
                           rewrite.item("target_new").text("str"), subject, old)
    return [RequestCase(request, paraphrases=item.texts("paraphrase_prompts"), locality=tuple(
        Probe(prompt, (old,)) for prompt in item.texts("neighborhood_prompts")))]


def mquake(item: Item) -> list[RequestCase]:
    """MQuAKE (arXiv 2305.14795), also v2 and MQuAKE-Remastered; a request per edited fact.

    The question of an edited fact is its paraphrase. Steps of the chain that the edits do not
    change are locality prompts. The questions over several steps are portability prompts if the
    instance edits one fact; other instances need several edits of one model, so their questions
    are left out.
    """
    rewrites = list(item.items("requested_rewrite"))
    hops = {hop.text("cloze"): _with_aliases(hop, "answer") for hop in item.items("single_hops")}
    locality = tuple(Probe(cloze, answers) for hop in item.items("new_single_hops")
                     for cloze, answers in [(hop.text("cloze"), _with_aliases(hop, "answer"))]
                     if hops.get(cloze, ("",))[0] == answers[0])
    questions = item.texts("questions") if len(rewrites) == 1 else ()
    portability = tuple(Probe(question, _with_aliases(item, "new_answer"))
                        for question in questions)
    cases = []
    for rewrite in rewrites:
        subject = rewrite.text("subject")
        target, old = (rewrite.text(f"{key}_str") if rewrite.has(f"{key}_str")
                       else rewrite.item(key).text("str") for key in ("target_new", "target_true"))
        request = edit_request(rewrite.filled("prompt", subject), target, subject, old)
        cases.append(RequestCase(request, (), rewrite.texts("question"), locality, portability))
    if not cases:
        raise item.error("requested_rewrite", "the list is empty")
    return cases


def _with_aliases(item: Item, key: str) -> tuple[str, ...]:
    return (item.text(key), *item.texts(f"{key}_alias"))


def zsre(item: Item) -> list[RequestCase]:
    """zsRE as in MEND (arXiv 2110.11309), ROME and EasyEdit: zsre_mend_eval.json and its kin.

    The target is the counterfactual answer ``alt``, as in EasyEdit; ROME takes the first of
    ``answers``, which is the old answer here. Items with an empty ``alt`` are left out.
    """
    if item.has("alt") and item.value["alt"] == "":
        return []
    prompt, subject = item.text("src"), item.text("subject", "")
    item.check_subject(prompt, subject)
    request = edit_request(prompt, item.text("alt"), subject, next(iter(item.texts("answers")), ""))
    locality = (Probe(item.text("loc"), (item.text("loc_ans"),)),) if item.has("loc") else ()
    portability: tuple[Probe, ...] = ()
    if item.has("portability"):
        question = item.item("portability")
        portability = (Probe(question.text("New Question"), (question.text("New Answer"),)),)
    return [RequestCase(request, (), item.texts("rephrase"), locality, portability)]


def knowedit(item: Item) -> list[RequestCase]:
    """KnowEdit (arXiv 2401.01286): ZsRE, wiki_recent, wiki_counterfact and WikiBio of EasyEdit.

    Portability prompts without an answer are left out.
    """
    prompt, target, subject = (item.text(first if item.has(first) else second)
                               for first, second in (("prompt", "text"), ("target_new", "labels"),
                                                     ("subject", "concept")))
    if find_words(prompt, subject) is None:
        subject = ""  # some items name it in another form
    old = next(iter(_flat(item, "ground_truth")), "")
    request = edit_request(prompt, target, subject, old)
    rephrase = "rephrase" if item.has("rephrase") else "rephrase_prompt"
    locality, portability = (tuple(
        Probe(next(iter(probe.texts("prompt"))), _flat(probe, "ground_truth"))
        for axis in (item.item(key).value if item.has(key) else ())
        for probe in item.item(key).items(axis)) for key in ("locality", "portability"))
    return [RequestCase(request, (), item.texts(rephrase), locality,
                        tuple(probe for probe in portability if probe.answers))]


def _flat(item: Item, key: str) -> tuple[str, ...]:
    """The texts of nested lists, without empty ones."""
    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, list):
            for part in value:
                yield from texts(part)
        elif not isinstance(value, str):
            raise item.error(key, f"expected text or lists of texts, not {short(value)}")
        elif value.strip():
            yield value.strip()

    return tuple(dict.fromkeys(texts(item.value.get(key) or [])))


_STAYS = ("Relation_Specificity", "Relation_Specifity", "Forgetfulness")
_CHANGES = ("Logical_Generalization", "Compositionality_I", "Compositionality_II",
            "Subject_Aliasing")
_VERBS = (" is ", " are ", " follows ", " is followed by ")


def rippleedits(item: Item) -> list[RequestCase]:
    """RippleEdits (arXiv 2307.12976): popular.json, random.json and recent.json.

    Each query of a test is a probe, and one of its answers is enough; the conditions of tests are
    not applied. The file has no name of the subject, so the requests have none.
    """
    edit, queries = item.item("edit"), {True: [], False: []}  # type: ignore[var-annotated]
    for axis in (*_STAYS, *_CHANGES):
        for test in item.items(axis):
            for kind, key in ((True, "test_queries"), (False, "condition_queries")):
                queries[kind] += [(axis, query) for query in test.items(key)]
    prompt, target = _split(edit, [query for kind in queries.values() for _, query in kind])
    old = ""
    if edit.has("original_fact"):
        sentence = edit.item("original_fact").text("prompt").removesuffix(".")
        if sentence.startswith(f"{prompt} "):
            old = sentence.removeprefix(f"{prompt} ")
    probes: dict[bool, list[Probe]] = {True: [], False: []}
    for axis, query in queries[True]:
        answers = _answers(query)
        if answers:
            probes[axis in _STAYS].append(Probe(query.text("prompt"), answers))
    return [RequestCase(edit_request(prompt, target, "", old), locality=tuple(probes[True]),
                        portability=tuple(probes[False]))]


def _answers(query: Item) -> tuple[str, ...]:
    """The values and aliases of a query, without empty ones."""
    texts = [text for answer in query.items("answers")
             for text in (answer.value.get("value"), *(answer.value.get("aliases") or ()))]
    return tuple(dict.fromkeys(text.strip() for text in texts
                               if isinstance(text, str) and text.strip()))


def _split(edit: Item, queries: Sequence[Item]) -> tuple[str, str]:
    """Prompt and target of a sentence such as "The gender of Ada is female.".

    A query about the same fact has the prompt, or one with the same target has its name. Otherwise
    the verb separates them, if there is only one in the part that the original sentence shares.
    """
    sentence = edit.text("prompt").removesuffix(".")
    same = ("subject_id", "relation")
    prompts = [query.text("prompt") for query in queries
               if all(query.value.get(key) == edit.value.get(key) for key in same)]
    names = [answers[0] for query in queries
             if query.value.get("target_ids") == [edit.value.get("target_id")]
             for answers in [_answers(query)] if answers]
    ends = [len(prompt) for prompt in prompts if sentence.startswith(f"{prompt} ")]
    ends += [len(sentence) - len(name) - 1 for name in names if sentence.endswith(f" {name}")]
    if not ends:
        shared = sentence
        if edit.has("original_fact"):
            shared = os.path.commonprefix([sentence, edit.item("original_fact").text("prompt")])
        ends = [shared.index(verb) + len(verb) - 1 for verb in _VERBS if shared.count(verb)]
        if len(ends) != 1 or any(shared.count(verb) > 1 for verb in _VERBS):
            raise edit.error("prompt", f"cannot tell the prompt from the target in {sentence!r}")
    end = max(ends)
    return sentence[:end].strip(), sentence[end:].strip()


LAYOUTS: dict[str, Callable[[Item], list[RequestCase]]] = {
    "plain": plain, "counterfact": counterfact, "mquake": mquake, "zsre": zsre,
    "knowedit": knowedit, "rippleedits": rippleedits}
"""Readers by the name of the layout."""


def layout_of(record: Any, where: str) -> str:
    """The layout of an item.

    Raises:
        EditError: it has no layout of `LAYOUTS`.
    """
    keys = record if isinstance(record, Mapping) else {}
    rewrite = keys.get("requested_rewrite")
    if rewrite is not None:
        return "counterfact" if isinstance(rewrite, Mapping) else "mquake"
    for key, layout in (("edit", "rippleedits"), ("src", "zsre"), ("target_new", "knowedit"),
                        ("labels", "knowedit"), ("prompt", "plain"), ("target", "plain")):
        if keys.get(key) is not None:
            return layout
    raise EditError(f"no known layout of requests: {short(record)}", where=where,
                    hint="give the keys prompt and target, or a format: " + ", ".join(LAYOUTS))
