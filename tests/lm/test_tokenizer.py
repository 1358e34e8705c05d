"""Tokenizer: every text comes back, borders hold, and nothing depends on chance."""

import json
import subprocess
import sys

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

import beliefedit as be
from beliefedit.config import ModelConfig
from beliefedit.editors.request import EditRequest
from beliefedit.errors import ConfigError
from beliefedit.graph.graph import Graph, tokens_in_sentence, truncate_labels
from beliefedit.lm.scoring import encode_pairs
from beliefedit.lm.tokenizer import (
    load_tokenizer,
    make_tokenizer,
    n_start_tokens,
    separator_token,
    train_tokenizer,
)

TEXTS = ["ada lovelace place of birth london", '"ada lovelace place of birth paris" is false',
         '"not alan turing profession baker" is true', "alan turing profession mathematician",
         '"alan turing profession baker or ada lovelace place of birth london" is true',
         "josé ångström place of birth münchen"] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 400)


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=300, deadline=None)
def test_any_unicode_text_encodes_and_decodes_to_itself(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.unk_token_id not in ids or tokenizer.unk_token_id is None


@pytest.mark.parametrize("text", ["<s>", "a</s>b", "<pad>", " two  spaces ", "\n\t", "日本語 🙂", 'say "x"', "\x00"])
def test_awkward_texts_come_back(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert not set(ids[1:]) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@given(prompt=st.text("abz \"é'1", min_size=1).map(str.strip), target=st.text("abz\"é'1", min_size=1))
@settings(max_examples=200, deadline=None)
def test_prompt_and_target_share_no_token(tokenizer, prompt, target):
    joint = tokenizer(f"{prompt} {target}")["input_ids"]
    assert joint == tokenizer(prompt)["input_ids"] + tokenizer(f" {target}", add_special_tokens=False)["input_ids"]


def test_quotes_are_tokens_of_their_own(tokenizer):
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(TEXTS[1])["input_ids"])
    assert pieces.count('"') == 2
    assert not any('"' in piece and piece != '"' for piece in pieces)


def test_frequent_words_become_one_token_with_their_space(tokenizer):
    assert "Ġplace" in tokenizer.get_vocab() and "Ġtrue" in tokenizer.get_vocab()


def test_same_texts_give_same_tokenizer_in_every_process(tokenizer):
    program = ("import json, sys; from beliefedit.lm.tokenizer import train_tokenizer;"
               "print(train_tokenizer(json.load(sys.stdin), 400).backend_tokenizer.to_str())")
    for seed in ("1", "2"):
        run = subprocess.run([sys.executable, "-c", program], input=json.dumps(TEXTS), text=True,
                             capture_output=True, check=True, env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin"})
        assert run.stdout.strip() == tokenizer.backend_tokenizer.to_str()


def test_training_does_not_import_torch():
    program = ("import sys; from beliefedit.lm.tokenizer import train_tokenizer; train_tokenizer(['a b'], 300);"
               "print('torch' in sys.modules)")
    run = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True, check=True)
    assert run.stdout.strip() == "False"


def test_saved_tokenizer_loads_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    for text in (*TEXTS, "<s> </s>"):
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (loaded.pad_token, loaded.eos_token_id) == ("<pad>", tokenizer.eos_token_id)


def test_missing_tokenizer_is_a_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="no tokenizer at .*\n.*model.tokenizer\n.*to fix: .*'bpe'"):
        load_tokenizer(str(tmp_path / "nowhere"))


def test_vocabulary_too_small_is_a_clear_error():
    with pytest.raises(ConfigError, match="vocabulary of 200"):
        train_tokenizer(TEXTS, 200)


def saved(backend, folder, **special):
    """A folder of a tokenizer as those of real models are saved."""
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return str(folder)


def prefix_space(texts, vocab_size=300):
    """A tokenizer that puts a space before every text, as those of Llama 2, Mistral 0.1 and Phi-3 do; no padding token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="always"), pre_tokenizers.Punctuation()])
    alphabet = sorted({character for text in (*texts, ".") for character in text.replace(" ", "▁")})
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<s>", "</s>"],
                                                           initial_alphabet=alphabet, show_progress=False))
    state = json.loads(backend.to_str())
    state["normalizer"] = {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
    state["pre_tokenizer"] = None
    state["decoder"] = {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    return Tokenizer.from_str(json.dumps(state))


def backend_of(tokenizer):
    return Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())


def test_a_tokenizer_that_adds_a_token_after_texts_is_refused(tokenizer, tmp_path):
    """Llama's add_eos_token and BERT's [SEP]: prompts to be continued would end in the end token."""
    backend = backend_of(tokenizer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[
        (token, backend.token_to_id(token)) for token in ("<s>", "</s>")])
    with pytest.raises(ConfigError, match="adds '</s>' after every text(?s:.*)model.tokenizer(?s:.*)add_eos_token: false"):
        load_tokenizer(saved(backend, tmp_path, bos_token="<s>", eos_token="</s>", pad_token="<pad>"))


def test_start_tokens_are_counted(tokenizer, tmp_path):
    backend = backend_of(tokenizer)
    backend.post_processor = processors.ByteLevel(trim_offsets=True)  # GPT-2: none
    without = load_tokenizer(saved(backend, tmp_path, eos_token="</s>"))
    assert (n_start_tokens(tokenizer), n_start_tokens(without)) == (1, 0)
    assert without.pad_token == "</s>"
    pairs, own = (encode_pairs(t, ["ada lovelace place of"], ["birth london"]) for t in (without, tokenizer))
    assert pairs.ids.tolist() == own.ids[:, 1:].tolist() and pairs.starts.tolist() == (own.starts - 1).tolist()


def test_a_space_before_every_text_counts_no_token_and_ends_no_sentence(tokenizer, tmp_path):
    loaded = load_tokenizer(saved(prefix_space(TEXTS), tmp_path, bos_token="<s>", eos_token="</s>"))
    for each in (tokenizer, loaded):
        for label in ("london", "place of birth", "münchen", "st. louis"):
            pairs = encode_pairs(each, ["ada lovelace place of"], [label])
            [tokens] = tokens_in_sentence(each, [label])
            assert pairs.ids[0, pairs.starts[0]:].tolist() == tokens  # as it is scored
            assert be.editor("lora").validation_error(each, EditRequest.from_pair("ada", label), len(tokens)) is None
            assert "allowed" in be.editor("lora").validation_error(each, EditRequest.from_pair("ada", label), len(tokens) - 1)
        document = each("ada lovelace. alan turing", add_special_tokens=False)["input_ids"]
        end = len(each("ada lovelace", add_special_tokens=False)["input_ids"])
        assert document[end] == separator_token(each)
    [alone] = loaded([" london"], add_special_tokens=False)["input_ids"]
    assert len(alone) == 1 + len(tokens_in_sentence(loaded, ["london"])[0])  # how labels must not be counted
    graph = truncate_labels(graph_of([("ada", "born in", "place of birth")]), loaded,
                            len(tokens_in_sentence(loaded, ["place of birth"])[0]))
    assert graph.objects == ["place of birth"]


def graph_of(facts):
    subjects, relations, objects = (list(dict.fromkeys(column)) for column in zip(*facts, strict=True))
    return Graph(subjects, relations, objects, pl.DataFrame(
        [[subjects.index(s), relations.index(r), objects.index(o)] for s, r, o in facts],
        schema=dict.fromkeys(("subject", "relation", "object"), pl.UInt32), orient="row"), {})


@pytest.mark.parametrize(("normalizer", "label", "changed"), [
    (normalizers.NFC(), "Zoe\u0308", "Zo\\xeb"), (normalizers.Lowercase(), "Zoe", "zoe"),
    (normalizers.StripAccents(), "Zoe\u0308", "Zoe")], ids=["NFC", "lower case", "accents"])
def test_a_tokenizer_that_changes_labels_is_refused(tokenizer, tmp_path, normalizer, label, changed):
    """A perfect answer would never equal the label."""
    backend = backend_of(tokenizer)
    backend.normalizer = normalizer
    folder = saved(backend, tmp_path, eos_token="</s>")
    config = ModelConfig(tokenizer=folder)
    make_tokenizer(config, graph_of([("ada", "knows", "bo")]), 1)
    for fact in ((label, "knows", "bo"), ("ada", "knows", label)):
        with pytest.raises(ConfigError) as error:
            make_tokenizer(config, graph_of([fact]), 1)
        assert f"changes the label {ascii(label)} to '{changed}'" in str(error.value)


def test_a_tokenizer_without_a_token_for_a_letter_is_refused(tmp_path):
    """Unigram without bytes: a label would hold "<unk>"."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.train_from_iterator(TEXTS, trainers.UnigramTrainer(
        vocab_size=80, special_tokens=["<s>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False))
    config = ModelConfig(tokenizer=saved(backend, tmp_path, eos_token="</s>", unk_token="<unk>"))
    make_tokenizer(config, graph_of([("ada", "place of birth", "london")]), 1)
    with pytest.raises(ConfigError, match="changes the label '\\\\u0141(?s:.*)byte-level BPE"):
        make_tokenizer(config, graph_of([("ada", "place of birth", "Łódź")]), 1)
