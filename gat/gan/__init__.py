"""The GAN: networks, losses, training."""
