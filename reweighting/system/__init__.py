"""The ground floor, what the program stands on: files, the terminal, the device, checkpoints."""
