"""Signing in to ChatGPT, and the access tokens that a sign-in gives."""
