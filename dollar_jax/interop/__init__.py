"""Weights in and out of the diffusers format."""
