"""The MCP server: tools `rerank` and `read_evidence` for agents. `prism mcp` runs it. Needs `prism-reranker[mcp]`."""
