"""The ground floor, what the program asks of the machine: files, the terminal, the device."""
