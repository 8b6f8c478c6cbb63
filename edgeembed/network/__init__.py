"""What teacher and student share: the network, its backbone, and its files on disk."""
