"""The standing report: every system on one folder with ground truth, measured and written down."""
