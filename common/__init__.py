"""What clients and server share: configuration, protocol, data, model, metrics."""
