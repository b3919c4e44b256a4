"""First stages: BM25 and dense encoders."""
