"""The language model: tokenizer, building, scoring, candidate distributions."""
