"""What stands behind the face: values, the one use case, its store, how callers speak and how models are reached."""
