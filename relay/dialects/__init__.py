"""How callers speak to us: each module parses one way of asking and prints one way of answering."""
