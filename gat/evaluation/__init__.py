"""Samples, features and metrics."""
