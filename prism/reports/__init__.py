"""What a reader sees of long work and its results: progress, tables and plots."""
