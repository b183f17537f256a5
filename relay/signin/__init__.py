"""Signing in to ChatGPT, and what a sign-in gives."""
