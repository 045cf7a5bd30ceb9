"""Context parallelism: every sequence cut over teams, and attention over it by one of many methods."""
