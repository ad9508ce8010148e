"""The embedded data set: small random databases, questions on them, reasoning, and gold queries that were run."""
