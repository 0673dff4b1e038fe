"""HA-Fedformer: one encoder a modality, one decoder for all, and how modalities are fused."""
