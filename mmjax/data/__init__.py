"""From data sets on disk to batches: source -> document -> tokens -> packed rows -> batches."""
