"""The stages of a conversion, which `conversion.convert` calls in turn."""
