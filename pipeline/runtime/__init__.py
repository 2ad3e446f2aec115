"""Services for the processes of a run, such as ranks, collectives, logs, stop requests, the watchdog and the lease."""
