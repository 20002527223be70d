"""What a command line is made of: flags, their values, and the terminal."""
