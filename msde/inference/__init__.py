"""A pretrained model in use."""
