"""Turns a run into files for a device, none of which is silently worse."""
