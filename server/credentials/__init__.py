"""The credentials of a federation: an authority, certificates, keys of sites."""
