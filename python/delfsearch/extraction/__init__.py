"""Photo -> LocalFeatures: network, pyramid, scores and selection, reduction, weights."""
