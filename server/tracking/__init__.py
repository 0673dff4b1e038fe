"""What a run's figures are shown with: TensorBoard, MLflow, or nothing but the run folder.

A tracker is told what stands in ``rounds.jsonl`` and ``summary.json``, and nothing else.
"""
