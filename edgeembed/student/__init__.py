"""Small networks that learn a teacher's space."""
