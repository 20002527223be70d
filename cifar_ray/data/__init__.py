"""From labelled images, wherever they are, to train, validation and test arrays."""
