"""Networks, the weights they start from, and how they are saved."""
