"""Hydra configuration groups; the schema is `common.config`."""
