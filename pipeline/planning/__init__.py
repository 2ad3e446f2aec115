"""What a run will need and cost, computed before it starts: formulas alone, without torch.

`activations` and `memory` say what one rank holds, `alternatives` which other modes would fit, `clusters` has the
assumptions about machines, `schedule` the time and money, `failures` the lost work, `report` and `plot` show it.
"""
