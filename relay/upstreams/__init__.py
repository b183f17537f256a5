"""How we speak to models: each module says what to send and how to decode what comes back."""
