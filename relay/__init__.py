"""What chatgpt_webapi.py calls: from dialects to upstreams. The layout is in the README, "How it is built"."""

__version__ = "0.1.0"
