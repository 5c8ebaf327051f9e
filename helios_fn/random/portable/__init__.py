"""Torch's random functions as portable draws: one stand-in for each, and the table that says which."""
