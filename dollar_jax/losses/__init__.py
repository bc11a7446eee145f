"""Distillation losses: arrays in, scalars out."""
