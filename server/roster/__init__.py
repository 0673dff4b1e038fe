"""Who takes part in a run: which node holds which client, who is awaited, who is busy."""
