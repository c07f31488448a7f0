"""When jobs start by themselves: the cron actors."""
