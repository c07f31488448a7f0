"""What is known about jobs: records, control, keys, counters, heartbeats, audit, results."""
