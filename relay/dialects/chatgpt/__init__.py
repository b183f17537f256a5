"""ChatGPT's own web API: what its page and many clients speak."""
