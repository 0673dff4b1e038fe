"""Configuration of the commands that use a trained model; apart, for their `model=` is no group."""
