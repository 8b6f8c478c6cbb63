"""Large networks that define an embedding space."""
