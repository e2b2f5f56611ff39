"""A trained model for others: its pipeline folder, pictures of what it can do, a model card, a demo."""
