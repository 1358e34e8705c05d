"""Tokenizers: byte-level BPE trained on a corpus's sentences, or one from Hugging Face.

Any Unicode text encodes and decodes to itself. A space belongs to the word after it, so that a prompt and its target,
``"s r"`` and ``" o"``, never share a token; a quotation mark is always a token of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from beliefedit.config import Experiment, ModelConfig
from beliefedit.corpus.language import Fact, clause, judged_prompt, label_word
from beliefedit.errors import ConfigError
from beliefedit.graph.graph import Graph

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<s>", "</s>", "<pad>"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE; the same texts give the same tokenizer.

    Args:
        texts: sentences in the corpus's grammar.
        vocab_size: largest vocabulary, the 256 bytes and 3 special tokens included.

    Returns:
        A tokenizer that puts ``<s>`` in front of what it encodes; ``</s>`` ends a document.

    Raises:
        ConfigError: ``vocab_size`` below 259.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < 259:
        raise ConfigError(f"a vocabulary of {vocab_size} cannot hold the 256 bytes and 3 special tokens",
                          where="model.vocab_size", remedy="give at least 300")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex('"'), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)])
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
        ConfigError: not found here and not to be downloaded, not a fast tokenizer, or without an end token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no tokenizer at '{name_or_path}': {str(error).splitlines()[0]}", where="model.tokenizer",
                          remedy="give a folder that holds tokenizer.json, a Hugging Face name (needs a network "
                                 "the first time), or 'bpe' to train one") from None
    if not tokenizer.is_fast:
        raise ConfigError(f"the tokenizer '{name_or_path}' has no fast version, which character offsets need",
                          where="model.tokenizer", remedy="choose a model with a tokenizer.json")
    if tokenizer.eos_token is None:
        raise ConfigError(f"the tokenizer '{name_or_path}' has no end token, which ends a document",
                          where="model.tokenizer", remedy="set its eos_token and save it in a folder")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_settings(config: Experiment) -> dict[str, Any]:
    """What decides the tokenizer."""
    trained = {"vocab_size": config.model.vocab_size, "n_facts": config.corpus.n_facts}
    return {"tokenizer": config.model.tokenizer, **(trained if config.model.tokenizer == _TRAINED else {})}


_TRAINED = ModelConfig.model_fields["tokenizer"].default


def make_tokenizer(config: Experiment, graph: Graph) -> PreTrainedTokenizerFast:
    """The named tokenizer, or one trained on what the corpus will say (before it exists: labels are cut with it)."""
    if config.model.tokenizer != _TRAINED:
        return load_tokenizer(config.model.tokenizer)
    return train_tokenizer(_sample_texts(graph, config.corpus.n_facts), config.model.vocab_size)


def _sample_texts(graph: Graph, n_facts: int) -> Iterator[str]:
    """Facts the corpus covers in all forms, and every object once."""
    for s, r, o in graph.facts.head(n_facts).iter_rows():
        atom = Fact(s, r, o)
        yield str(atom)
        for form in ("atomic", "not", "or", "and"):
            said = clause(form, *([atom] if form in ("atomic", "not") else [atom, atom]))
            yield f"{judged_prompt(said)} {label_word(form != 'not')}"
    yield from (f" {label}" for label in graph.objects)
