"""How bytes travel: each module moves requests and answers, and knows nothing of what they mean."""
