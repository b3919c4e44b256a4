"""Engines compute label logits and write text. Pick one through `prism.Reranker.load(engine=...)`."""
