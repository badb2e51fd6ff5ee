"""Two processes train for a long time under random faults, and must end as if there had been none.

`python -m tests.soak --minutes 60` prints a line for each fault and ends with a table.
"""
