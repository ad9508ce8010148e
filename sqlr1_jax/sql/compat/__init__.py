"""The official Spider and BIRD evaluators, reproduced exactly for `score --compat`. Rewards never use this package."""
