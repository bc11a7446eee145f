"""Data sets, video folders, latents and the input pipeline."""
