"""Looking at alignments: a frame, a summary, a picture."""
