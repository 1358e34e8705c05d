"""Parameters of an experiment: a frozen model per stage, read from YAML with dotted overrides.

This module has all defaults. Unknown keys are errors.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
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
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from typing_extensions import TypedDict

from beliefedit.errors import BeliefEditError, ConfigError
from beliefedit.formatting import MISSING, flatten

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]


class Config(BaseModel):
    """Base of all parameter groups: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of a JSON-serializable value in canonical form, 64 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


NOT_COMPARED = {"plugins", "notebooks"}
"""Parameters that do not distinguish configurations: paths of plugins, notebooks to run."""


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """'seed 0 -> 1; corpus.n_facts 500 -> 1000' for two configurations as JSON; '' if equal."""
    old, new = flatten(before), flatten(after)
    pairs = {key: (old.get(key, MISSING), new.get(key, MISSING))
             for key in old | new if key not in NOT_COMPARED}
    changed = [f"{key} {a} -> {b}" for key, (a, b) in pairs.items() if a != b]
    more = [f"and {len(changed) - 5} more"] if len(changed) > 5 else []
    return "; ".join(changed[:5] + more)


def explain(error: ValidationError, root: type) -> str:
    """One line per problem: the key, the problem, the value, and similar names."""
    lines = []
    for problem in error.errors():
        key, value = ".".join(map(str, problem["loc"])), problem["input"]
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            lines.append(f"unknown parameter '{key}'{_suggestion(problem['loc'], root)}")
        else:
            given = "" if isinstance(value, dict) else f" (given: {value!r})"
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{key}: {message}{given}" if key else f"{message}{given}")
    return "\n".join(lines)


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
    append_end_token: bool = Field(
        False, description="also train on the end token after the target; published: no")
    seed: NonNegative = Field(
        0, description="seed of the initial adapter weights, the same for all edits")


class FinetuneConfig(Config):
    """Full fine-tuning of MLP output projections: FT-M, or FT-L with ``max_weight_change``.

    FT-L is from arXiv 2012.00363. The published FT-L predicts all tokens of the target at the last
    token of the prompt. Here each token is predicted from the preceding ones, as in FT-M.
    """

    layers: tuple[int, ...] | None = Field(
        None, description="layers to train, negative numbers count from the last; null: all")
    lr: PositiveFloat = Field(5e-4, description="learning rate of Adam")
    steps: Positive = Field(25, description="largest number of steps per edit")
    early_stop_loss: NonNegativeFloat = Field(0.01, description="an edit stops below this loss")
    target_tokens_only: bool = Field(
        True, description="loss on the tokens of the target only; false: on all tokens")
    max_weight_change: PositiveFloat | None = Field(
        None, description="largest absolute change of a weight; null: no limit")


class InContextConfig(Config):
    """The edited sentence as a prefix of every prompt; no weights change."""

    n_repeats: Positive = Field(1, description="number of repetitions of the sentence")


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
    kl_factor: NonNegativeFloat = Field(
        0.0625, description="weight of the KL divergence for the subject as a prompt")
    value_weight_decay: NonNegativeFloat = Field(
        0.01, description="weight of |change| / |v|^2 in the loss of the value")
    edit_token: Literal["subject_last", "prompt_last"] = Field(
        "prompt_last", description="edit at the last token of the subject or of the prompt")
    n_context_templates: Positive = Field(
        1, description="beginnings of sentences before the prompt; the key is their average")
    n_tokens: Positive = Field(20_000, description="corpus tokens for the covariance of the keys")
    seed: NonNegative = Field(0, description="seed of the choice of context templates")


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
        (0, 1), description="layers to edit, negative numbers count from the last")
    max_norm_ratio: PositiveFloat = Field(
        0.75, description="largest norm of the change, relative to the hidden state")


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
    epsilon: PositiveFloat = Field(0.5, description="initial radius of an edit around its key")
    relative_epsilon: bool = Field(
        True, description="epsilon is a share of the typical distance of keys; false: a distance")
    n_calibration_documents: Positive = Field(
        200, description="documents for measuring the typical distance")


class RetrainConfig(Config):
    """Further pretraining on the request and old documents, an upper reference for small worlds."""

    lr: PositiveFloat = Field(1e-3, description="learning rate of AdamW")
    weight_decay: NonNegativeFloat = Field(1e-4, description="of AdamW")
    n_epochs: Positive = Field(2, description="epochs over the request and the documents")
    batch_size: Positive = Field(16, description="documents per step")
    max_grad_norm: PositiveFloat = Field(
        1.0, description="gradients of a step are clipped to this norm")
    n_documents: Positive = Field(
        256, description="documents of the corpus to train on again")
    max_repeats: Positive = Field(
        200, description="the request is repeated as often as its weight says, at most this often")
    seed: NonNegative = Field(0, description="seed of the choice and order of documents")


TargetKind = Literal["downstream", "upstream", "same_subject", "same_relation"]


class BayesConfig(LoraConfig):
    """LoRA (arXiv 2106.09685) on the agent's beliefs after the edit, for it and related facts."""

    rank: Positive = Field(4, description="rank of the adapters")
    lr: PositiveFloat = Field(5e-3, description="learning rate of AdamW")
    steps: Positive = Field(60, description="steps per edit")
    append_end_token: bool = Field(True, description="also train on the end token after targets")
    target_kinds: tuple[TargetKind, ...] = Field(
        get_args(TargetKind), description="kinds of facts to train on besides the request")
    n_other_subjects: NonNegative = Field(
        4, description="other subjects with a fact of the same relation")
    min_probability: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.02, description="objects with a smaller belief are not targets")
    request_weight: Annotated[float, Field(gt=0, le=1)] = Field(
        0.3, description="weight of the request among the soft targets")
    n_minibatches: Positive = Field(
        4, description="minibatches of the other targets; each step uses one")


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
        (0.6, 0.8, 0.95, 0.99), description="beliefs that the evidence of the strength test gives")
    n_unrelated: Positive = Field(5, description="unrelated facts to evaluate after each edit")


EDITOR_PARAMETERS: dict[str, type] = {
    "lora": LoraConfig, "finetune": FinetuneConfig, "in_context": InContextConfig,
    "rome": RomeConfig, "memit": MemitConfig, "alphaedit": AlphaEditConfig, "grace": GraceConfig,
    "retrain": RetrainConfig, "bayes": BayesConfig, "bayes_heldout": BayesHeldoutConfig}
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
        raise ValueError(f"the editor '{name}' has no preset {preset!r}: "
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
        return Editors.model_validate({name: dict(hyperparameters)})[name]
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


class _Loader(yaml.SafeLoader):
    """Safe YAML that also reads 1e-3 as a number (YAML 1.1 requires 1.0e-3)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"))


class GraphConfig(Config):
    """The knowledge graph and the part of it to use (docs/specification.md, section 2)."""

    source: str = Field(
        "demo", description="'demo' (built in), a folder in Wikidata5m's layout, or 'format:path'")
    demo_subjects: Positive = Field(4000, description="people in the built-in graph")
    demo_seed: NonNegative = Field(0, description="seed of the built-in graph")
    read_n_facts: Positive | None = Field(
        None, description="read only this many lines of the triple file; null: all")
    n_relations: Annotated[int, Field(ge=2)] = Field(10, description="relations to choose")
    min_relations: Positive = Field(
        2, description="a kept subject has at least this many of the chosen relations")
    min_cooccurrence: Positive = Field(
        1000, description="two relations are chosen together if this many subjects have both")
    max_object_tokens: NonNegative = Field(
        4, description="longer object labels are truncated; 0: no truncation")
    exclude_relations: tuple[str, ...] = Field(
        ("P735", "P131"), description="ids of relations to leave out")
    exclude_entities: tuple[str, ...] = Field(
        ("Q16521", "Q5"), description="ids of subjects and objects to leave out")


class WorldConfig(Config):
    """The generative model (docs/specification.md, section 3)."""

    min_truth: Annotated[float, Field(gt=0.5, le=1)] = Field(
        0.6, description="smallest probability of a true object")
    p_false_from_same_relation: Probability = Field(
        0.0, description="share of false objects drawn from the objects of the fact's relation, "
                         "not from all objects")


class CorpusConfig(Config):
    """Sentences, documents and evidence (docs/specification.md, section 4)."""

    n_facts: Positive = Field(
        1000, description="all facts of the first subjects that together have this many")
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
        if len(set(self.connectives)) != len(self.connectives):
            raise ValueError(f"a connective is named twice: {list(self.connectives)}")
        if not self.atomic and not self.true_false:
            raise ValueError("nothing to write: atomic and true_false are both off")
        return self


class ModelConfig(Config):
    """Tokenizer and language model, a Mistral decoder (docs/specification.md, section 7)."""

    init_from: str | None = Field(
        None, description="Hugging Face model to start from; null: random weights")
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
            raise ValueError(f"unknown size '{self.size}': "
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
                             f"set model.tokenizer to '{self.init_from}' too")
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
    compile: bool = Field(
        False, description="use torch.compile, for long runs; on CPUs it needs a C++ compiler")
    n_evals: Positive = Field(12, description="evaluations, the last at the end of the budget")
    n_eval_facts: Positive = Field(300, description="facts per evaluation")
    n_heldout_documents: NonNegative = Field(
        200, description="documents held out for the evaluation loss")
    stop_when: dict[Literal["atomic", "true_false", "not", "and", "or"], Probability] = Field(
        {}, description="stop when all these accuracies are reached; {}: never")
    checkpoint_seconds: NonNegativeFloat = Field(60.0, description="seconds between checkpoints")


class EditConfig(Config):
    """Edit cases (docs/specification.md, section 6) and editors."""

    n_cases: Positive = Field(5000, description="number of edit cases")
    target_probability: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.95, description="belief in the target that the evidence of a request leads to")
    p_downstream: Probability = Field(
        0.8, description="share of requests that change the answer to a downstream fact")
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
    raise ValueError(f"the device '{name}' is not supported{why}; use auto, cpu, cuda or cuda:N")


class Experiment(Config):
    """One run: a section per stage, one seed, one device."""

    name: str = Field("experiment", description="name of the experiment")
    seed: NonNegative = Field(0, description="seed of all random draws")
    device: Annotated[str, AfterValidator(check_device)] = Field(
        "auto", description="'auto', 'cpu', 'cuda' or 'cuda:N'")
    notebooks: tuple[str, ...] | None = Field(
        None, min_length=1, description="notebooks to run; null: all")
    plugins: tuple[str, ...] = Field(
        (), description="modules (name, or path of a .py file) that register editors or measures; "
        "paths are relative to the parameter file, in overrides to the working directory")
    graph: GraphConfig = GraphConfig()
    world: WorldConfig = WorldConfig()
    corpus: CorpusConfig = CorpusConfig()
    model: ModelConfig = ModelConfig()
    pretraining: PretrainingConfig = PretrainingConfig()
    edit: EditConfig = EditConfig()
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


def load_params(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Read an experiment from YAML and apply dotted overrides.

    Args:
        path: YAML file with a section per stage; other parameters have their defaults.
        overrides: dotted key to value, e.g. ``{"edit.n_cases": 50}``; paths in ``plugins`` are
            relative to the working directory, those of the file to its folder.

    Raises:
        ConfigError: missing or malformed file, unknown key, wrong type, invalid value, or a
            plugin that cannot be imported.
    """
    path, where = Path(path), str(path)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise ConfigError(f"no such parameter file: {path}",
                          hint="choose one of params/*.yaml") from None
    except OSError as error:
        raise ConfigError(f"cannot read the parameter file: {error.strerror}", where=where,
                          hint="choose one of params/*.yaml") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = f"not valid YAML: {' '.join(str(error).split())}"
        raise ConfigError(problem, where=where) from None
    if values is not None and not isinstance(values, dict):
        raise ConfigError("expected sections such as 'corpus:' with keys below them", where=where)
    return _validated(values or {}, overrides or {}, where, path.parent)


def with_overrides(params: Experiment | Mapping[str, Any],
                   overrides: Mapping[str, Any]) -> Experiment:
    """An experiment, or its values by section, with dotted overrides.

    All values of an experiment are set. So an override of an editor's ``preset`` replaces all its
    parameters by those of the preset.

    Raises:
        ConfigError: unknown key, wrong type, invalid value, or a plugin that cannot be imported.
    """
    values = params.model_dump(mode="json") if isinstance(params, Experiment) else dict(params)
    values = copy.deepcopy(values)
    for key in overrides:
        if match := re.fullmatch(r"edit\.editors\.([^.]+)\.preset", key):
            _set_dotted(values, f"edit.editors.{match[1]}", {})
    return _validated(values, overrides, "the configuration", Path())


def _validated(values: dict, overrides: Mapping[str, Any], where: str, folder: Path) -> Experiment:
    """The experiment; paths of plugins in ``values`` are relative to ``folder``."""
    overrides = dict(overrides)
    for settings, origin in ((values, folder), (overrides, Path())):
        if isinstance(settings.get("plugins"), list | tuple):
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
        ConfigError: no '=' or a value that is not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"cannot read --set '{text}'", hint="write it as section.key=value")
    try:
        return key.strip(), yaml.load(value, Loader=_Loader)
    except yaml.YAMLError:
        raise ConfigError(f"the value of --set '{text}' is not valid YAML",
                          hint="quote the value") from None


def _set_dotted(values: dict, key: str, value: Any) -> None:
    """Set the value of a dotted key, with new sections where needed."""
    *sections, last = key.split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise ConfigError(f"'{key}' is below '{section}', which is a value, not a section",
                              where=key)
    values[last] = value
