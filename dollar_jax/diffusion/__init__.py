"""Noise processes, time grids, guidance and samplers; arrays only."""
