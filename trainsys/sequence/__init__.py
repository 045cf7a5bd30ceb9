"""Who has which part of a sequence, and what travels for attention: planned and priced; `parallel/sequence` runs it."""
