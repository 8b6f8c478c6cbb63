"""Teacher embeddings that students learn from, stored once for each image and view."""
