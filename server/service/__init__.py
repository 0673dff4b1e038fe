"""A trained model as a service over HTTP, and a page to try it."""
