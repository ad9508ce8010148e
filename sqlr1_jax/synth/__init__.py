"""The embedded data set: random small databases, questions on them, reasoning and verified golds."""
