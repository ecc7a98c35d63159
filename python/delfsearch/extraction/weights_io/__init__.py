"""Other people's weights files: one reader per format, and what finds out which one a file is in.

Every reader returns arrays under our tensor names and the metadata that the format or its names
tell (`formats.read_foreign` picks the reader). Nothing here runs code of a file, trusts a size in
it, or needs TensorFlow.
"""
