"""Images and latents: sources, conversion, storage."""
