"""What is on disk: index directories, feature stores, image table."""
