"""A plan as the launch arguments of other frameworks, one file per framework."""
