"""Tokenizer: every text comes back, borders hold, and nothing depends on chance."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beliefedit.errors import ConfigError
from beliefedit.lm.tokenizer import load_tokenizer, train_tokenizer

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
