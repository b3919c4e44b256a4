"""Formats in and out: one reader for one format, whichever command reads it."""
