"""A server that may be slow, faulty or hostile: what every command that asks one stands on.

``endpoint`` sends requests and repeats them, ``http_client`` bounds what is read, ``body`` reads it
without trust, ``scrubbing`` takes keys out of what others say, ``flags`` are the command line's.
"""
