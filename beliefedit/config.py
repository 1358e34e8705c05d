"""Parameters of one experiment: a frozen model per stage, read from YAML with dotted overrides.

Defaults live here and nowhere else. Unknown keys are errors.
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
    """SHA-256 of a JSON-able value in canonical form, 64 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


NOT_COMPARED = {"plugins", "notebooks"}
"""Parameters that do not tell configurations apart: where plugins lie, which notebooks are run."""


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """'seed 0 -> 1; corpus.n_facts 500 -> 1000' of two configurations as JSON; '' if they agree."""
    old, new = flatten(before), flatten(after)
    pairs = {key: (old.get(key, MISSING), new.get(key, MISSING))
             for key in old | new if key not in NOT_COMPARED}
    changed = [f"{key} {was} -> {is_now}" for key, (was, is_now) in pairs.items() if was != is_now]
    more = [f"and {len(changed) - 5} more"] if len(changed) > 5 else []
    return "; ".join(changed[:5] + more)


def explain(error: ValidationError, root: type) -> str:
    """Each problem on a line: key, what is wrong, the value given, and names close to it."""
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
"""Keys of version 0.1 and their names today, for the errors of parameter files that have them."""


def _suggestion(location: tuple, root: type) -> str:
    group: Any = root
    for part in location[:-1]:
        annotation = fields_of(group).get(part)
        group = next((a for a in (annotation, *get_args(annotation)) if isinstance(a, type)), None)
    known = fields_of(group)
    old = location[-1]
    if RENAMED.get(old) in known:
        return f", it is named '{RENAMED[old]}' now"
    close = get_close_matches(str(old), known, n=1)
    return (f", did you mean '{close[0]}'?" if close else "") + (
        f"; known here: {', '.join(known)}" if known and (not close or group is Editors) else "")


def fields_of(group: Any) -> dict[str, Any]:
    """Names of a group's keys, and what each holds."""
    if group is Editors:
        return dict(EDITOR_PARAMETERS)
    if is_dataclass(group):
        return {field.name: field.type for field in fields(group)}
    return {name: field.annotation for name, field in getattr(group, "model_fields", {}).items()}


class LoraConfig(Config):
    """LoRA (arXiv 2106.09685) on every MLP output projection; defaults are the published ones."""

    rank: Positive = 1
    alpha: PositiveFloat = 8.0
    lr: PositiveFloat = 1e-4
    weight_decay: NonNegativeFloat = 1e-4
    steps: Positive = 40
    max_grad_norm: PositiveFloat = Field(1.0, description="largest gradient norm of one edit")
    append_end_token: bool = Field(False,
                                   description="learn where the answer ends, too; published: no")
    seed: NonNegative = Field(0, description="of the adapters' first values, equal for all edits")


class FinetuneConfig(Config):
    """Full fine-tuning of MLP output projections: FT-M, or FT-L with ``max_weight_change``.

    The published FT-L also takes all tokens of the target from what follows the prompt; here they
    are read one after another, as FT-M does.
    """

    layers: tuple[int, ...] | None = Field(None, description="negative from the last; null: all")
    lr: PositiveFloat = 5e-4
    steps: Positive = 25
    early_stop_loss: NonNegativeFloat = Field(0.01, description="an edit whose loss is below stops")
    target_tokens_only: bool = Field(True,
                                     description="loss on the target's tokens only; else on all")
    max_weight_change: PositiveFloat | None = Field(None,
                                                    description="bound on each weight's change")


class InContextConfig(Config):
    """The edited sentence in front of every prompt; no weights change."""

    n_repeats: Positive = Field(1, description="how often the sentence is stated")


class ValueConfig(Config):
    """What ROME, MEMIT and AlphaEdit share: a value v found by descent at one token.

    Models of a few layers look a fact up where subject and relation have met, at the prompt's last
    token: there these editors write by default. The published place is the subject's last token,
    where they adopt almost no request on such models, with the published parameters none
    (``preset: published``). On deep models try ``place: subject``.
    """

    lr: PositiveFloat = Field(0.3, description="Adam's learning rate of the value")
    relative_lr: bool = Field(
        True, description="ours: lr in units of the value's usual entry; false: as published")
    steps: Positive = 25
    early_stop_loss: NonNegativeFloat = Field(0.05, description="an edit whose loss is below stops")
    kl_factor: NonNegativeFloat = Field(0.0625, description="weight of KL on the subject alone")
    value_weight_decay: NonNegativeFloat = Field(
        0.01, description="weight of |change| / |v|^2 in the loss")
    edit_token: Literal["subject_last", "prompt_last"] = Field(
        "prompt_last", description="whose last token is edited")
    n_context_templates: Positive = Field(
        1, description="sentence context_templates that the key is averaged over")
    n_tokens: Positive = Field(20_000, description="corpus tokens behind the key statistics")
    seed: NonNegative = Field(0, description="of the choice of contexts")


class RomeConfig(ValueConfig):
    """One rank-one update at one layer, the same averaged key throughout (r-ROME)."""

    layer: int = Field(0, description="which layer, negative from the last")
    max_norm_ratio: PositiveFloat = Field(4.0, description="longest change, relative to the value")


class MultiLayerConfig(ValueConfig):
    """A value at the last of several layers, to which all contribute."""

    layers: tuple[int, ...] = Field((0, 1), description="layers to change, negative from the last")
    max_norm_ratio: PositiveFloat = Field(
        0.75, description="longest change, relative to the hidden state")


class MemitConfig(MultiLayerConfig):
    """The change spread over the layers by least squares (MEMIT)."""

    covariance_weight: PositiveFloat = Field(
        1.0, description="lambda: how much what the layers do already counts; published: 15,000")


class AlphaEditConfig(MultiLayerConfig):
    """MEMIT's value, written only where the corpus's keys do not reach (AlphaEdit)."""

    l2: PositiveFloat = Field(0.01, description="lambda; published: 10")
    nullspace_threshold: PositiveFloat = Field(
        2e-2, description="smaller eigenvalues of keys count as zero")
    relative_threshold: bool = Field(
        True, description="the threshold is a share of the summed eigenvalues, kept at the end")


class GraceConfig(Config):
    """A codebook at one layer; no weights change (GRACE)."""

    layer: int = Field(1, description="which layer, negative from the last")
    lr: PositiveFloat = Field(1.0, description="of the value")
    steps: Positive = 100
    early_stop_loss: NonNegativeFloat = Field(0.01, description="an edit whose loss is below stops")
    epsilon: PositiveFloat = Field(0.5, description="reach of an edit around its key")
    relative_epsilon: bool = Field(
        True, description="the radius is a share of the usual distance of keys; false: a distance")
    n_calibration_documents: Positive = Field(200, description="texts that distance is measured on")


class RetrainConfig(Config):
    """Further pretraining per edit, an upper reference for small worlds."""

    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-4
    n_epochs: Positive = 2
    batch_size: Positive = 16
    max_grad_norm: PositiveFloat = 1.0
    n_documents: Positive = Field(256, description="documents of the corpus that are read again")
    max_repeats: Positive = Field(200, description="a request is read weight times, at most this")
    seed: NonNegative = Field(0, description="of the choice and order of documents")


LessonKind = Literal["downstream", "upstream", "same_subject", "same_relation"]


class BayesConfig(LoraConfig):
    """LoRA on what the agent now believes: the request and facts around it."""

    rank: Positive = 4
    lr: PositiveFloat = 5e-3
    steps: Positive = 60
    append_end_token: bool = Field(True, description="learn where answers end, too")
    target_kinds: tuple[LessonKind, ...] = Field(
        get_args(LessonKind), description="facts that are trained on besides the request")
    n_other_subjects: NonNegative = Field(
        4, description="other subjects with a fact of the same relation")
    min_probability: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.02, description="objects the agent thinks less likely are not spelled out")
    request_weight: Annotated[float, Field(gt=0, le=1)] = Field(
        0.3, description="weight of the request among the soft targets")
    n_minibatches: Positive = Field(4, description="parts of the other targets; a step takes one")


class BayesHeldoutConfig(BayesConfig):
    """The same without the downstream fact: what changes there then is inferred."""

    target_kinds: tuple[LessonKind, ...] = ("upstream", "same_subject", "same_relation")

    @field_validator("target_kinds")
    @classmethod
    def _downstream_is_held_out(cls, target_kinds: tuple[LessonKind,
                                                         ...]) -> tuple[LessonKind, ...]:
        if "downstream" in target_kinds:
            raise ValueError(
                "downstream facts are what this editor must not be trained on; use bayes")
        return target_kinds


class SequenceConfig(Config):
    """Sequential edits of one model (docs/specification.md, section 8)."""

    lengths: tuple[Positive, ...] = Field(
        (1, 3, 10, 30, 100, 300), description="edits after which the model is measured; []: none")
    n_sequences: Positive = Field(
        1, description="sequences of edits, each of other cases; an interval needs at least two")
    n_unedited: Positive = Field(50, description="facts of other subjects that are asked about")
    n_documents: Positive = Field(100, description="documents of the corpus whose loss is watched")


class RationalityConfig(Config):
    """Tests that no rational agent fails."""

    n_cases: NonNegative = Field(20, description="subjects that each test is made on; 0: no tests")
    strengths: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.6, 0.8, 0.95, 0.99), description="beliefs that evidence of several strengths brings")
    n_unrelated: Positive = Field(5, description="unrelated facts asked about after each edit")


EDITOR_PARAMETERS: dict[str, type] = {
    "lora": LoraConfig, "finetune": FinetuneConfig, "in_context": InContextConfig,
    "rome": RomeConfig, "memit": MemitConfig, "alphaedit": AlphaEditConfig, "grace": GraceConfig,
    "retrain": RetrainConfig, "bayes": BayesConfig, "bayes_heldout": BayesHeldoutConfig}
"""Parameters of every editor by name; `beliefedit.editors.register_editor` adds to it."""

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
"""The published hyper-parameters of editors, for ``preset``; keys named beside it override them.

- lora: main.py and utils/utils.py of peterbhase/LLM-belief-revision, update_lr of its README.
- finetune: FT-M, hparams/FT/llama3-8b.yaml of zjunlp/EasyEdit with ``objective_optimization:
  target_new``, and the 1e-2 of its ft_main.py. For FT-L (arXiv 2012.00363) add ``max_weight_change:
  5e-4``, the norm_constraint of hparams/FT/gpt2-xl_constr.json of kmeng01/rome.
- rome: hparams/ROME/gpt2-xl.json of kmeng01/rome; the 5e-2 of rome/compute_v.py.
- memit: hparams/MEMIT/EleutherAI_gpt-j-6B.json of kmeng01/memit; memit/compute_z.py.
- alphaedit: hparams/AlphaEdit/EleutherAI_gpt-j-6B.json of jianghoucheng/AlphaEdit. Its Llama3-8B
  has ``lr: 0.1``.
- grace: grace/config/editor/grace.yaml of Thartvigsen/GRACE; its code never stops early. It starts
  from a random value and replaces the tokens before the prompt's last (``val_init: cold``,
  ``replacement: replace_prompt``); here the value starts from the layer's own output and replaces
  it at tokens near the key.

The descent of the published v_num_grad_steps 20 and 25 looks at its last value and leaves it, which
makes 19 and 24 steps. The contexts (21 and 6, one of them empty) are texts that the model
generates, and key statistics are of 100,000 texts of Wikipedia; here both come from the corpus.
Layers belong to a model's size: ``layer`` and ``layers`` keep their defaults.
"""


def _without_preset(name: str, values: Any) -> Any:
    """An editor's parameters, those of the preset they name among them."""
    if name not in BUILT_IN_EDITORS or not isinstance(values, Mapping) or "preset" not in values:
        return values
    named = {key: value for key, value in values.items() if key != "preset"}
    preset, known = values["preset"], PRESETS.get(name)
    if preset is None:
        return named
    if known is None:
        raise ValueError(f"the editor '{name}' is not a published one and has no presets; "
                         f"editors with presets: {', '.join(PRESETS)}")
    if not isinstance(preset, str) or preset not in known:
        raise ValueError(f"the editor '{name}' has no preset {preset!r}: "
                         f"choose {', '.join(known)}, or null for the defaults")
    return known[preset] | named


class Editors(RootModel[dict[str, Any]], Mapping[str, Any]):
    """Editors to run, by name, each with its parameters; others do not run."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _each_by_its_own_parameters(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            raise ValueError("expected names of editors with parameters below them")
        if any(name not in EDITOR_PARAMETERS for name in values):
            load_entry_points("beliefedit.editors")
        values = {name: _without_preset(name, given) for name, given in values.items()}
        known = {n: EDITOR_PARAMETERS[n] | None for n in values if n in EDITOR_PARAMETERS}
        group = cast(Any, TypedDict)("group", known, total=False)
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
    """One editor's parameters; those not named have their defaults.

    Raises:
        ConfigError: no such editor, an unknown or an impossible hyper-parameter.
    """
    try:
        return Editors.model_validate({name: dict(hyperparameters)})[name]
    except ValidationError as error:
        raise ConfigError(explain(error, Editors),
                          hint="correct the names and values above") from None


@cache
def load_entry_points(group: str) -> None:
    """Import what installed packages add to the kit under a name such as "beliefedit.editors".

    Raises:
        ConfigError: one of them cannot be imported.
    """
    for point in entry_points(group=group):
        try:
            point.load()
        except Exception as error:
            raise ConfigError(f"the plugin {point.name!r} cannot be loaded: {error!r}",
                              where=f"entry point {point.value} of {group}",
                              hint="repair or uninstall the package that brings it") from error


def import_plugin(plugin: str) -> None:
    """Import a module by name or, if it ends in .py, by path; a second time does nothing.

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
    except BeliefEditError:  # says itself what is wrong
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
"""Name to (hidden size, layers); see docs/specification.md, section 7."""


class _Loader(yaml.SafeLoader):
    """Safe YAML that also reads 1e-3 as a number (YAML 1.1 wants 1.0e-3)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"))


class GraphConfig(Config):
    """Which knowledge graph, and which part of it (docs/specification.md, section 2)."""

    source: str = Field(
        "demo", description="'demo' (built in), a folder in Wikidata5m's layout, or 'format:path'")
    demo_subjects: Positive = Field(4000, description="people in the built-in graph")
    demo_seed: NonNegative = 0
    read_n_facts: Positive | None = Field(None, description="read only the first lines; null: all")
    n_relations: Annotated[int, Field(ge=2)] = 10
    min_relations: Positive = Field(2, description="fewest chosen relations of a kept subject")
    min_cooccurrence: Positive = Field(1000, description="subjects that must share two relations")
    max_object_tokens: NonNegative = Field(4, description="longer labels are cut; 0: left whole")
    exclude_relations: tuple[str, ...] = ("P735", "P131")
    exclude_entities: tuple[str, ...] = ("Q16521", "Q5")


class WorldConfig(Config):
    """The generative model (docs/specification.md, section 3)."""

    min_truth: Annotated[float, Field(gt=0.5, le=1)] = Field(
        0.6, description="least probability of a true object")
    p_false_from_same_relation: Probability = Field(
        0.0, description="share of false objects drawn from the fact's own relation, not from all")


class CorpusConfig(Config):
    """Sentences, documents and evidence (docs/specification.md, section 4)."""

    n_facts: Positive = Field(1000, description="subjects are taken in order up to this many")
    n_samples_per_fact: Positive = Field(10, description="noisy draws per (subject, relation)")
    atomic: bool = Field(True, description="write the drawn 's r o' sentences")
    true_false: bool = Field(True, description="write judged sentences")
    connectives: tuple[Connective, ...] = Field(
        ("or", "and", "not"), description="compound sentences to write")
    n_compound_per_subject: NonNegative = Field(
        20, description="compound sentences per subject, of all kinds")
    compound_resamples: Positive = Field(
        1, description="times they are drawn; a connective uses a fact once each time")
    label_all_samples: bool = Field(True, description="else one true and one false draw per fact")
    true_object_most_frequent: bool = Field(True, description="redraw until it has the majority")
    use_distractors: bool = Field(True, description="a false independent fact uses its distractor")
    sentences_per_doc: Positive = 10
    n_shuffles_within_subject: Positive = Field(
        5, description="passes over each subject's sentences, shuffled")
    n_shuffles_global: NonNegative = Field(0, description="further passes mixed across subjects")

    @model_validator(mode="after")
    def _judged_forms_need_true_false(self) -> CorpusConfig:
        if self.connectives and not self.true_false:
            raise ValueError("compound sentences are judged true or false: "
                             "set true_false: true or connectives: []")
        if len(set(self.connectives)) != len(self.connectives):
            raise ValueError(f"a connective is named twice: {list(self.connectives)}")
        if not self.atomic and not self.true_false:
            raise ValueError("nothing to write: atomic and true_false are both off")
        return self


class ModelConfig(Config):
    """Tokenizer and language model (docs/specification.md, section 7)."""

    init_from: str | None = Field(None,
                                  description="Hugging Face model to start from; null: random")
    tokenizer: str = Field("bpe", description="'bpe' trains one; else a Hugging Face name or path")
    vocab_size: Annotated[int, Field(ge=300)] = 2000
    size: str | None = Field("small", description="one of MODEL_SIZES; null: the dimensions below")
    hidden_size: Positive | None = None
    n_layers: Positive | None = None
    n_heads: Positive = 8
    mlp_ratio: PositiveFloat = 4.0

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
    """The training loop; defaults are our recipe, params/paper.yaml holds the published one."""

    token_budget: Positive = Field(3_000_000, description="budget in tokens, padding not counted")
    packed: bool = Field(
        True, description="whole documents packed into rows; else one a row, padded at random")
    sequence_length: Annotated[int, Field(ge=8)] | None = Field(
        None, description="tokens, longer documents are cut; null: the longest one's, so that none "
                          "is cut, but at most 1024 if packed")
    prefix_groups_per_epoch: Positive | None = Field(
        16, description="groups of a packed pass whose documents share prefixes; null: no sharing")
    n_short_epochs: NonNegative = Field(2, description="first passes, the shortest documents alone")
    short_fraction: Probability = Field(0.35,
                                        description="share of documents that are the shortest")
    batch_tokens: Positive = Field(1024, description="tokens of a packed batch, with padding")
    batch_size: Positive = Field(64, description="documents of a batch that is not packed")
    gradient_accumulation_steps: Positive = Field(
        1, description="batches whose gradients make one step")
    optimizer: Literal["adamw", "adam", "rmsprop", "sgd", "muon"] = Field(
        "adamw", description="torch's own; muon: hidden matrices, AdamW the rest; GPUs only")
    lr: PositiveFloat = Field(
        3e-3, description="peak learning rate of all but Muon; it falls linearly")
    lr_muon: PositiveFloat = Field(0.02, description="peak learning rate of Muon")
    final_lr_fraction: Probability = Field(0.0,
                                           description="last learning rate, as a share of the peak")
    warmup_fraction: Probability = Field(0.02,
                                         description="share of the budget in which the rate rises")
    weight_decay: NonNegativeFloat = 0.0
    adam_beta2: Annotated[float, Field(gt=0, lt=1)] = Field(0.95, description="of AdamW and Adam")
    max_grad_norm: PositiveFloat = Field(1.0, description="largest gradient norm of a step")
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 where it is fast")
    compile: bool = Field(False, description="torch.compile, for long runs; CPUs need a compiler")
    n_evals: Positive = Field(12, description="over the budget, the last one at its end")
    n_eval_facts: Positive = Field(300, description="facts asked about in an evaluation")
    n_heldout_documents: NonNegative = Field(200, description="held out for the evaluation loss")
    stop_when: dict[Literal["atomic", "true_false", "not", "and", "or"], Probability] = Field(
        {}, description="stop when all these accuracies are reached")
    checkpoint_seconds: NonNegativeFloat = Field(60.0, description="time between checkpoints")


class EditConfig(Config):
    """Edit cases (docs/specification.md, section 6) and the editors that carry them out."""

    n_cases: Positive = 5000
    target_probability: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.95, description="belief the evidence must bring")
    p_downstream: Probability = Field(0.8, description="share to change a downstream answer")
    p_reinforce: Probability = Field(0.6, description="where none exists, share of true requests")
    as_published: bool = Field(False, description="draw, update and judge as the published code")
    published_batch_size: Positive = Field(
        64, description="with as_published: cases that are judged by the first one's labels")
    editors: Editors = Editors({"lora": {}})
    n_edited: NonNegative | None = Field(None, description="edit only the first cases; null: all")
    batch_size: Positive = Field(64, description="edits carried out at once")
    n_trajectories: NonNegative = Field(8, description="first edits, scored on the way too")
    n_distributions: NonNegative | None = Field(
        50, description="first edits whose whole distributions are compared too; null: all")
    trajectory_every: Positive = Field(4, description="steps between the points of a trajectory")
    sequence: SequenceConfig = SequenceConfig()
    rationality: RationalityConfig = RationalityConfig()


class AnalysisConfig(Config):
    """Tables and intervals (docs/specification.md, section 8)."""

    n_resamples: Annotated[int, Field(ge=100)] = 2000
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    smallest_effect: NonNegativeFloat = Field(
        0.05, description="least change of a probability, accuracy or error that makes a claim")


def check_device(name: str) -> str:
    """The name, if it is one of 'auto', 'cpu', 'cuda' and 'cuda:N'; a ValueError says why not."""
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        return name
    why = ": scores are computed in float64, which MPS lacks" if name.startswith("mps") else ""
    raise ValueError(f"the device '{name}' is not supported{why}; use auto, cpu, cuda or cuda:N")


class Experiment(Config):
    """One run: a section per stage, one seed, one device."""

    name: str = "experiment"
    seed: NonNegative = 0
    device: Annotated[str, AfterValidator(check_device)] = Field(
        "auto", description="'auto', 'cpu', 'cuda' or 'cuda:N'")
    notebooks: tuple[str, ...] | None = Field(
        None, min_length=1, description="only these are run; null: all")
    plugins: tuple[str, ...] = Field(
        (), description="modules, by name or path of a .py file, that register editors or measures;"
        " paths are relative to the parameter file, in overrides to the working directory")
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
        """Twelve hexadecimal digits that name this configuration; see `NOT_COMPARED`."""
        return digest(self.model_dump(mode="json", exclude=NOT_COMPARED) | {"notebooks": None})[:12]


def load_params(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Read an experiment from YAML and apply dotted overrides.

    Args:
        path: YAML file with a section per stage; what it does not say keeps its default.
        overrides: dotted key to value, e.g. ``{"edit.n_cases": 50}``; paths in ``plugins`` are
            relative to the working directory, those of the file to its folder.

    Raises:
        ConfigError: missing or malformed file, unknown key, wrong type, impossible value, or a
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

    In an experiment every value is set, so that none would be left to a preset: an editor whose
    ``preset`` is overridden starts from it.

    Raises:
        ConfigError: unknown key, wrong type, impossible value, or a plugin that cannot be imported.
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
    for settings, base in ((values, folder), (overrides, Path())):
        if isinstance(settings.get("plugins"), list | tuple):
            settings["plugins"] = [str((base / plugin).resolve()) if plugin.endswith(".py")
                                   else plugin for plugin in map(str, settings["plugins"])]
    for key, value in overrides.items():
        _set_dotted(values, key, value)
    try:
        return Experiment.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, Experiment),
                          where=where + (" with overrides" if overrides else ""),
                          hint="correct the keys above; beliefedit/config.py lists every key"
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
    """Put value at a.b.c, making sections on the way."""
    *sections, last = key.split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise ConfigError(f"'{key}' goes below '{section}', which is a value, not a section",
                              where=key)
    values[last] = value
