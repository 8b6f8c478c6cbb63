"""A web page that searches a small index in the visitor's browser."""
