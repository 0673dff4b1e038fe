"""A run from the first query to the summary, on disk and on the terminal."""
