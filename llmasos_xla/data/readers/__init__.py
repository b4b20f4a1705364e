"""Readers: one file a format, each gives a `Content`."""
