"""`prism doctor`: whether a reranker, ours or anybody's, on this machine or behind an address, does what it should."""
