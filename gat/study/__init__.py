"""A run of the study: its networks, cost and results, and analyses of trained networks."""
