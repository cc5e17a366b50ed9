"""Video generation as a walk in a latent space over an orthonormal motion dictionary."""
