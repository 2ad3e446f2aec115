"""One page about runs: `run_folder` reads their folders, `summary` has the figures, `curves` and `chart` draw.

`panels` says which charts there are, `tables` and `page` make HTML of it with `markup`; page.css is the looks. Nothing
here needs torch.
"""
