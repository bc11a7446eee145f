"""Few-step video generation: distil a diffusion teacher with JAX.

The package imports nothing heavy by itself; take what is needed from its rooms,
for example `from dollar_jax import interop` or
`from dollar_jax.losses import vsd`. `dollar --help` lists the programs.
"""

__version__ = "0.1.0"
