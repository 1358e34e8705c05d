"""Hyper-parameters of the editors, one group each (EDITORS.md); defaults live here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from beliefedit.config_base import Config, NonNegative, Positive, PositiveFloat, explain
from beliefedit.errors import ConfigError


class LoraConfig(Config):
    """LoRA on every MLP output projection (SPEC 7); defaults are the published ones."""

    rank: Positive = 1
    alpha: PositiveFloat = 8.0
    lr: PositiveFloat = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    steps: Positive = 40
    clip: PositiveFloat = Field(1.0, description="largest gradient norm of one edit")
    ends: bool = Field(False, description="learn where the answer ends, too, which the published loss does not have")
    seed: NonNegative = Field(0, description="of the adapters' first values, the same for every edit")


class FinetuneConfig(Config):
    """Full fine-tuning of MLP output projections: FT-M, or FT-L with ``largest_change`` (EDITORS.md)."""

    layers: tuple[int, ...] | None = Field(None, description="layers to train, negative from the last; null: all")
    lr: PositiveFloat = 5e-4
    steps: Positive = 25
    stop_loss: Annotated[float, Field(ge=0)] = Field(0.01, description="an edit whose loss is below stops")
    masked: bool = Field(True, description="loss on the target's tokens only; else on the whole sentence")
    largest_change: PositiveFloat | None = Field(None, description="every weight stays within this of its start")


class InContextConfig(Config):
    """The edited sentence in front of every prompt; no weights change."""

    n_times: Positive = Field(1, description="how often the sentence is said")


class ValueConfig(Config):
    """What ROME, MEMIT and AlphaEdit share: a value found by descent at one token (EDITORS.md).

    The published place is the subject's last token, with lr 0.5, decay 0.5 and several contexts. Models of a few layers
    look a fact up where subject and relation have met, at the prompt's last token: there these editors work, and at the
    subject they do not (LOG.md has both). On deep models try ``place: subject``.
    """

    lr: PositiveFloat = Field(0.3, description="of the value, as a multiple of its entries' usual size")
    steps: Positive = 25
    stop_loss: Annotated[float, Field(ge=0)] = Field(0.05, description="an edit whose loss is below stops")
    kl_factor: Annotated[float, Field(ge=0)] = Field(
        0.0625, description="weight of staying the same on the subject alone")
    decay: Annotated[float, Field(ge=0)] = Field(0.01, description="weight of the change's squared relative length")
    place: Literal["subject", "prompt"] = Field("prompt", description="whose last token is written at")
    n_contexts: Positive = Field(1, description="beginnings of sentences that the words are looked at behind")
    n_tokens: Positive = Field(20_000, description="corpus tokens the key statistics are computed from")
    seed: NonNegative = Field(0, description="of the choice of contexts")


class RomeConfig(ValueConfig):
    """One rank-one update at one layer, the same averaged key throughout (r-ROME)."""

    layer: int = Field(0, description="which layer, negative from the last")
    largest: PositiveFloat = Field(4.0, description="longest change, as a multiple of the value it is added to")


class MemitConfig(ValueConfig):
    """A value at the last of several layers, the change spread over them (MEMIT)."""

    layers: tuple[int, ...] = Field((0, 1), description="layers to change, negative from the last")
    largest: PositiveFloat = Field(0.75, description="longest change, as a multiple of the hidden state it is added to")
    strength: PositiveFloat = Field(
        1.0, description="lambda: how much what the layers do already counts; published: 15,000")


class AlphaEditConfig(ValueConfig):
    """MEMIT's value, written only where the corpus's keys do not reach (AlphaEdit)."""

    layers: tuple[int, ...] = Field((0, 1), description="layers to change, negative from the last")
    largest: PositiveFloat = Field(0.75, description="longest change, as a multiple of the hidden state it is added to")
    ridge: PositiveFloat = Field(0.01, description="lambda; published: 10")
    threshold: PositiveFloat = Field(2e-2, description="eigenvalues of the key statistics below it count as zero")
    relative: bool = Field(True, description="the threshold is a share of the summed eigenvalues, kept at the end")


class GraceConfig(Config):
    """A codebook at one layer; no weights change (GRACE)."""

    layer: int = Field(1, description="which layer, negative from the last")
    lr: PositiveFloat = Field(1.0, description="of the value")
    steps: Positive = 100
    stop_loss: Annotated[float, Field(ge=0)] = Field(0.01, description="an edit whose loss is below stops")
    radius: PositiveFloat = Field(0.5, description="reach of an entry, as a share of how near keys usually are")
    n_texts: Positive = Field(200, description="texts that distance is measured on")


class RetrainConfig(Config):
    """Further pretraining per edit, a yardstick for small worlds."""

    lr: PositiveFloat = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    n_passes: Positive = 2
    batch_size: Positive = 16
    clip: PositiveFloat = 1.0
    n_documents: Positive = Field(256, description="documents of the corpus that are read again")
    most_times: Positive = Field(200, description="the request is read as often as its weight says, at most this")
    seed: NonNegative = Field(0, description="of the choice and order of documents")


LessonKind = Literal["downstream", "downstream_judged", "downstream_not", "downstream_and", "downstream_or", "upstream",
                     "same_subject", "same_relation", "judged", "compound"]


class BayesConfig(LoraConfig):
    """LoRA on what the agent now believes: the request and a neighbourhood of it (EDITORS.md)."""

    rank: Positive = 4
    lr: PositiveFloat = 5e-3
    steps: Positive = 60
    ends: bool = Field(True, description="learn where answers end, too")
    kinds: tuple[LessonKind, ...] = Field(
        ("downstream", "upstream", "same_subject", "same_relation"), description="what is taught besides the request")
    n_others: NonNegative = Field(4, description="other subjects whose facts of the same relation are taught")
    least_probability: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.02, description="objects the agent thinks less likely are not spelled out")
    request_share: Annotated[float, Field(gt=0, le=1)] = Field(0.3, description="weight of the request among lessons")
    sureness: Annotated[float, Field(gt=0.5, lt=1)] = Field(
        0.95, description="how surely downstream facts are called true or false, where such forms are taught")
    n_parts: Positive = Field(4, description="a step takes the request and one of this many parts of the lessons")


class BayesUntoldConfig(BayesConfig):
    """The same without the downstream fact: what moves there then is inference."""

    kinds: tuple[LessonKind, ...] = Field(
        ("upstream", "same_subject", "same_relation"), description="what is taught besides the request")

    @field_validator("kinds")
    @classmethod
    def _downstream_stays_untold(cls, kinds: tuple[LessonKind, ...]) -> tuple[LessonKind, ...]:
        if any(kind.startswith("downstream") for kind in kinds):
            raise ValueError("downstream facts are what this editor must not be told; use bayes")
        return kinds


class SequenceConfig(Config):
    """Edits of one model in a row; nothing is forgotten on purpose."""

    lengths: tuple[Positive, ...] = Field(
        (1, 3, 10, 30, 100, 300), description="numbers of edits after which the model is looked at; empty: none")
    n_untouched: Positive = Field(50, description="facts of other subjects that are asked about")
    n_documents: Positive = Field(100, description="documents of the corpus whose loss is watched")


class RationalityConfig(Config):
    """Tests of what a rational reader cannot fail."""

    n_cases: NonNegative = Field(20, description="subjects that each test is made on; 0: no tests")
    strengths: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.6, 0.8, 0.95, 0.99), description="beliefs that evidence of several strengths brings")
    n_unrelated: Positive = Field(5, description="unrelated facts that are asked about after each edit")


class EditorsConfig(Config):
    """Editors to run, by name; an editor that is not named does not run."""

    lora: LoraConfig | None = None
    finetune: FinetuneConfig | None = None
    in_context: InContextConfig | None = None
    rome: RomeConfig | None = None
    memit: MemitConfig | None = None
    alphaedit: AlphaEditConfig | None = None
    grace: GraceConfig | None = None
    retrain: RetrainConfig | None = None
    bayes: BayesConfig | None = None
    bayes_untold: BayesUntoldConfig | None = None

    @classmethod
    def parse_one(cls, name: str, hyperparameters: Mapping[str, Any]) -> Config:
        """One editor's configuration.

        Raises:
            ConfigError: unknown or impossible hyper-parameter.
        """
        try:
            return getattr(cls.model_validate({name: dict(hyperparameters)}), name)
        except ValidationError as error:
            raise ConfigError(explain(error, cls), remedy="see its hyper-parameters in editor_config.py") from None

    def chosen(self) -> dict[str, Config]:
        """Named editors in the order of this class, with their hyper-parameters."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}
