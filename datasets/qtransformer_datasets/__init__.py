"""Episodes of robots: reading, recording, collecting, checking and cutting them into training batches."""
