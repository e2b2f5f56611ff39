"""Scalable GANs with Transformers (GAT, arXiv 2509.24935): networks, recipe, metrics and study."""
