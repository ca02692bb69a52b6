"""Export of encoders: one flat token axis, bidirectional attention inside each sequence, a head for each task."""
