"""Data: sequences of any modality, their sources, their split over sites."""
