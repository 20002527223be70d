"""One model's training, whatever process it runs in."""
