"""How jobs get processes.

protocol     what the supervisor asks of an engine: capacity, start, drain, kill, poll
local        subprocesses of this machine, each under a keeper
ray          on the machines of a Ray cluster; ray_node: what is asked of each of them
keeper       one attempt's parent process: hands signals on, leaves nothing behind, writes down how it ended
holding      the memory that those processes hold
slurm        jobs of a Slurm cluster, where priority and placement are Slurm's
sbatch       the script that Slurm gets for an attempt
batch        what runs in it: the keeper, and what Slurm's own requeues need
ranks        the parent of srun in it
"""
