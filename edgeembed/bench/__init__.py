"""Proves on this machine and these images how fast a file is and what it keeps of its teacher."""
