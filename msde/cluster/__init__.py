"""The processes of a run: ranks, their launcher, signals, and what watches over them."""
