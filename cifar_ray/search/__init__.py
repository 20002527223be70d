"""Which configurations are tried, and which of them are stopped."""
