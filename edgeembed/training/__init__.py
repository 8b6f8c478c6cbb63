"""What the training loops of teacher and student share."""
