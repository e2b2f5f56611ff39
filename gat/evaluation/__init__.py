"""Samples, their features, and metrics of them."""
