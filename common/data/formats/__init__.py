"""Readers of data formats; each returns a `common.data.source.Source`."""
