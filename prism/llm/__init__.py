"""Other people's models: asked over HTTP within limits and budgets, and every failure of a named kind."""
