"""Images and their latents: reading, encoding, storing."""
