"""The coordinator: Flower strategy, hierarchical aggregation, evaluation, commands."""
