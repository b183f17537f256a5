"""How callers speak to the service: each module parses one way of asking and prints one way of answering. Pure."""
