"""Ray: the session, what there is to run on, and the processes that train."""
