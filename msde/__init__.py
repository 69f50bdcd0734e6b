"""msde: joint pretraining of 2D and 3D molecular encoders with score-based diffusion models."""

__version__ = "0.1.0"
