"""xmodal: large-scale cross-modal pretraining in JAX and Flax."""

__version__ = "0.1.0"
