"""DeepSpeed configurations, one for each situation, with every value written out."""
