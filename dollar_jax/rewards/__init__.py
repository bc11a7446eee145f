"""Rewards of decoded videos, and their registry."""
