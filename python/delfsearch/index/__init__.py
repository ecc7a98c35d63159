"""LocalFeatures -> Matches: the quantized KD-tree and DelfIndex on top of it."""
