"""Tokenizers: byte-level BPE trained on the sentences of a corpus, or one from Hugging Face.

The trained tokenizer encodes any Unicode text without loss. A space belongs to the word after it,
so that a prompt ``"s r"`` and its target ``" o"`` never share a token. A quotation mark is always a
separate token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from beliefedit.config import ModelConfig
from beliefedit.corpus.language import (
    SEPARATOR,
    Fact,
    proposition_text,
    true_false_prompt,
    truth_word,
)
from beliefedit.errors import ConfigError
from beliefedit.graph.graph import Graph

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
_TRAINED = ModelConfig.model_fields["tokenizer"].default  # the name of a trained one


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of up to ``vocab_size`` tokens, 256 bytes and 3 special tokens included.

    It adds ``<s>`` before each text. The same texts give the same tokenizer.

    Raises:
        ConfigError: ``vocab_size`` below 259.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < 259:
        raise ConfigError(f"a vocabulary of {vocab_size} has no room for 256 bytes and 3 special "
                          "tokens", where="model.vocab_size", hint="give at least 300")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex('"'), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[PAD, BOS, EOS], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD,
        clean_up_tokenization_spaces=False, split_special_tokens=True)  # a label may spell "<s>"


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerFast:
    """A Hugging Face tokenizer by name or from a folder; padding falls back to the end token.

    Raises:
        ConfigError: not found or downloaded, damaged, not a fast tokenizer, without an end token,
            or with tokens that it adds after a text, which prompts cannot have.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    except Exception as error:  # transformers raises many types for damaged files
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigError(f"no tokenizer at '{name_or_path}': {reason}",
                          where="model.tokenizer",
                          hint="give a folder with a tokenizer.json, a Hugging Face name (needs "
                               "a network the first time), or 'bpe' to train one") from None
    if not tokenizer.is_fast:
        raise ConfigError(f"the tokenizer '{name_or_path}' is not a fast one, so it has no offsets",
                          where="model.tokenizer", hint="choose a model with a tokenizer.json")
    if tokenizer.eos_token is None:
        raise ConfigError(f"the tokenizer '{name_or_path}' has no end token",
                          where="model.tokenizer", hint="save it with an eos_token in a folder")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.clean_up_tokenization_spaces = False  # it would change labels
    last = tokenizer("a")["input_ids"][-1]
    if last != tokenizer("a", add_special_tokens=False)["input_ids"][-1]:
        raise ConfigError(f"the tokenizer '{name_or_path}' adds "
                          f"{tokenizer.convert_ids_to_tokens(last)!r} after every text",
                          where="model.tokenizer",
                          hint="save it without that token, usually by add_eos_token: false")
    return tokenizer


def n_start_tokens(tokenizer: PreTrainedTokenizerFast) -> int:
    """Number of tokens that a tokenizer puts before every text."""
    return len(tokenizer("a")["input_ids"]) - len(
        tokenizer("a", add_special_tokens=False)["input_ids"])


def separator_token(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id of the token that begins the separator of sentences within a document."""
    encoded = tokenizer(f"a{SEPARATOR}a", add_special_tokens=False, return_offsets_mapping=True)
    return next(token for token, (start, end) in zip(
        encoded["input_ids"], encoded["offset_mapping"], strict=True) if start <= 1 < end)


def tokenizer_settings(config: ModelConfig, n_facts: int) -> dict[str, Any]:
    """The settings that determine the tokenizer, for the key of its stage."""
    trained = {"vocab_size": config.vocab_size, "n_facts": n_facts}
    return {"tokenizer": config.tokenizer} | (trained if config.tokenizer == _TRAINED else {})


def make_tokenizer(config: ModelConfig, graph: Graph, n_facts: int) -> PreTrainedTokenizerFast:
    """The tokenizer that ``config`` names, or one trained on the first ``n_facts`` of the graph.

    The corpus does not exist yet, because the tokenizer determines how object labels are truncated.

    Raises:
        ConfigError: as `load_tokenizer`, or the tokenizer changes a label of the graph.
    """
    if config.tokenizer != _TRAINED:
        tokenizer = load_tokenizer(config.tokenizer)
        _check_labels(tokenizer, graph, n_facts)
        return tokenizer
    return train_tokenizer(_sample_texts(graph, n_facts), config.vocab_size)


def _check_labels(tokenizer: PreTrainedTokenizerFast, graph: Graph, n_facts: int) -> None:
    """A ConfigError if a label of the corpus does not come back from its tokens."""
    facts = graph.facts.head(n_facts)
    labels = [*dict.fromkeys([*(label for column in facts.get_columns() for label in column),
                              *graph.objects])]
    encoded = tokenizer([f"a {label}" for label in labels])["input_ids"]
    decoded = tokenizer.batch_decode(encoded, skip_special_tokens=True)
    for label, text in zip(labels, decoded, strict=True):
        if text.strip() != f"a {label}":
            found = text.strip().removeprefix("a ")
            raise ConfigError(f"the tokenizer changes the label {ascii(label)} to {ascii(found)}",
                              where="model.tokenizer", hint="use a tokenizer that keeps every "
                              "text, such as byte-level BPE, or change the label in the graph")


def _sample_texts(graph: Graph, n_facts: int) -> Iterator[str]:
    """The facts of the corpus in all forms, and every object once."""
    for labels in graph.facts.head(n_facts).iter_rows():
        fact = Fact(*labels)
        yield str(fact)
        for form, n_parts in (("atomic", 1), ("not", 1), ("or", 2), ("and", 2)):
            prompt = true_false_prompt(proposition_text(form, *[fact] * n_parts))
            yield f"{prompt} {truth_word(form != 'not')}"
    yield from (f" {label}" for label in graph.objects)
