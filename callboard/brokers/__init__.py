"""Where messages wait: one broker with the rules, on one of several drivers."""
