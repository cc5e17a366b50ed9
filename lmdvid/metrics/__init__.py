"""Metrics: how far generated videos are from real ones, and animations from the truth."""
