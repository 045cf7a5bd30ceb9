"""Who has which part of a sequence, and what travels for attention: planned and priced here, run in `parallel/sequence`."""
