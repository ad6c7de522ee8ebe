"""Collecting rollouts: streams of scenarios, and lanes of episodes played against a policy."""
