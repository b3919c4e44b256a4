"""Prism inside other people's frameworks: `langchain`, `llama_index` and `haystack`, each imported by its own name."""
