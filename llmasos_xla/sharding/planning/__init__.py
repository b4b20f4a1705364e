"""What a step needs and how long it takes, before it runs: what `sharding.plan` stands on.

topology      devices to compile for, also ones that are not here; hardware: what they hold and do
estimate      bytes, operations, messages and seconds of a step in one layout
memory        bytes of a compiled program
flops         operations of a traced one
program       messages of a compiled one; formula: the same from shapes alone; collectives: bytes and seconds of them
table         a plan as text
"""
