"""Search spaces: copy one, change it, and pass it with `--space my_space.py`."""
