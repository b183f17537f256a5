"""OpenAI's API as its SDKs speak it: what their requests ask, and how answers, streams and errors are printed. Pure."""
