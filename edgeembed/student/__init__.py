"""Students: small networks that learn to compute their teacher's embeddings."""
