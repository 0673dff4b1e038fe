"""Readers, one file per format; each returns a `common.data.dataset.MultimodalDataset`."""
