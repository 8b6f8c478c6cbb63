"""Images on disk become one manifest, and a manifest becomes batches."""
