"""Networks and codecs, and the `Denoiser` that wraps a network."""
