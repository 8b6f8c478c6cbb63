"""The side that runs on a device: images to embeddings to search results, without torch."""
