"""Measuring: BM25 first stage, BEIR data sets, TREC runs and ranking measures. Needs `prism-reranker[eval]`."""
