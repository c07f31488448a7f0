"""The job, declared on each system."""
