"""The Python API behind `import m3ddm_jax`, and the calls of the commands outpaint, batch and demo."""
