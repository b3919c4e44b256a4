"""Training data: JSONL records, corpora, and pairs made without an LLM."""
