"""One module a command of `dollar`; see `dollar_jax.cli`."""
