"""What any process of a run needs: ranks, collectives, logs, signals, the watchdog and the lease."""
