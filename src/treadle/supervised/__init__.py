"""Supervised learning: perception from rendered scenes (`grounding`), demonstrations (`imitation`), and the stage that
joins them (`train`).
"""
