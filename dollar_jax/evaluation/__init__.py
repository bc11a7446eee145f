"""Fréchet distance, diversity, judges, VBench and studies; arrays only."""
