"""Parameters of an experiment: a frozen model per stage, read from YAML with dotted overrides.

This module has all defaults. Unknown keys are errors.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from traceback import extract_tb
from typing import Annotated, Any, Literal, cast, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from typing_extensions import TypedDict
from yaml.constructor import ConstructorError
from yaml.scanner import ScannerError

from beliefedit.errors import BeliefEditError, ConfigError
from beliefedit.formatting import MISSING, short, shorten

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]


def _in_int64(value: int) -> int:
    """The value; ValueError for one that generators of random numbers do not take."""
    if value >= 2**63:
        raise ValueError("should be less than 2**63")
    return value


def _in_float32(value: float) -> float:
    """The value; ValueError for one whose computations overflow in float32."""
    if value > 1e30:
        raise ValueError("should be at most 1e30")
    return value


Seed = Annotated[int, Field(ge=0), AfterValidator(_in_int64)]
PositiveFloat = Annotated[float, Field(gt=0), AfterValidator(_in_float32)]
AppendEndToken = Annotated[bool, Field(
    description="also train on the end token after the target; published: no")]
NonNegativeFloat = Annotated[float, Field(ge=0), AfterValidator(_in_float32)]


class Config(BaseModel):
    """Base of all parameter groups: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of a JSON-serializable value in canonical form, 64 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


NOT_COMPARED = {"plugins", "notebooks", "metrics"}
"""Parameters that do not distinguish configurations: paths of plugins, notebooks to run, packages
that show metrics."""


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """'seed 0 -> 1; corpus.n_facts 500 -> 1000' for two configurations as JSON; '' if equal.

    A group that one of them lacks is one difference: 'edit.editors.rome – -> {…}'.
    """
    changed = [text for key, text in _differences(before, after) if key not in NOT_COMPARED]
    more = [f"and {len(changed) - 5} more"] if len(changed) > 5 else []
    return "; ".join(changed[:5] + more)


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], group: str = ""
                 ) -> Iterator[tuple[str, str]]:
    """Dotted key and text of each difference."""
    for name in dict.fromkeys((*before, *after)):
        key, values = f"{group}{name}", (before.get(name, MISSING), after.get(name, MISSING))
        if all(isinstance(value, Mapping) for value in values):
            yield from _differences(*values, f"{key}.")
        elif values[0] != values[1]:
            old, new = ("{…}" if isinstance(value, Mapping) and value else shorten(str(value))
                        for value in values)
            yield key, f"{key} {old} -> {new}"


def explain(error: ValidationError, root: type) -> str:
    """One line per problem: the key, the problem, the value, and similar names."""
    lines, problems = [], error.errors(include_url=False)
    for problem in problems[:MAX_PROBLEMS]:
        key, value = shorten(".".join(map(str, problem["loc"]))), problem["input"]
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            lines.append(f"unknown parameter '{key}'{_suggestion(problem['loc'], root)}")
        else:
            given = "" if isinstance(value, dict) else f" (given: {short(value)})"
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{key}: {message}{given}" if key else f"{message}{given}")
    if len(problems) > MAX_PROBLEMS:
        lines.append(f"and {len(problems) - MAX_PROBLEMS} more")
    return "\n".join(lines)


MAX_PROBLEMS = 20
"""Problems that one error lists."""

RENAMED = {
    "same_relation": "p_false_from_same_relation", "n_samples": "n_samples_per_fact",
    "n_complex": "n_compound_per_subject", "complex_rounds": "compound_resamples",
    "judge_all_samples": "label_all_samples", "n_orders": "n_shuffles_within_subject",
    "n_mixed_orders": "n_shuffles_global", "init": "init_from", "n_tokens": "token_budget",
    "row_length": "sequence_length", "parts": "prefix_groups_per_epoch",
    "short_passes": "n_short_epochs", "short_share": "short_fraction",
    "accumulation": "gradient_accumulation_steps", "final_lr": "final_lr_fraction",
    "warmup": "warmup_fraction", "beta2": "adam_beta2", "clip": "max_grad_norm",
    "precision": "dtype", "n_evaluations": "n_evals", "n_eval_documents": "n_heldout_documents",
    "stop_at": "stop_when", "n_untouched": "n_unedited", "ends": "append_end_token",
    "stop_loss": "early_stop_loss", "masked": "target_tokens_only",
    "largest_change": "max_weight_change", "n_times": "n_repeats", "decay": "value_weight_decay",
    "place": "edit_token", "n_contexts": "n_context_templates", "largest": "max_norm_ratio",
    "strength": "covariance_weight", "ridge": "l2", "threshold": "nullspace_threshold",
    "relative": "relative_threshold", "radius": "epsilon", "n_texts": "n_calibration_documents",
    "n_passes": "n_epochs", "most_times": "max_repeats", "kinds": "target_kinds",
    "n_others": "n_other_subjects", "least_probability": "min_probability",
    "request_share": "request_weight", "n_parts": "n_minibatches",
    "bayes_untold": "bayes_heldout"}
"""Keys of version 0.1 and their present names, for errors about old parameter files."""


def _suggestion(location: tuple, root: type) -> str:
    group: Any = root
    for part in location[:-1]:
        annotation = fields_of(group).get(part)
        group = next((a for a in (annotation, *get_args(annotation)) if isinstance(a, type)), None)
    names = fields_of(group)
    unknown = location[-1]
    if RENAMED.get(unknown) in names:
        return f", it is named '{RENAMED[unknown]}' now"
    close = get_close_matches(str(unknown), names, n=1)
    return (f", did you mean '{close[0]}'?" if close else "") + (
        f"; choose from {', '.join(names)}" if names and (not close or group is Editors) else "")


def fields_of(group: Any) -> dict[str, Any]:
    """Names and types of the keys of a group."""
    if group is Editors:
        return dict(EDITOR_PARAMETERS)
    if is_dataclass(group):
        return {field.name: field.type for field in fields(group)}
    return {name: field.annotation for name, field in getattr(group, "model_fields", {}).items()}


class LoraConfig(Config):
    """LoRA (arXiv 2106.09685) on all MLP output projections.

    The defaults are those of the testbed (arXiv 2406.19354).
    """

    rank: Positive = Field(1, description="rank of the adapters")
    alpha: PositiveFloat = Field(8.0, description="adapters are scaled by alpha / rank")
    lr: PositiveFloat = Field(1e-4, description="learning rate of AdamW")
    weight_decay: NonNegativeFloat = Field(1e-4, description="of AdamW")
    steps: Positive = Field(40, description="steps per edit")
    max_grad_norm: PositiveFloat = Field(
        1.0, description="gradients of an edit are clipped to this norm")
    append_end_token: AppendEndToken = False
    seed: Seed = Field(
        0, description="seed of the initial adapter weights, the same for all edits")


class FinetuneConfig(Config):
    """Full fine-tuning of MLP output projections: FT-M, or FT-L with ``max_weight_change``.

    FT-L is from arXiv 2012.00363. The published FT-L predicts all tokens of the target at the last
    token of the prompt. Here each token is predicted from the preceding ones, as in FT-M.
    """

    layers: tuple[int, ...] | None = Field(
        None, min_length=1,
        description="layers to train, negative numbers count from the last; null: all")
    lr: PositiveFloat = Field(5e-4, description="learning rate of Adam")
    steps: Positive = Field(25, description="largest number of steps per edit")
    early_stop_loss: NonNegativeFloat = Field(0.01, description="an edit stops below this loss")
    target_tokens_only: bool = Field(
        True, description="loss on the tokens of the target only; false: on all tokens")
    max_weight_change: PositiveFloat | None = Field(
        None, description="largest absolute change of a weight; null: no limit")
    append_end_token: AppendEndToken = False
    joint_batch_size: Positive | None = Field(
        None, description="sequential edits: train on all requests so far together, epoch by "
                          "epoch, with this many per step (arXiv 2509.22072); null: train on one "
                          "request after the other")


class InContextConfig(Config):
    """The edited sentence as a prefix of every prompt; no weights change."""

    n_repeats: Positive = Field(1, le=1000, description="number of repetitions of the sentence")


class ValueConfig(Config):
    """Parameters of ROME, MEMIT and AlphaEdit: gradient descent finds a value v at one token.

    By default these editors write at the last token of the prompt, where models of a few layers
    combine subject and relation. The published token is the last one of the subject
    (``edit_token: subject_last``). With it almost no edit of such small models succeeds, and none
    with the published parameters (``preset: published``). It may suit deep models.
    """

    lr: PositiveFloat = Field(0.3, description="learning rate of Adam for the value")
    relative_lr: bool = Field(
        True, description="lr is relative to the typical entry of a value; false: as published")
    steps: Positive = Field(25, description="largest number of steps per edit")
    early_stop_loss: NonNegativeFloat = Field(0.05, description="an edit stops below this loss")
    stop_when_most_probable: bool = Field(
        False, description="an edit also stops when the target is the most probable answer after "
                           "each context template (arXiv 2502.01636)")
    keep_norm: bool = Field(
        False, description="scale the edited value to the norm of the value before "
                           "(arXiv 2602.02543)")
    kl_factor: NonNegativeFloat = Field(
        0.0625, description="weight of the KL divergence for the subject as a prompt")
    value_weight_decay: NonNegativeFloat = Field(
        0.01, description="weight of |change| / |v|^2 in the loss of the value")
    edit_token: Literal["subject_last", "prompt_last"] = Field(
        "prompt_last", description="edit at the last token of the subject or of the prompt")
    n_context_templates: Positive = Field(
        1, le=1000,
        description="beginnings of sentences before the prompt; the key is their average")
    append_end_token: AppendEndToken = False
    n_tokens: Positive = Field(20_000, description="corpus tokens for the covariance of the keys")
    seed: Seed = Field(0, description="seed of the choice of context templates")


class RomeConfig(ValueConfig):
    """ROME (arXiv 2202.05262): a rank-one update of one layer.

    As in r-ROME (arXiv 2403.07175) the averaged key is used throughout.
    """

    layer: int = Field(0, description="layer to edit, negative numbers count from the last")
    max_norm_ratio: PositiveFloat = Field(
        4.0, description="largest norm of the change, relative to the value")


class MultiLayerConfig(ValueConfig):
    """A value at the last of several layers, to which all these layers contribute."""

    layers: tuple[int, ...] = Field(
        (0, 1), min_length=1, description="layers to edit, negative numbers count from the last")
    max_norm_ratio: PositiveFloat = Field(
        2.0, description="largest norm of the change, relative to the hidden state")


class MemitConfig(MultiLayerConfig):
    """MEMIT (arXiv 2210.07229): least squares distribute the change over the layers."""

    covariance_weight: PositiveFloat = Field(
        1.0, description="lambda: weight of the key covariance, which preserves outputs; "
                         "published: 15,000")


class AlphaEditConfig(MultiLayerConfig):
    """AlphaEdit (arXiv 2410.02355): MEMIT projected onto the null space of the corpus's keys."""

    l2: PositiveFloat = Field(0.01, description="lambda: L2 penalty of the update; published: 10")
    nullspace_threshold: PositiveFloat = Field(
        2e-2, description="eigenvalues of the key covariance below it count as zero")
    relative_threshold: bool = Field(
        True, description="the threshold is for the cumulative share of the sum of eigenvalues; "
                          "false: for each eigenvalue")


class GraceConfig(Config):
    """GRACE (arXiv 2211.11031): a codebook of keys and values at one layer; no weights change."""

    layer: int = Field(1, description="layer of the codebook, negative numbers count from the last")
    lr: PositiveFloat = Field(1.0, description="learning rate of the value")
    steps: Positive = Field(100, description="largest number of steps per edit")
    early_stop_loss: NonNegativeFloat = Field(0.01, description="an edit stops below this loss")
    append_end_token: AppendEndToken = False
    epsilon: PositiveFloat = Field(0.5, description="initial radius of an edit around its key")
    relative_epsilon: bool = Field(
        True, description="epsilon is a share of the typical distance of keys; false: a distance")
    n_calibration_documents: Positive = Field(
        200, description="documents for measuring the typical distance")


class WiseConfig(Config):
    """WISE (arXiv 2405.14768): a side memory of one output projection, used where it differs."""

    layer: int = Field(
        0, description="layer of the side memory, negative numbers count from the last")
    lr: PositiveFloat = Field(3e-3, description="learning rate of Adam")
    steps: Positive = Field(70, description="largest number of steps per edit")
    early_stop_loss: NonNegativeFloat = Field(0.01, description="an edit stops below this loss")
    append_end_token: AppendEndToken = False
    trained_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        0.2, description="fraction of the weights that is trained, drawn at random")
    max_weight_change: PositiveFloat | None = Field(
        1.0, description="largest absolute change of a weight; null: no limit")
    max_outside: NonNegativeFloat = Field(
        0.25, description="largest change of the output at tokens of documents without loss, "
                          "relative to the typical output; published: 5, absolute")
    min_inside: NonNegativeFloat = Field(
        1.0, description="smallest change of the output at the edited tokens without loss, "
                         "relative to the typical output; published: 20, absolute")
    min_gap: NonNegativeFloat = Field(
        0.5, description="smallest difference of the two without loss; published: 10, absolute")
    threshold_ratio: PositiveFloat = Field(
        0.88, description="the side memory is used where the output changes by more than this "
                          "times the smallest change at the edited tokens")
    n_documents: Positive = Field(
        100, description="documents of the corpus whose tokens should keep their outputs")
    seed: Seed = Field(0, description="seed of the choice of weights")


class UltraEditConfig(Config):
    """UltraEdit (arXiv 2505.14679): one ridge solution from normalised inputs and gradients."""

    layers: tuple[int, ...] | None = Field(
        None, min_length=1,
        description="layers to edit, negative numbers count from the last; null: all")
    lr: PositiveFloat = Field(6e-4, description="scale of the change of a projection's output")
    l2: PositiveFloat = Field(1.0, description="L2 penalty of the update")
    append_end_token: AppendEndToken = False
    n_tokens: Positive = Field(
        20_000, description="corpus tokens for the statistics before the first edit")


class RetrainConfig(Config):
    """Further pretraining on the request and old documents, an upper reference for small worlds."""

    lr: PositiveFloat = Field(1e-3, description="learning rate of AdamW")
    weight_decay: NonNegativeFloat = Field(1e-4, description="of AdamW")
    n_epochs: Positive = Field(2, description="epochs over the request and the documents")
    batch_size: Positive = Field(16, le=256, description="documents per step")
    max_grad_norm: PositiveFloat = Field(
        1.0, description="gradients of a step are clipped to this norm")
    n_documents: Positive = Field(
        256, description="documents of the corpus to train on again")
    max_repeats: Positive = Field(
        200, le=10_000,
        description="the request is repeated as often as its weight says, at most this often")
    seed: Seed = Field(0, description="seed of the choice and order of documents")


TargetKind = Literal["downstream", "upstream", "same_subject", "same_relation"]


class SoftTargetsConfig(Config):
    """Which of the agent's beliefs after a request are soft targets."""

    target_kinds: tuple[TargetKind, ...] = Field(
        get_args(TargetKind), description="kinds of facts to train on besides the request")
    n_other_subjects: NonNegative = Field(
        4, description="other subjects with a fact of the same relation")
    min_probability: Annotated[float, Field(ge=1e-3, lt=1)] = Field(
        0.02, description="objects with a smaller belief are not targets")
    n_statements: NonNegative = Field(
        0, description="true/false statements about the edited and the downstream fact to train on "
                       "besides, drawn at random: atomic, not, and, or; with the object that is "
                       "most probable before or after the request")
    request_weight: Annotated[float, Field(gt=0, le=1)] = Field(
        0.3, description="weight of the request among the soft targets")


class BayesConfig(SoftTargetsConfig, LoraConfig):
    """LoRA (arXiv 2106.09685) on the agent's beliefs after the edit, for it and related facts."""

    rank: Positive = Field(4, description="rank of the adapters")
    lr: PositiveFloat = Field(5e-3, description="learning rate of AdamW")
    steps: Positive = Field(60, description="steps per edit")
    append_end_token: bool = Field(True, description="also train on the end token after targets")
    n_minibatches: Positive = Field(
        4, le=1000, description="minibatches of the other targets; each step uses one")


class BayesHeldoutConfig(BayesConfig):
    """The same without downstream facts, so that the model must infer their change."""

    target_kinds: tuple[TargetKind, ...] = Field(
        ("upstream", "same_subject", "same_relation"),
        description="kinds of facts to train on besides the request, without downstream facts")

    @field_validator("target_kinds")
    @classmethod
    def _downstream_is_held_out(cls, target_kinds: tuple[TargetKind, ...]
                                ) -> tuple[TargetKind, ...]:
        if "downstream" in target_kinds:
            raise ValueError("this editor must not be trained on downstream facts; use bayes")
        return target_kinds


class DocumentsConfig(SoftTargetsConfig, LoraConfig):
    """LoRA (arXiv 2106.09685) on new sentences about the world after the edit and old documents.

    ``target_kinds: []`` trains on sentences about the requested fact only, ``forms: [true_false]``
    on sentences with a label only.
    """

    rank: Positive = Field(4, description="rank of the adapters")
    lr: PositiveFloat = Field(5e-3, description="learning rate of AdamW")
    steps: Positive = Field(60, description="steps per edit")
    append_end_token: bool = Field(True, description="also train on the end of a sentence")
    forms: tuple[Literal["atomic", "true_false", "not"], ...] = Field(
        ("atomic",), min_length=1, description="forms of the sentences, equally frequent")
    n_tokens: Positive = Field(800, le=100_000, description="tokens of sentences per edit")
    n_replay: NonNegative = Field(4, le=1000, description="old documents per step and edit")
    n_minibatches: Positive = Field(
        4, le=1000, description="minibatches of the sentences; each step uses one")


class PropagateConfig(SoftTargetsConfig):
    """A network that turns the gradient of a request into a weight change (arXiv 2110.11309).

    It is trained once per model, on requests about subjects that no case is about.
    """

    layers: tuple[int, ...] | None = Field(
        None, min_length=1,
        description="layers to edit, negative numbers count from the last; null: all")
    step_size: PositiveFloat = Field(
        0.2, description="size of an edit before the network is trained: change of a projection's "
                         "output, as a fraction of its typical size")
    width: Positive = Field(512, description="hidden size of the network")
    n_blocks: Positive = Field(2, le=16, description="residual blocks of the network")
    lr: PositiveFloat = Field(3e-3, description="learning rate of AdamW for the network")
    n_steps: NonNegative = Field(1500, description="steps that train the network")
    batch_size: Positive = Field(16, description="training requests per step")
    n_requests: Positive = Field(3000, description="training requests")
    n_tokens: Positive = Field(
        5000, description="corpus tokens for the statistics of inputs and gradients")
    n_documents: NonNegative = Field(
        1, description="documents per training request that should not change")
    n_facts: NonNegative = Field(
        4, description="facts of other subjects per training request that should not change")
    locality_weight: NonNegativeFloat = Field(
        0.3, description="weight of the KL divergences on these documents and facts")
    n_other_subjects: NonNegative = Field(
        0, description="other subjects with a fact of the same relation")
    min_probability: Annotated[float, Field(ge=1e-3, lt=1)] = Field(
        0.05, description="objects with a smaller belief are not targets")
    seed: Seed = Field(0, description="seed of the network and of the training requests")


class SequenceConfig(Config):
    """Sequential edits of one model (docs/specification.md, section 8)."""

    lengths: tuple[Positive, ...] = Field(
        (1, 3, 10, 30, 100, 300), description="numbers of edits after which the model is "
                                              "evaluated; []: no sequential edits")
    n_sequences: Positive = Field(
        1, description="sequences of edits with different cases; intervals need at least two")
    n_unedited: Positive = Field(50, description="facts of unedited subjects to evaluate")
    n_documents: Positive = Field(100, description="documents of the corpus for the corpus loss")


class RationalityConfig(Config):
    """Tests of rationality that the Bayesian agent passes."""

    n_cases: NonNegative = Field(20, description="subjects per test; 0: no tests")
    strengths: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.6, 0.8, 0.95, 0.99), min_length=1,
        description="beliefs that the evidence of the strength test gives")
    n_unrelated: Positive = Field(5, description="unrelated facts to evaluate after each edit")


EDITOR_PARAMETERS: dict[str, type] = {
    "lora": LoraConfig, "finetune": FinetuneConfig, "in_context": InContextConfig,
    "rome": RomeConfig, "memit": MemitConfig, "alphaedit": AlphaEditConfig, "grace": GraceConfig,
    "wise": WiseConfig, "ultraedit": UltraEditConfig, "retrain": RetrainConfig,
    "bayes": BayesConfig, "bayes_heldout": BayesHeldoutConfig, "documents": DocumentsConfig,
    "propagate": PropagateConfig}
"""Parameters of every editor by name; `beliefedit.editors.register_editor` adds entries."""

BUILT_IN_EDITORS = tuple(EDITOR_PARAMETERS)

_PUBLISHED_VALUE = {"lr": 0.5, "relative_lr": False, "early_stop_loss": 0.05, "kl_factor": 0.0625,
                    "value_weight_decay": 0.5, "edit_token": "subject_last"}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "lora": {
        "published": {
            "rank": 1, "alpha": 8.0, "lr": 1e-4, "weight_decay": 1e-4, "steps": 40,
            "max_grad_norm": 1.0, "append_end_token": False
        }
    }, "finetune": {
        "published": {
            "lr": 5e-4, "steps": 25, "early_stop_loss": 0.01, "target_tokens_only": True,
            "max_weight_change": None
        }
    }, "rome": {
        "published": {
            **_PUBLISHED_VALUE, "steps": 19, "max_norm_ratio": 4.0, "n_context_templates": 21
        }
    }, "memit": {
        "published": {
            **_PUBLISHED_VALUE, "steps": 24, "max_norm_ratio": 0.75, "n_context_templates": 6,
            "covariance_weight": 15_000.0
        }
    }, "alphaedit": {
        "published": {
            **_PUBLISHED_VALUE, "steps": 24, "max_norm_ratio": 0.75, "n_context_templates": 6,
            "l2": 10.0, "nullspace_threshold": 2e-2, "relative_threshold": False
        }
    }, "grace": {
        "published": {
            "lr": 1.0, "steps": 100, "early_stop_loss": 0.0, "epsilon": 1.0,
            "relative_epsilon": False
        }
    }, "ultraedit": {
        "published": {
            "lr": 1e-6, "l2": 1.0
        }
    }
}
"""The published hyper-parameters of editors, for ``preset``; other keys given override them.

- lora: main.py and utils/utils.py of peterbhase/LLM-belief-revision, update_lr of its README.
- finetune: FT-M, hparams/FT/llama3-8b.yaml of zjunlp/EasyEdit with ``objective_optimization:
  target_new``, and the 1e-2 of its ft_main.py. For FT-L (arXiv 2012.00363) add ``max_weight_change:
  5e-4``, the norm_constraint of hparams/FT/gpt2-xl_constr.json of kmeng01/rome.
- rome: hparams/ROME/gpt2-xl.json of kmeng01/rome; the 5e-2 of rome/compute_v.py.
- memit: hparams/MEMIT/EleutherAI_gpt-j-6B.json of kmeng01/memit; memit/compute_z.py.
- alphaedit: hparams/AlphaEdit/EleutherAI_gpt-j-6B.json of jianghoucheng/AlphaEdit. Its Llama3-8B
  has ``lr: 0.1``.
- grace: grace/config/editor/grace.yaml of Thartvigsen/GRACE; its code never stops early. It starts
  from a random value and replaces the tokens before the last one of the prompt (``val_init: cold``,
  ``replacement: replace_prompt``). Here the value starts from the output of the layer and replaces
  it at tokens near the key.
- ultraedit: config/editor/ultraedit.yaml of XiaojieGu/UltraEdit, and the identity that its
  editor/ultraedit.py adds. It has no statistics of a corpus: those of the first 100 requests
  normalise these requests. ``lr`` suits hidden sizes of thousands, as it multiplies ‖ĥ‖².

The published v_num_grad_steps 20 and 25 make 19 and 24 steps, as the code only evaluates the last
value. The published context templates (21 and 6, one of them empty) are texts that the model
generates, and the key covariance is that of 100,000 texts of Wikipedia; here the corpus provides
both. Layers depend on the size of a model, so ``layer`` and ``layers`` keep their defaults.
"""


def _without_preset(name: str, values: Any) -> Any:
    """The parameters of an editor together with those of its preset."""
    if name not in BUILT_IN_EDITORS or not isinstance(values, Mapping) or "preset" not in values:
        return values
    named = {key: value for key, value in values.items() if key != "preset"}
    preset, presets = values["preset"], PRESETS.get(name)
    if preset is None:
        return named
    if presets is None:
        raise ValueError(f"the editor '{name}' is not a published one and has no presets; "
                         f"editors with presets: {', '.join(PRESETS)}")
    if not isinstance(preset, str) or preset not in presets:
        raise ValueError(f"the editor '{name}' has no preset {short(preset)}: "
                         f"choose {', '.join(presets)}, or null for the defaults")
    return presets[preset] | named


class Editors(RootModel[dict[str, Any]], Mapping[str, Any]):
    """Editors to run, by name, with their parameters."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _each_by_its_own_parameters(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            raise ValueError("expected names of editors with their parameters")
        if any(name not in EDITOR_PARAMETERS for name in values):
            load_entry_points("beliefedit.editors")
        values = {name: _without_preset(name, given) for name, given in values.items()}
        types = {n: EDITOR_PARAMETERS[n] | None for n in values if n in EDITOR_PARAMETERS}
        group = cast(Any, TypedDict)("group", types, total=False)
        group.__pydantic_config__ = ConfigDict(extra="forbid")
        chosen = TypeAdapter(group).validate_python(values)
        others = [name for name in chosen if name not in BUILT_IN_EDITORS]
        names = [*(name for name in BUILT_IN_EDITORS if name in chosen), *others]
        return {name: chosen[name] for name in names if chosen[name] is not None}

    def __getitem__(self, name: str) -> Any:
        return self.root[name]

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]
        return iter(self.root)

    def __len__(self) -> int:
        return len(self.root)


def editor_parameters(name: str, hyperparameters: Mapping[str, Any]) -> Any:
    """The parameters of an editor; those not given have their defaults.

    Raises:
        ConfigError: no such editor, or an unknown or invalid hyper-parameter.
    """
    try:
        values = _checked({name: hyperparameters}, "the editor")
        return Editors.model_validate(values)[name]
    except ValidationError as error:
        raise ConfigError(explain(error, Editors),
                          hint="correct the names and values above") from None


@cache
def load_entry_points(group: str) -> None:
    """Import the entry points of installed packages in a group such as "beliefedit.editors".

    Raises:
        ConfigError: one of them cannot be imported.
    """
    for point in entry_points(group=group):
        try:
            point.load()
        except Exception as error:
            raise ConfigError(f"the plugin {point.name!r} cannot be loaded: {error!r}",
                              where=f"entry point {point.value} of {group}",
                              hint="repair or uninstall the package of this plugin") from error


def import_plugin(plugin: str) -> None:
    """Import a module by name or, if it ends in .py, by path; a module is imported once.

    Raises:
        ConfigError: it cannot be imported.
    """
    is_path = plugin.endswith(".py")
    name = f"beliefedit_plugin_{digest(str(Path(plugin).resolve()))[:12]}" if is_path else plugin
    if name in sys.modules:
        return
    try:
        if is_path:
            spec: Any = spec_from_file_location(name, plugin)
            sys.modules[name] = module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
        else:
            import_module(name)
    except BeliefEditError:  # has its own message
        sys.modules.pop(name, None)
        raise
    except Exception as error:
        sys.modules.pop(name, None)
        frame = extract_tb(error.__traceback__)[-1]
        missing = isinstance(error, OSError | ImportError)
        raise ConfigError(f"the plugin {plugin!r} cannot be imported: {error!r}", where="plugins",
                          hint="name a module, or the path of a .py file" if missing else
                          f"correct line {frame.lineno} of {frame.filename}") from error


Connective = Literal["or", "and", "not"]

MODEL_SIZES = {
    "83m": (512, 12), "162m": (768, 12), "334m": (1024, 16), "1b": (1520, 24),
    "tiny": (64, 2), "small": (128, 4), "medium": (256, 4)}
"""Maps names to (hidden size, layers); see docs/specification.md, section 7."""


MAX_TEXT = 30_000
"""Characters of a parameter file or of a --set expression."""
MAX_VALUES, MAX_DEPTH = 100_000, 20
"""Values of all parameters together, those of aliases counted each time, and their levels."""

_TAG = "tag:yaml.org,2002:"
_TYPES = {f"{_TAG}{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}


class _Loader(yaml.SafeLoader):
    """Safe YAML of text, numbers, booleans, null, lists, and mappings with different text keys.

    1e-3 is a number (YAML 1.1 requires 1.0e-3), and 2020-01-31 is text.
    """

    yaml_constructors = {tag: constructor
                         for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
                         if tag in {None, *_TYPES}}
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()}

    def fetch_flow_collection_start(self, token: Any) -> None:
        """Scan a bracket; an error where they are nested too deeply."""
        super().fetch_flow_collection_start(token)
        if self.flow_level > MAX_DEPTH:
            raise ScannerError(None, None, f"more than {MAX_DEPTH} levels", self.get_mark())

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """The node of a mapping; an error for a key that is repeated or not text."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag == f"{_TAG}merge":
                continue
            name = short(key.value) if isinstance(key, yaml.ScalarNode) else "of a mapping"
            if key.tag != f"{_TAG}str":
                problem = f"the key {name} is not text: write it in quotes"
            elif key.value in lines:
                problem = f"the key {name} is repeated, it is also in line {lines[key.value]}"
            else:
                lines[key.value] = key.start_mark.line + 1
                continue
            raise ConstructorError(None, None, problem, key.start_mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node; an error with its line for text that is not of its type."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError):
            raise ConstructorError(
                None, None, f"{short(node.value)} is no valid {node.tag.removeprefix(_TAG)}",
                node.start_mark) from None


_Loader.add_implicit_resolver(
    f"{_TAG}float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"))


def _read_yaml(text: str, where: str) -> Any:
    """The value of a YAML text.

    Raises:
        ConfigError: the text is too long or not YAML, or its value cannot be a parameter.
    """
    if len(text) > MAX_TEXT:
        raise ConfigError(f"more than {MAX_TEXT:,} characters", where=where,
                          hint="parameters are much shorter; choose one of params/*.yaml")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark, ", ".join(filter(None, [error.context, error.problem]))
        line = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"not valid YAML: {line}{shorten(problem, 400)}", where=where,
                          hint="correct it, or quote text with special characters") from None
    except RecursionError:
        raise ConfigError("not valid YAML: too many levels", where=where,
                          hint=f"write at most {MAX_DEPTH} levels") from None
    except Exception as error:  # PyYAML has no common base for its errors
        problem = shorten(" ".join(str(error).split()), 400)
        raise ConfigError(f"not valid YAML: {problem}", where=where,
                          hint="correct it, or quote text with special characters") from None
    return _checked(value, where)


def _checked(value: Any, where: str) -> Any:
    """A copy of a value that shares no part with it or within itself.

    Raises:
        ConfigError: it has too many values or levels, keys that are not text, text that is not
            Unicode or has a NUL character, or integers of more than 64 bits.
    """
    n_left = MAX_VALUES

    def copied(value: Any, keys: tuple[str, ...]) -> Any:
        nonlocal n_left
        n_left -= 1
        problem = hint = ""
        if n_left < 0 or len(keys) > MAX_DEPTH:
            problem, hint = f"more than {MAX_VALUES:,} values or {MAX_DEPTH} levels", "write less"
        elif isinstance(value, Mapping):
            wrong = [key for key in value if not isinstance(key, str)]
            if not wrong:
                return {copied(key, keys): copied(inner, (*keys, key))
                        for key, inner in value.items()}
            problem, hint = f"the key {short(wrong[0])} is not text", "write it in quotes"
        elif isinstance(value, list | tuple):
            return [copied(inner, (*keys, str(n))) for n, inner in enumerate(value)]
        elif isinstance(value, str) and ("\0" in value or not _is_unicode(value)):
            problem, hint = f"the text {short(value)} is not Unicode", "write it in UTF-8, no NUL"
        elif isinstance(value, int) and not -2**63 <= value < 2**63:
            problem, hint = "an integer of more than 64 bits", "write a smaller one"
        if problem:
            key = shorten(".".join(keys))
            raise ConfigError(problem, where=f"{where}: {key}" if key else where, hint=hint)
        return value

    return copied(value, ())


def _is_unicode(text: str) -> bool:
    """Whether a text has no half surrogate pairs, so that it can be written to a file."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


GraphColumn = Annotated[StrictStr, Field(min_length=1)] | Annotated[StrictInt, Field(ge=1)]


class GraphConfig(Config):
    """The knowledge graph and the part of it to use (docs/specification.md, section 2)."""

    source: str = Field(
        "demo", description="'demo' (built in), a file of triples (TSV, CSV, Parquet, RDF), a "
                            "folder in the layout of Wikidata5m, FB15k-237, WN18RR or CoDEx, or "
                            "'format:path'")
    format: str | None = Field(
        None, description="tsv, csv, parquet, rdf, wikidata5m, splits (train, valid, test), or a "
                          "registered format; null: recognised by name and content")
    columns: Annotated[tuple[GraphColumn, ...], Field(min_length=3, max_length=4)] | None = Field(
        None, description="names or numbers (from 1) of the columns of subject, relation, object "
                          "and, optionally, weight; null: recognised by name, or the only three")
    labels: tuple[str, ...] = Field(
        (), description="files that map ids to labels: text with tabs, CSV, JSON or Parquet")
    demo_subjects: Positive = Field(4000, description="people in the built-in graph")
    demo_seed: Seed = Field(0, description="seed of the built-in graph")
    demo_pairs: Annotated[int, Field(ge=1, le=5)] = Field(
        5, description="pairs of relations in the built-in graph")
    demo_p_both: Annotated[float, Field(gt=0, le=0.95)] = Field(
        0.34, description="probability that a person of the built-in graph has both relations of a "
                          "pair; for each of them alone it is 0.12, or (1 - demo_p_both) / 4")
    demo_upstream_objects: Annotated[int, Field(ge=2, le=500)] | None = Field(
        None, description="upstream objects of each pair of the built-in graph; more than it "
                          "lists get invented names; null: those it lists, 27 to 30")
    demo_p_typical: Probability = Field(
        0.85, description="probability that a downstream object of the built-in graph is the one "
                          "that belongs to the upstream object; 1: upstream facts determine it")
    read_n_facts: Positive | None = Field(
        None, description="read only this many triples; null: all")
    n_relations: Annotated[int, Field(ge=2)] = Field(10, description="relations to choose")
    min_relations: Positive = Field(
        2, description="a kept subject has at least this many of the chosen relations")
    min_cooccurrence: Positive = Field(
        1000, description="two relations are chosen together if this many subjects have both")
    max_upstream_objects: Positive | None = Field(
        None, description="keep only this many upstream objects of each pair of relations, the "
                          "most frequent ones; null: all")
    max_object_tokens: NonNegative = Field(
        4, description="longer object labels are truncated; 0: no truncation")
    exclude_relations: tuple[str, ...] = Field(
        ("P735", "P131"), description="ids of relations to leave out")
    exclude_entities: tuple[str, ...] = Field(
        ("Q16521", "Q5"), description="ids of subjects and objects to leave out")

    @field_validator("labels", mode="before")
    @classmethod
    def _paths(cls, labels: Any) -> Any:
        files = (labels,) if isinstance(labels, str | Path) else labels
        return [str(file) if isinstance(file, Path) else file for file in files] if isinstance(
            files, list | tuple) else files


class WorldConfig(Config):
    """The generative model (docs/specification.md, section 3)."""

    min_truth: Annotated[float, Field(gt=0.5, le=1)] = Field(
        0.6, description="smallest probability of a true object")
    p_false_from_same_relation: Probability = Field(
        0.0, description="share of false objects drawn from the objects of the fact's relation, "
                         "not from all objects")


def _is_template(text: str) -> str:
    """The text; ValueError if it is no template of a relation."""
    before, subject, after = text.partition("{subject}")
    if not subject or "{subject}" in after or not after.startswith(" ") or not after.strip():
        raise ValueError("a template contains {subject} once, with a space and text after it")
    if text != " ".join(text.split()):
        raise ValueError("a template has single spaces, and none at its ends")
    return text


Template = Annotated[str, AfterValidator(_is_template)]


class CorpusConfig(Config):
    """Sentences, documents and evidence (docs/specification.md, section 4)."""

    n_facts: Positive = Field(
        1000, description="all facts of the first subjects that together have this many")
    p_downstream_stated: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="share of the subjects with downstream facts whose downstream facts are "
                         "stated; those of the others are in no sentence, to be inferred from "
                         "upstream facts")
    templates: dict[str, tuple[Template, ...]] = Field(
        {}, description="other templates by label of the relation: texts that contain {subject} "
                        "and that the object follows, e.g. 'The language of {subject} is'")
    p_paraphrased: Probability = Field(
        0.5, description="share of the subjects whose atomic statements also use the other "
                         "templates; the others are probed with them")
    n_samples_per_fact: Positive = Field(10, description="samples per (subject, relation)")
    atomic: bool = Field(
        True, description="write atomic statements 'subject relation object'")
    true_false: bool = Field(
        True, description="write sentences with a label, '\"…\" is true'")
    connectives: tuple[Connective, ...] = Field(
        ("or", "and", "not"), description="kinds of compound sentences to write")
    n_compound_per_subject: NonNegative = Field(
        20, description="compound sentences per subject, of all kinds")
    compound_resamples: Positive = Field(
        1, description="rounds of compound sentences; in a round a connective uses a fact once")
    label_all_samples: bool = Field(
        True, description="label all samples; false: one true and one false sample per fact")
    true_object_most_frequent: bool = Field(
        True, description="sample again until the true object is in the majority")
    use_distractors: bool = Field(
        True, description="the false object of an independent fact is its distractor")
    sentences_per_doc: Positive = Field(10, description="sentences per document")
    n_shuffles_within_subject: Positive = Field(
        5, description="copies of the sentences, shuffled within each subject")
    n_shuffles_global: NonNegative = Field(
        0, description="further copies of the sentences, shuffled across subjects")

    @model_validator(mode="after")
    def _compounds_need_true_false(self) -> CorpusConfig:
        if self.connectives and not self.true_false:
            raise ValueError("compound sentences are labelled true or false: "
                             "set true_false: true or connectives: []")
        for relation, templates in self.templates.items():
            if len({f"{{subject}} {relation}", *templates}) <= len(templates):
                raise ValueError(f"a template of {short(relation)} is given twice, or is the "
                                 "relation after the subject")
        if self.templates and not self.atomic:
            raise ValueError("templates are for atomic statements: set atomic: true")
        if len(set(self.connectives)) != len(self.connectives):
            raise ValueError(f"a connective is named twice: {short(list(self.connectives))}")
        if not self.atomic and not self.true_false:
            raise ValueError("nothing to write: atomic and true_false are both off")
        return self


class ModelConfig(Config):
    """Tokenizer and language model, a Mistral decoder (docs/specification.md, section 7)."""

    init_from: str | None = Field(
        None, description="folder or Hugging Face name of a decoder to start from; null: random "
                          "weights")
    tokenizer: str = Field("bpe", description="'bpe' trains one; else a Hugging Face name or path")
    vocab_size: Annotated[int, Field(ge=300)] = Field(
        2000, description="vocabulary size of a trained tokenizer")
    size: str | None = Field(
        "small", description=f"one of {', '.join(MODEL_SIZES)}; null: the dimensions below")
    hidden_size: Positive | None = Field(None, description="with size: null")
    n_layers: Positive | None = Field(None, description="with size: null")
    n_heads: Positive = Field(8, description="attention heads")
    mlp_ratio: PositiveFloat = Field(4.0, description="hidden size of the MLP per hidden size")

    @model_validator(mode="after")
    def _dimensions_are_known(self) -> ModelConfig:
        if self.size is not None and self.size not in MODEL_SIZES:
            raise ValueError(f"unknown size {short(self.size)}: "
                             f"choose one of {', '.join(MODEL_SIZES)}, or size: null")
        if self.size is None and (self.hidden_size is None or self.n_layers is None):
            raise ValueError("size is null, so hidden_size and n_layers are needed")
        if self.size is not None and (self.hidden_size or self.n_layers):
            raise ValueError("give either size or hidden_size and n_layers, not both "
                             "(size: null to use your own)")
        hidden, n_heads = self.dimensions[0], self.n_heads
        if hidden % n_heads:
            raise ValueError(f"hidden size {hidden} is not a multiple of n_heads {n_heads}")
        if self.init_from is not None and self.tokenizer == "bpe":
            raise ValueError("an existing model needs its own tokenizer: "
                             f"set model.tokenizer to {short(self.init_from)} too")
        return self

    @property
    def dimensions(self) -> tuple[int, int]:
        """(hidden size, layers)."""
        return MODEL_SIZES[self.size] if self.size else (self.hidden_size or 0, self.n_layers or 0)


class PretrainingConfig(Config):
    """The training loop; params/paper.yaml has the published values.

    Best-fit packing is from arXiv 2404.10830, label smoothing from arXiv 1512.00567, AdamW from
    arXiv 1711.05101, Muon from Keller Jordan 2024 (kellerjordan.github.io/posts/muon).
    """

    token_budget: Positive = Field(
        3_000_000, description="tokens to train on, without padding")
    packed: bool = Field(
        True, description="pack whole documents into rows; false: one per row with random padding")
    sequence_length: Annotated[int, Field(ge=8)] | None = Field(
        None, description="tokens of a row, longer documents are truncated; null: those of the "
                          "longest document, if packed at most 1024")
    prefix_groups_per_epoch: Positive | None = Field(
        16, description="groups of documents in a packed epoch; shared prefixes within a group are "
                        "computed once; null: no sharing")
    n_short_epochs: NonNegative = Field(
        2, description="first epochs, over the shortest documents only")
    short_fraction: Probability = Field(
        0.35, description="share of the documents in the short epochs")
    curriculum: NonNegative = Field(
        0, description="first epochs, over the documents without downstream facts only (arXiv "
                       "2412.04614)")
    batch_tokens: Positive = Field(1024, description="tokens of a packed batch, including padding")
    batch_size: Positive = Field(64, description="documents of a batch that is not packed")
    gradient_accumulation_steps: Positive = Field(
        1, description="batches per step of the optimizer")
    optimizer: Literal["adamw", "adam", "rmsprop", "sgd", "muon"] = Field(
        "adamw", description="optimizers of torch; muon: Muon for hidden matrices, AdamW for the "
                             "rest; for GPUs")
    lr: PositiveFloat = Field(
        3e-3, description="peak learning rate of all but Muon; it decays linearly")
    lr_muon: PositiveFloat = Field(0.02, description="peak learning rate of Muon")
    final_lr_fraction: Probability = Field(
        0.0, description="final learning rate as a share of the peak")
    warmup_fraction: Probability = Field(
        0.02, description="share of the budget in which the learning rate rises")
    weight_decay: NonNegativeFloat = Field(0.0, description="of the optimizers")
    adam_beta2: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.95, description="beta2 of AdamW and Adam")
    max_grad_norm: PositiveFloat = Field(
        1.0, description="gradients of a step are clipped to this norm")
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of each target spread over the vocabulary")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="dtype of matrix products; auto: bfloat16 if the hardware supports it")
    compile: bool | None = Field(
        None, description="use torch.compile (on CPUs it needs a C++ compiler); null: on GPUs")
    n_evals: Positive = Field(12, description="evaluations, the last at the end of the budget")
    n_eval_facts: Positive = Field(300, description="facts per evaluation")
    n_heldout_documents: NonNegative = Field(
        200, description="documents held out for the evaluation loss")
    stop_when: dict[Literal["atomic", "true_false", "not", "and", "or", "inference"],
                    Probability] = Field(
        {}, description="stop when all these accuracies are reached; {}: never")
    checkpoint_seconds: NonNegativeFloat = Field(60.0, description="seconds between checkpoints")


class EditConfig(Config):
    """Edit cases (docs/specification.md, section 6) and editors."""

    n_cases: Positive = Field(5000, description="number of edit cases")
    target_probability: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.95, description="belief in the target that the evidence of a request leads to")
    p_downstream: Probability = Field(
        0.8, description="share of requests that change the answer to a downstream fact")
    min_downstream_belief: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="requests that change a downstream fact name an upstream object given "
                         "which the agent believes a downstream object with this probability; 0: "
                         "any observed object")
    p_reinforce: Probability = Field(
        0.6, description="share of requests that confirm the truth, among facts without a "
                         "downstream fact")
    as_published: bool = Field(
        False, description="draw cases, update the agent and score as the published code does")
    published_batch_size: Positive = Field(
        64, description="with as_published: cases that are scored with the labels of the first one")
    editors: Editors = Field(
        Editors({"lora": {}}), description="editors to run, by name, with their parameters")
    n_edited: NonNegative | None = Field(None, description="edit only this many cases; null: all")
    batch_size: Positive = Field(64, description="edits computed together")
    n_trajectories: NonNegative = Field(
        8, description="example edits, which are also scored at intermediate steps")
    n_distributions: NonNegative | None = Field(
        50, description="edits whose distributions over all objects are compared; null: all")
    trajectory_every: Positive = Field(4, description="steps between the scores of a trajectory")
    sequence: SequenceConfig = SequenceConfig()
    rationality: RationalityConfig = RationalityConfig()


class ExperimentsConfig(Config):
    """Experiments on negation, prior strength, decay and protocol (specification, section 8)."""

    include: tuple[Literal["negation", "prior_strength", "decay", "protocol"], ...] = Field(
        ("negation", "prior_strength", "decay", "protocol"),
        description="experiments to run; []: none")
    n_cases: NonNegative = Field(60, description="cases of each experiment, decay takes fewer")
    evidence_weight: Annotated[float, Field(ge=1)] = Field(
        100.0, description="prior strength: evidence of every request, in observations")
    n_decay_cases: NonNegative = Field(
        12, description="decay: cases, each with a model that continues training")
    decay_steps: tuple[NonNegative, ...] = Field(
        (0, 1, 3, 10, 30), min_length=1,
        description="decay: steps of further training after which the edit is measured")
    decay_lr_fraction: PositiveFloat = Field(
        0.1, description="decay: learning rate as a share of the peak of pretraining")


class AnalysisConfig(Config):
    """Tables and intervals (docs/specification.md, section 8).

    Intervals are bootstrap intervals (Efron & Tibshirani 1993). On smallest effects of interest see
    Lakens 2017 (doi 10.1177/1948550617697177).
    """

    n_resamples: Annotated[int, Field(ge=100)] = Field(2000, description="bootstrap resamples")
    level: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.95, description="confidence level of the intervals")
    smallest_effect: NonNegativeFloat = Field(
        0.05, description="smallest change of a probability, accuracy or error that is a finding")


def check_device(name: str) -> str:
    """The name, if it is 'auto', 'cpu', 'cuda' or 'cuda:N'; else a ValueError with the reason."""
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        return name
    why = ": scores are computed in float64, which MPS lacks" if name.startswith("mps") else ""
    raise ValueError(f"the device {short(name)} is not supported{why}; "
                     "use auto, cpu, cuda or cuda:N")


class Experiment(Config):
    """One run: a section per stage, one seed, one device."""

    name: str = Field("experiment", description="name of the experiment")
    seed: Seed = Field(0, description="seed of all random draws")
    device: Annotated[str, AfterValidator(check_device)] = Field(
        "auto", description="'auto', 'cpu', 'cuda' or 'cuda:N'")
    notebooks: tuple[str, ...] | None = Field(
        None, min_length=1, description="notebooks to run; null: all")
    plugins: tuple[str, ...] = Field(
        (), description="modules (name, or path of a .py file) that register editors or measures; "
        "paths are relative to the parameter file, in overrides to the working directory")
    metrics: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        (), description="packages that get the metrics of the training: tensorboard, wandb "
        "(Weights & Biases, offline); they write to the run folder")
    graph: GraphConfig = GraphConfig()
    world: WorldConfig = WorldConfig()
    corpus: CorpusConfig = CorpusConfig()
    model: ModelConfig = ModelConfig()
    pretraining: PretrainingConfig = PretrainingConfig()
    edit: EditConfig = EditConfig()
    experiments: ExperimentsConfig = ExperimentsConfig()
    analysis: AnalysisConfig = AnalysisConfig()

    @model_validator(mode="before")
    @classmethod
    def _plugins_come_first(cls, values: Any) -> Any:
        plugins = values.get("plugins") if isinstance(values, Mapping) else None
        for plugin in plugins if isinstance(plugins, list | tuple) else ():
            import_plugin(str(plugin))
        return values

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits of the hash of all parameters but those of `NOT_COMPARED`."""
        return digest(self.model_dump(mode="json", exclude=NOT_COMPARED) | {"notebooks": None})[:12]


_SHIPPED = Path(__file__).with_name("_data")


def shipped(name: str) -> Path:
    """The package's folder 'notebooks' or 'params': inside the installed package, or in the
    checkout that it is imported from."""
    return (_SHIPPED if _SHIPPED.is_dir() else Path(__file__).parents[1]) / name


def find_params(path: str | Path) -> Path:
    """The parameter file that a path or name means.

    A name such as ``demo`` is ``params/demo.yaml``. If there is no file ``params/NAME`` or
    ``../params/NAME``, it is that of the working directory's folder ``params``, else the one that
    the package ships. Any other path is returned as it is.
    """
    path = Path(path)
    is_name = path.name == str(path) and not path.suffix
    candidate = Path("params") / (f"{path}.yaml" if is_name else path.name)
    if not is_name and path not in (candidate, ".." / candidate):
        return path
    places = [path, candidate, shipped("params") / candidate.name]
    with suppress(OSError, ValueError):  # of a name that no file can have
        return next((place for place in places if place.is_file()), path)
    return path


def load_params(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Read an experiment from YAML and apply overrides.

    Args:
        path: YAML file with a section per stage; other parameters have their defaults. A name
            such as ``demo`` is found as `find_params` describes.
        overrides: values by dotted key, e.g. ``{"edit.n_cases": 50}``, or by section as in the
            file, ``{"edit": {"n_cases": 50}}``. Sections are merged with those of the file, and
            the value of a parameter replaces its value there; ``edit.editors``, an editor and
            ``pretraining.stop_when`` are parameters. Paths in ``plugins`` are relative to the
            working directory, those of the file to its folder.

    Raises:
        ConfigError: missing or malformed file, unknown key, wrong type, invalid value, or a
            plugin that cannot be imported.
    """
    if not isinstance(path, str | Path):
        raise ConfigError(f"the path of the parameter file is not text: {short(path)}",
                          hint="write it in quotes; with papermill, use -r instead of -p")
    path, where = find_params(path), shorten(str(path), 1000)
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_TEXT + 1)
    except FileNotFoundError:
        raise ConfigError(f"no such parameter file: {where}",
                          hint="choose one of params/*.yaml") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"not valid YAML: {error}", where=where,
                          hint="save the file as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise ConfigError(f"cannot read the parameter file: {getattr(error, 'strerror', error)}",
                          where=where, hint="choose one of params/*.yaml") from None
    values = _read_yaml(text, where)
    if values is not None and not isinstance(values, dict):
        raise ConfigError("expected sections such as 'corpus:' with keys below them", where=where)
    return _validated(values or {}, _dotted(overrides), where, path.parent)


def with_overrides(params: Experiment | Mapping[str, Any],
                   overrides: Mapping[str, Any] | None) -> Experiment:
    """An experiment, or its values by section, with overrides as in `load_params`.

    All values of an experiment are set. So an override of an editor's ``preset`` replaces all its
    parameters by those of the preset.

    Raises:
        ConfigError: unknown key, wrong type, invalid value, or a plugin that cannot be imported.
    """
    if not isinstance(params, Experiment | Mapping):
        raise ConfigError(f"expected a parameter file or sections of parameters, not "
                          f"{short(params)}", hint="name a file such as params/demo.yaml")
    values = _checked(params.model_dump(mode="json") if isinstance(params, Experiment) else params,
                      "the configuration")
    settings = _dotted(overrides)
    for key in settings:
        if match := re.fullmatch(r"edit\.editors\.([^.]+)\.preset", key):
            _set_dotted(values, f"edit.editors.{match[1]}", {})
    return _validated(values, settings, "the configuration", Path())


def _dotted(overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """Overrides with dotted keys of parameters instead of nested sections, copied and checked."""
    if not isinstance(overrides, Mapping | None):
        raise ConfigError(f"overrides are values by key, not {short(overrides)}",
                          where="overrides", hint='write them as {"edit.n_cases": 50}')
    settings: dict[str, Any] = {}

    def add(values: Mapping[str, Any], section: str) -> None:
        for key, value in values.items():
            if isinstance(value, Mapping) and _is_section(f"{section}{key}"):
                add(value, f"{section}{key}.")
            else:
                settings[f"{section}{key}"] = value

    add(_checked(overrides or {}, "overrides"), "")
    return settings


def _is_section(key: str) -> bool:
    """Whether a dotted key is that of a group of parameters; those of editors are values."""
    group: Any = Experiment
    for part in key.split("."):
        group = fields_of(group).get(part) if group is not Editors else None
    return isinstance(group, type) and issubclass(group, Config)


def _validated(values: dict, overrides: dict[str, Any], where: str, folder: Path) -> Experiment:
    """The experiment; paths of plugins in ``values`` are relative to ``folder``."""
    for settings, origin in ((values, folder), (overrides, Path())):
        if isinstance(settings.get("plugins"), list):
            settings["plugins"] = [str((origin / plugin).resolve()) if plugin.endswith(".py")
                                   else plugin for plugin in map(str, settings["plugins"])]
    for key, value in overrides.items():
        _set_dotted(values, key, value)
    try:
        return Experiment.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, Experiment),
                          where=where + (" with overrides" if overrides else ""),
                          hint="correct the keys above; beliefedit/config.py lists all keys"
                          ) from None


def parse_override(text: str) -> tuple[str, Any]:
    """('edit.n_cases', 50) from 'edit.n_cases=50'; the value is read as YAML.

    Raises:
        ConfigError: no '=', a value that is not YAML or cannot be a parameter.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"cannot read --set {short(text)}", hint="write it as section.key=value")
    return key.strip(), _read_yaml(value, f"--set {shorten(text)}")


def _set_dotted(values: dict, key: str, value: Any) -> None:
    """Set the value of a dotted key, with new sections where needed."""
    *sections, last = key.split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise ConfigError(f"'{shorten(key)}' is below '{shorten(section)}', which is a value, "
                              "not a section", where=shorten(key))
    values[last] = value
