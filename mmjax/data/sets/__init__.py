"""Data sets that come by name."""
