"""Jobs in processes of their own.

    worker process -- a nursery, started at its first isolated job: it loads the application, runs no jobs
                        `-- runners, forked as they are needed: each runs one job after the other

A worker's thread takes an idle runner, or has one forked, hands it the job and watches over it: `supervision`. The two
talk through a socket of their own: `protocol`. Nothing that a job does harms the thread, and a run that has to
end is ended by a kill where nothing else helps. Runners die with the nursery, and it with the worker process.
"""
