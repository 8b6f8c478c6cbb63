"""What teacher and student share: the network, its image tower, and its files on disk."""
