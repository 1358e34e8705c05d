"""One belief at a time: the rational agent beside the model before and after an edit."""

from __future__ import annotations

import numpy as np
import polars as pl
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from beliefedit.agent import BayesAgent
from beliefedit.editors.base import EditedModels
from beliefedit.explore import strongest
from beliefedit.language import atomic_prompt
from beliefedit.lm import score


def side_by_side(agent: BayesAgent, models: tuple[PreTrainedModel, EditedModels], tokenizer: PreTrainedTokenizerFast,
                 fact: tuple[str, str], n: int = 8) -> pl.DataFrame:
    """Beliefs about one (subject, relation): the model, its first edited version, and the agent.

    Args:
        agent: what the agent believes after the same request.
        models: the base model and the edited ones.
        fact: subject and relation.
        n: objects listed, those that anyone believes most.

    Returns:
        object, p_before, p_after, p_agent, by falling largest belief.
    """
    model, edited = models
    prompts, objects = [atomic_prompt(*fact)] * agent.n_objects, agent.objects
    p_before = np.exp(score(model, tokenizer, prompts, objects))
    p_after = np.exp(score(edited, tokenizer, prompts, objects, versions=[0] * len(objects)))
    p_agent = agent.distribution(*fact)
    listed = strongest(objects, p_before, p_after, p_agent, n=n)
    table = pl.DataFrame({"object": objects, "p_before": p_before, "p_after": p_after, "p_agent": p_agent})
    return pl.DataFrame({"object": listed}).join(table, on="object", how="left", maintain_order="left")
