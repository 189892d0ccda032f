"""What a model does, what it costs, and whether it is correct.

verification/     comparing with other engines
limits.py          what this machine allows, measured once and cached
cost_model.py      what each op should cost
op_costs.py        one function per kind of op
profiling.py       `profile`
capacity.py        `plan_capacity`
choosing/         `choose_precision`: a number format for each layer
formats.py        a model with its layers in other number formats
analysis/          `analyze`: dirty input, memory, precision
report/            their pages, and the drawing of a graph
"""
