"""Trackers of a run: TensorBoard and MLflow.

A tracker takes what ``rounds.jsonl`` and ``summary.json`` hold, and nothing else.
"""
