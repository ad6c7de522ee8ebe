"""Evaluation on enumerated scenarios."""
