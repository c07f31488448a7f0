-- A worker has stopped: {worker}

call('HDEL', base .. 'workers', asked[1])
call('ZREM', base .. 'beats', asked[1])
