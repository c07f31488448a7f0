"""Talking to Redis 7 or Valkey: what the driver and the store have in common.

`address` is where it is, `link` one connection, `outage` why it can't be used, `health` whether it is fit to
keep anything, `scripts` the Lua that does the work, `bell` how somebody who waits is woken.
"""
