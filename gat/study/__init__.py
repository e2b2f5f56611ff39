"""A training of the study: its networks, its cost, its results, what happens inside of it."""
