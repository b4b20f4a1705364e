"""How jobs get processes.

protocol     what the supervisor asks of an engine: capacity, start, drain, kill, poll
local        subprocesses of this machine, each under a keeper
keeper       one attempt's parent process: hands signals on, leaves nothing behind, writes down how it ended
"""
